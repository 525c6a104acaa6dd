"""The shared backbone: a stack of Mamba blocks, each with a normalisation in front and a residual around it.

It takes vectors and gives vectors, (B, L, d_model) to (B, L, d_model); what the positions mean is its caller's
business.
Whole sequence, chunk after chunk (`state`, `return_state`) and `step` agree to rounding.
"""

import math
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mamba_seq.block import Mamba, MambaState
from mamba_seq.cache_chunks import chunk_length
from mamba_seq.config import MambaConfig
from mamba_seq.fused_step import fused_step
from mamba_seq.inner import Keep
from mamba_seq.normed import normed
from mamba_seq.padding import at_least_float32, check_layout
from mamba_seq.s4 import S4Layer

BackboneState = list[MambaState]
"""One state a block, first block first."""

Recompute = Literal["auto", "nothing", "inner", "segments"]
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)

SEGMENT_ELEMENTS = 1 << 26
"""Positions times channels D of a segment: 128 MiB a tensor in 16 bits, and enough to fill a GPU."""
SHORTEST_SEGMENT = 2048
"""Segments are multiples of this, and no shorter."""


class Backbone(nn.Module):
    """`n_layer` residual Mamba blocks and a final normalisation (arXiv 2312.00752, section 3.4).

    Attributes:
        gradient_checkpointing: keep only the residual stream of every k-th block for the backward pass, and compute the
            blocks again from it there: the same gradients for less memory and one more forward pass. True is every
            block, an integer every k-th, False (as it starts) none. Not part of a saved model.
        recompute: what the backward pass computes again instead of keeping it, all giving the same gradients to
            rounding. "nothing" keeps what autograd does. "inner" keeps of a selective block its input, both
            projections of it and the scan's states, and makes the rest again inside its backward pass, which costs
            little. "segments" keeps of every block its input alone, or with `gradient_checkpointing` that of every
            k-th, and runs it forward and backward segment after segment of the sequence with the state carried, so
            that what one block needs for the moment is of a segment; it costs one more forward pass. "auto" (as it
            starts) is "inner" on CUDA and "nothing" elsewhere. Not part of a saved model.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing: bool | int = False
        self.recompute: Recompute = "auto"
        self.layers = nn.ModuleList(ResidualBlock(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        with torch.no_grad():
            # each block adds to the residual stream: keep its variance at initialisation (GPT-2, section 2.3)
            for block in self.blocks:
                block.mixer.out_proj.weight /= math.sqrt(config.n_layer)

    @property
    def blocks(self) -> list["ResidualBlock"]:
        """The blocks, first to last."""
        return cast("list[ResidualBlock]", list(self.layers))

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        state: BackboneState | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, BackboneState]:
        """Run the stack over a sequence, or over a chunk that continues `state`.

        Args:
            hidden: (B, L, d_model).
            mask: bool (B, L), true at real positions; padding left or right of a sequence changes nothing.
            state: what the blocks remember of the sequence so far; None starts it.
            return_state: also return their state after the last real position.
            cu_seqlens: boundaries (S+1,) int32 of S sequences laid end to end along L with B = 1, strictly increasing
                from 0 to L; nothing passes from one sequence to the next, and states are (S, ...). Not with a mask.

        Returns:
            (B, L, d_model) in the weights' type, and the state if asked for.

        Raises:
            ValueError: for a mask of another shape or type, a mask and boundaries, boundaries that are none, or a state
                of another number of blocks.
        """
        check_layout(hidden, mask, cu_seqlens)
        self._check_state(state)
        chunk = chunk_length(hidden, self.config)
        if cu_seqlens is None and chunk < hidden.shape[1] and not self.training:  # dropout would draw other numbers
            return self._in_chunks(chunk, hidden, mask, state, return_state)
        residual = self.stream_input(hidden)
        if self._recompute() == "segments":
            length = residual.shape[1] if cu_seqlens is not None else segment_length(residual, self.config)
            return self._in_segments(length, residual, mask, state, return_state, cu_seqlens)
        size = self._group_size()
        new_state: BackboneState = []
        for first in range(0, len(self.layers), size):
            blocks = slice(first, first + size)
            before = None if state is None else state[blocks]
            arguments = (blocks, residual, mask, before, return_state, cu_seqlens)
            if self._checkpoints():
                residual, after = checkpoint(self._run, *arguments, use_reentrant=False)
            else:
                residual, after = self._run(*arguments)
            new_state += after
        out = normed(residual, self.norm)
        return (out, new_state) if return_state else out

    def _in_segments(
        self,
        length: int,
        residual: Tensor,
        mask: Tensor | None,
        state: BackboneState | None,
        return_state: bool,
        cu_seqlens: Tensor | None,
    ) -> Tensor | tuple[Tensor, BackboneState]:
        """Do what `forward` does, `length` positions at a time, keeping the residual stream in front of the blocks.

        The stream stays in pieces from the first block to the last: bringing them together would copy it at every one.
        """
        pieces = list(residual.split(length, dim=1))
        masks = [None] * len(pieces) if mask is None else list(mask.split(length, dim=1))
        size = max(1, int(self.gradient_checkpointing))
        carries = return_state or len(pieces) > 1
        draws = self.training and self.config.dropout > 0
        new_state: BackboneState = []
        for first in range(0, len(self.layers), size):
            blocks = slice(first, first + size)
            carried = None if state is None else state[blocks]
            for i, real in enumerate(masks):
                pieces[i], after = checkpoint(
                    self._run,
                    blocks,
                    pieces[i],
                    real,
                    carried,
                    carries,
                    cu_seqlens,
                    use_reentrant=False,
                    preserve_rng_state=draws,
                )
                carried = after if carries else None
            new_state += after
        outs = [checkpoint(normed, piece, self.norm, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
        return (out, new_state) if return_state else out

    def _in_chunks(
        self, chunk: int, hidden: Tensor, mask: Tensor | None, state: BackboneState | None, return_state: bool
    ) -> Tensor | tuple[Tensor, BackboneState]:
        """Do what `forward` does, `chunk` positions at a time through all blocks."""
        outputs = []
        for start in range(0, hidden.shape[1], chunk):
            here = slice(start, start + chunk)
            real = None if mask is None else mask[:, here]
            out, state = self.forward(hidden[:, here], real, state, return_state=True)
            outputs.append(out)
        whole = torch.cat(outputs, dim=1)
        return (whole, cast("BackboneState", state)) if return_state else whole

    @torch.no_grad()
    def step(self, hidden: Tensor, state: BackboneState) -> Tensor:
        """Advance every block one position, changing `state` in place; (B, d_model) to (B, d_model), no gradient."""
        self._check_state(state)
        residual = self.stream_input(hidden)
        fused = fused_step(self, residual, state)
        if fused is not None:
            return fused
        for block, block_state in zip(self.blocks, state, strict=True):
            residual = block.step(residual, block_state)
        out: Tensor = self.norm(residual.to(self.norm.weight.dtype))
        return out

    def allocate_state(self, batch: int) -> BackboneState:
        """Return the state of `batch` sequences, padded or packed, before their first position."""
        return [block.mixer.allocate_state(batch) for block in self.blocks]

    def _run(
        self,
        blocks: slice,
        residual: Tensor,
        mask: Tensor | None,
        state: BackboneState | None,
        return_state: bool,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, BackboneState]:
        """Run some of the blocks; return the residual stream (B, L, d_model), and their states if asked for."""
        new_state: BackboneState = []
        keep = self._keep()
        for i, layer in enumerate(self.blocks[blocks]):
            residual = layer(residual, mask, None if state is None else state[i], return_state, cu_seqlens, keep)
            if return_state:
                residual, layer_state = residual
                new_state.append(layer_state)
        return residual, new_state

    def _checkpoints(self) -> bool:
        return bool(self.gradient_checkpointing) and torch.is_grad_enabled()

    def _recompute(self) -> Recompute:
        """Return what the backward pass computes again, "nothing" where there is none, after a check."""
        if self.gradient_checkpointing < 0:
            raise ValueError(
                f"gradient_checkpointing is {self.gradient_checkpointing}, expected True, False or a number of blocks"
            )
        if self.recompute not in RECOMPUTE:
            raise ValueError(f"recompute is {self.recompute!r}, expected one of {', '.join(map(repr, RECOMPUTE))}")
        return self.recompute if torch.is_grad_enabled() else "nothing"

    def _keep(self) -> Keep:
        """Return what a block keeps: where all of it runs again before its backward pass, nothing is made twice."""
        if self.recompute == "nothing":
            return "autograd"
        if self.recompute == "auto" and self.norm.weight.device.type != "cuda":
            return "autograd"
        return "everything" if self.recompute == "segments" or self._checkpoints() else "little"

    def _group_size(self) -> int:
        """Return how many blocks run at once: those between two checkpoints, or all."""
        return int(self.gradient_checkpointing) if self._checkpoints() else len(self.layers)

    def stream_input(self, hidden: Tensor) -> Tensor:
        """Return the input of the stack in the type of its residual stream."""
        if self.config.residual_in_fp32:
            return at_least_float32(hidden)
        device = hidden.device.type
        computing = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.norm.weight.dtype
        return hidden.to(computing)

    def _check_state(self, state: BackboneState | None) -> None:
        if state is not None and len(state) != len(self.layers):
            raise ValueError(
                f"state is of {len(state)} blocks, expected {len(self.layers)}: take it from allocate_state or from a "
                "call with return_state of the same model"
            )


class ResidualBlock(nn.Module):
    """residual + dropout(mixer(norm(residual))), the mixer being a Mamba block, or another layer of its form."""

    def __init__(self, config: MambaConfig, mixer: Mamba | S4Layer | None = None) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.mixer = Mamba(config) if mixer is None else mixer
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        residual: Tensor,
        mask: Tensor | None,
        state: MambaState | None,
        return_state: bool,
        cu_seqlens: Tensor | None = None,
        keep: Keep = "auto",
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Take and return the residual stream (B, L, d_model), and the block's state if asked for."""
        out: Any
        if isinstance(self.mixer, Mamba):
            residual, out = self.mixer.forward_normed(residual, self.norm, mask, state, return_state, cu_seqlens, keep)
        else:
            out = self.mixer(normed(residual, self.norm), mask, state, return_state, cu_seqlens)
        if return_state:
            return residual + self.dropout(out[0]), out[1]
        return residual + self.dropout(out)

    def step(self, residual: Tensor, state: MambaState) -> Tensor:
        """Advance one position of the residual stream (B, d_model), changing `state` in place."""
        return residual + self.mixer.step(self.norm(residual.to(self.norm.weight.dtype)), state)


def segment_length(residual: Tensor, config: MambaConfig) -> int:
    """Return how many positions of (B, L, d_model) go through a block at a time; L or more for all at once."""
    positions = SEGMENT_ELEMENTS // max(1, residual.shape[0] * config.d_inner)
    return max(SHORTEST_SEGMENT, positions // SHORTEST_SEGMENT * SHORTEST_SEGMENT)


def make_norm(config: MambaConfig) -> nn.RMSNorm | nn.LayerNorm:
    """Build the normalisation that the config names."""
    norm = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return norm(config.d_model, eps=config.norm_eps)
