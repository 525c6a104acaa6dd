"""From the positions of a sequence to one vector: the mean, the last or the maximum, gathered chunk after chunk.

Shapes: B batch, L length, S packed sequences; R rows are B, or S when packed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mamba_seq.padding import at_least_float32, end_position, lengths_of


class Pooled(NamedTuple):
    """What is known of the sequences so far."""

    vector: Tensor
    """Sum, last or maximum of the outputs so far (R, d_model), float32 (float64 for a model in double precision)."""
    length: Tensor
    """Number of real positions so far (R,), int64."""


def nothing(rows: int, d_model: int, how: str, like: Tensor) -> Pooled:
    """Return what is known before the first position; on the device of `like`, and at least as precise."""
    fill = float("-inf") if how == "max" else 0.0
    vector = at_least_float32(like.new_full((rows, d_model), fill))
    return Pooled(vector, torch.zeros(rows, dtype=torch.long, device=like.device))


def gather(
    out: Tensor, how: str, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, before: Pooled | None = None
) -> Pooled:
    """Add the outputs of a chunk to what is known.

    Args:
        out: (B, L, d_model).
        how: "mean", "last" or "max".
        mask: bool (B, L), true at real positions.
        cu_seqlens: boundaries (S+1,) of sequences packed with B = 1.
        before: from earlier chunks; None when this is the first.
    """
    out = at_least_float32(out)
    if cu_seqlens is not None:
        return _gather_packed(out[0], how, cu_seqlens, before)
    batch, length, d_model = out.shape
    before = nothing(batch, d_model, how, out) if before is None else before
    here = torch.full((batch,), length, device=out.device) if mask is None else mask.sum(dim=1)
    if length == 0:
        return Pooled(before.vector, before.length + here)
    if how == "mean":
        kept = out if mask is None else out.masked_fill(~mask[..., None], 0)
        vector = before.vector + kept.sum(dim=1)
    elif how == "max":
        kept = out if mask is None else out.masked_fill(~mask[..., None], float("-inf"))
        vector = torch.maximum(before.vector, kept.amax(dim=1))
    elif mask is None:
        vector = out[:, -1]
    else:
        last = (end_position(mask) - 1).clamp(min=0)
        found = out.gather(1, last[:, None, None].expand(-1, 1, d_model))[:, 0]
        vector = torch.where(here[:, None] > 0, found, before.vector)
    return Pooled(vector, before.length + here)


def finish(pooled: Pooled, how: str) -> Tensor:
    """Return the vector of each sequence (R, d_model); zeros for one without a position."""
    if how == "mean":
        return pooled.vector / pooled.length.clamp(min=1)[:, None]
    if how == "max":
        return pooled.vector.masked_fill(pooled.length[:, None] == 0, 0)  # of nothing; -inf would become NaN
    return pooled.vector


def _gather_packed(out: Tensor, how: str, cu_seqlens: Tensor, before: Pooled | None) -> Pooled:
    """Add to what is known the outputs (L, d_model) of packed sequences, none of which is empty."""
    here = cu_seqlens.diff().long()
    if how == "last":
        vector = out.index_select(0, cu_seqlens[1:] - 1)
    else:
        # a reduction a sequence, in the order that it would have alone; split's gradient is one tensor, not S
        pieces = out.split(lengths_of(cu_seqlens))
        vector = torch.stack([piece.sum(dim=0) if how == "mean" else piece.amax(dim=0) for piece in pieces])
    if before is None:
        return Pooled(vector, here)
    if how == "mean":
        vector = before.vector + vector
    elif how == "max":
        vector = torch.maximum(before.vector, vector)
    return Pooled(vector, before.length + here)
