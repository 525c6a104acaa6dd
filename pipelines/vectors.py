"""One vector for a stretch of DNA: the outputs of a model's last block, pooled over positions and strands.

Short stretches go through the model together, packed; long ones chunk after chunk with the state carried, in constant
memory. The vector of a stretch is the same either way, to rounding.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.errors import ModelError
from mamba_seq.heads import Model
from mamba_seq.heads.pooling import finish
from mamba_seq.pipelines.errors import ScoringError
from mamba_seq.pipelines.likelihood import rechunked
from mamba_seq.pipelines.runtime import mixed_precision, use
from mamba_seq.sashimi import SaShiMi

CHUNK = 1 << 14
"""Tokens that go through the model at once on a CPU."""
GPU_CHUNK = 1 << 18

Vectors = NDArray[np.float32]


class VectorReader:
    """Makes vectors with one model.

    Args:
        model: of DNA, in evaluation mode.
        device: where it is.
        pooling: "mean", "last" or "max"; None takes the model's own.
        both_strands: pool over a stretch and its reverse complement.
        chunk: tokens that go through the model at once, both strands counted; by default chosen by device.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        pooling: str | None = None,
        both_strands: bool = True,
        chunk: int | None = None,
    ) -> None:
        self.width: int = model.config.backbone.d_model
        """Numbers of a vector, d_model."""
        self.both_strands = both_strands
        self.pooling: str = pooling or model.config.pooling
        tokens = chunk or (GPU_CHUNK if device.type == "cuda" else CHUNK)
        self.chunk = max(1, tokens // (2 if both_strands else 1))
        """Bases of the longest stretch that goes through the model whole, and of all that go through it together."""
        self._model = model
        self._device = device

    def together(self, stretches: Sequence[Codes]) -> Vectors:
        """Return the vectors (n, d_model) of n stretches of codes, none of them empty."""
        strands = list(stretches)
        if self.both_strands:
            strands += [DNA.reverse_complement(stretch) for stretch in stretches]
        with torch.inference_mode(), use(self._device), mixed_precision(self._device):
            if isinstance(self._model.backbone, SaShiMi):  # the windows of its levels know no boundaries
                found = torch.cat([self._finished(self._pool(strand)[0]) for strand in strands])
            else:
                ends = torch.tensor([0, *np.cumsum([len(strand) for strand in strands])], dtype=torch.int32)
                tokens = self._tokens(np.concatenate(strands))
                pooled, _ = self._model.pool(tokens, self.pooling, cu_seqlens=ends.to(self._device))
                found = self._finished(pooled)
        return self._checked(found.unflatten(0, (-1, len(stretches))))

    def long(self, strands: Iterable[Iterable[Codes]]) -> Vectors:
        """Return the vector (d_model,) of a stretch of any length, each of whose strands comes in blocks of codes."""
        with torch.inference_mode(), use(self._device), mixed_precision(self._device):
            found = torch.stack([self._streamed(blocks) for blocks in strands])
        vector: Vectors = self._checked(found)[0]
        return vector

    def _streamed(self, blocks: Iterable[Codes]) -> Tensor:
        pooled, state = None, None
        for codes in rechunked(blocks, self.chunk):
            pooled, state = self._pool(codes, state, return_state=True)
        return self._finished(pooled)

    def _pool(self, codes: Codes, state: Any = None, return_state: bool = False) -> Any:
        return self._model.pool(self._tokens(codes), self.pooling, state=state, return_state=return_state)

    def _tokens(self, codes: Codes) -> Tensor:
        return torch.from_numpy(codes.copy()).to(self._device).long()[None]

    def _finished(self, pooled: Any) -> Tensor:
        return finish(pooled, self.pooling).float()

    def _checked(self, strands: Tensor) -> Vectors:
        """Pool vectors over their first axis, the strands."""
        both = strands.amax(dim=0) if self.pooling == "max" else strands.mean(dim=0)
        if not torch.isfinite(both).all():
            raise ScoringError(
                "the model gave a vector that is not of numbers: its weights are damaged, or their values leave the "
                "range of this precision; try --device cpu, and another -m"
            )
        found: Vectors = both.cpu().numpy()
        return found


def keep_blocks(model: Model, count: int, spec: str) -> None:
    """Leave a model its first `count` blocks, and the normalisation that comes behind the last.

    Raises:
        ModelError: when it has fewer, or is no stack.
    """
    backbone = model.backbone
    if isinstance(backbone, SaShiMi):
        raise ModelError(f"model {spec!r} is a U-Net, whose levels are no layers to choose from; leave out --layer")
    if not 1 <= count <= len(backbone.layers):
        raise ModelError(f"model {spec!r} has {len(backbone.layers)} blocks, and --layer {count} came; choose another")
    backbone.layers = backbone.layers[:count]
