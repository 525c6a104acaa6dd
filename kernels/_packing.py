"""Sequences packed along one length, cut into pieces that a GPU program each works on.

A piece lies inside one sequence and is counted from its start, so a program never meets a boundary, and a sequence is
computed as it would be alone. How many pieces there are depends on the boundaries, which only the device knows: there
are as many programs as there can be pieces, and the last ones may find theirs empty.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """S packed sequences in at most P pieces."""

    pieces: Tensor
    """(P, 3) int32: sequence, first step, step after the last. Pieces of no steps, if any, come last."""
    firsts: Tensor
    """(S+1,) int32: the first piece of every sequence, and the number of pieces."""

    @classmethod
    def cut(cls, cu_seqlens: Tensor, length: int, longest: int) -> "Packing":
        """Cut sequences into pieces of `longest` steps and one of the rest; all on the device, nothing waits for it."""
        bounds = cu_seqlens.long()
        sequences = len(bounds) - 1
        most = sequences + (length - sequences) // longest
        firsts = torch.nn.functional.pad(((bounds.diff() + (longest - 1)) // longest).cumsum(0), (1, 0))
        piece = torch.arange(most, device=bounds.device)
        sequence = torch.searchsorted(firsts[1:], piece, right=True).clamp_(max=sequences - 1)
        ends = bounds[sequence + 1]
        start = torch.minimum(bounds[sequence] + (piece - firsts[sequence]) * longest, ends)
        end = torch.minimum(start + longest, ends)
        return cls(torch.stack([sequence, start, end], dim=1).int(), firsts.int())

    @property
    def sequences(self) -> int:
        return len(self.firsts) - 1
