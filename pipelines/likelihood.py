"""How probable a language model finds each base of DNA, given the bases before it on its strand.

A sequence is read from an N on, which stands for its beginning, as in training: so its first base has a probability
too.
Long ones go through the model chunk after chunk, the state carried: the same values, to rounding, in constant memory.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.heads import LanguageModel
from mamba_seq.padding import at_least_float32
from mamba_seq.pipelines.runtime import mixed_precision, use

CHUNK = 1 << 15
"""Tokens that go through the model at once on a CPU."""
GPU_CHUNK = 1 << 18

Values = NDArray[np.float32]


def shifted(tokens: Tensor, before: Tensor | None = None) -> Tensor:
    """Return what is read to say tokens (B, L): the one before each (B, L), at first `before` (B,), or N."""
    first = torch.full_like(tokens[:, :1], DNA.unknown_code) if before is None else before[:, None]
    return torch.cat([first, tokens[:, :-1]], dim=1)


def log2_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log2 of the probability (...) of tokens (...) under logits (..., V); NaN where the token is N."""
    logits = at_least_float32(logits)
    found = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)
    return (found / np.log(2)).masked_fill(tokens == DNA.unknown_code, float("nan"))


class LikelihoodScorer:
    """Scores sequences with one model.

    Args:
        model: of DNA, in evaluation mode.
        device: where it is.
        chunk: tokens that go through it at once; by default chosen by device.
    """

    def __init__(self, model: LanguageModel, device: torch.device, chunk: int | None = None) -> None:
        self.model = model
        self.device = device
        self.chunk = chunk or (GPU_CHUNK if device.type == "cuda" else CHUNK)

    def rows(self, batch: Tensor) -> Tensor:
        """Return log2 probabilities (B, L) float32 of the rows of a batch of token ids (B, L), on the device."""
        width = max(1, self.chunk // max(1, len(batch)))
        found, state, before = [], None, None
        for piece in batch.split(width, dim=1):
            tokens = piece.to(self.device).long()
            log2, state = self._read(tokens, before, state)
            before = tokens[:, -1]
            found.append(log2)
        return torch.cat(found, dim=1)

    def chunks(self, blocks: Iterable[Codes]) -> Iterator[Values]:
        """Yield the log2 probabilities of one sequence that comes in blocks of token ids (n,), chunk after chunk."""
        state, before = None, None
        for codes in rechunked(blocks, self.chunk):
            tokens = torch.from_numpy(codes).to(self.device).long()[None]
            log2, state = self._read(tokens, before, state)
            before = tokens[:, -1]
            yield log2[0].cpu().numpy()

    def many(self, sequences: Sequence[Codes]) -> list[Values]:
        """Return the log2 probabilities of several sequences (n,) that are read at once, packed; none may be empty."""
        lengths = [len(codes) for codes in sequences]
        tokens = torch.from_numpy(np.concatenate(sequences)).to(self.device).long()[None]
        ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=self.device)
        inputs = shifted(tokens)
        inputs[0, ends[:-1].long()] = DNA.unknown_code
        with torch.inference_mode(), use(self.device), mixed_precision(self.device):
            logits = self.model(inputs, cu_seqlens=ends)
        found = log2_of(logits, tokens)[0].cpu().numpy()
        return np.split(found, np.cumsum(lengths)[:-1])

    def _read(self, tokens: Tensor, before: Tensor | None, state: object) -> tuple[Tensor, object]:
        with torch.inference_mode(), use(self.device), mixed_precision(self.device):
            logits, state = self.model(shifted(tokens, before), state=state, return_state=True)
        return log2_of(logits, tokens), state


def rechunked(blocks: Iterable[Codes], size: int) -> Iterator[Codes]:
    """Cut blocks of any size anew into arrays of `size`, the last shorter: chunks must not depend on how a file is
    read.
    """
    held: list[Codes] = []
    n = 0
    for block in blocks:
        while len(block):
            piece, block = block[: size - n], block[size - n :]
            held.append(piece)
            n += len(piece)
            if n == size:
                yield np.concatenate(held)
                held, n = [], 0
    if n:
        yield np.concatenate(held)
