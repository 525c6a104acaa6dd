"""The torch side of the CPU kernels: pieces of bounded size, and tensors as addresses and strides."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

_ELEMENTS = 1 << 22
"""Floats that a segment may need of one kind of copy: 16 MB."""

_STEPS = 1024
"""A segment has fewer steps than this only at the end of a sequence, whatever a step needs."""


class Segment(NamedTuple):
    """Items b0 to b1 - 1 of the batch, steps t0 to t1 - 1."""

    b0: int
    b1: int
    t0: int
    t1: int

    @property
    def batch(self) -> int:
        return self.b1 - self.b0

    @property
    def steps(self) -> int:
        return self.t1 - self.t0

    def of(self, x: Tensor) -> Tensor:
        """Return this part of x (B, L, ...), a view."""
        return x[self.b0 : self.b1, self.t0 : self.t1]


def segments(batch: int, length: int, width: int, multiple: int) -> list[Segment]:
    """Cut (batch, length), of which every step needs `width` floats of memory, in order of time for every item.

    All segments but the last of an item have a number of steps that `multiple` divides, and `multiple` divides 1024.
    """
    items = max(1, min(batch, _ELEMENTS // (_STEPS * width)))
    steps = max(_STEPS, _ELEMENTS // (items * width) // multiple * multiple)
    return [
        Segment(b, min(b + items, batch), t, min(t + steps, length))
        for b in range(0, batch, items)
        for t in range(0, length, steps)
    ]


class Piece(NamedTuple):
    """Steps of one sequence inside a segment."""

    item: int
    """Which item of the segment's batch."""
    start: int
    """The first step, counted from the segment's."""
    steps: int
    sequence: int
    """Which sequence of the whole call: an item of the batch, or one of those packed."""
    before: int
    """Steps of the sequence before these."""


def pieces_of(part: Segment) -> list[Piece]:
    """Return the pieces of a segment in a batch that is not packed: one an item."""
    return [Piece(b - part.b0, 0, part.steps, b, part.t0) for b in range(part.b0, part.b1)]


def packed_segments(bounds: list[int], width: int, multiple: int) -> list[tuple[Segment, list[Piece]]]:
    """Cut sequences packed along one length like `segments`, with the sequences in every segment.

    A sequence longer than a segment is cut where `multiple` divides the number of its own steps so far, and a segment
    never holds two pieces of one sequence.
    """
    room = max(_STEPS, _ELEMENTS // width // multiple * multiple)
    cut: list[tuple[Segment, list[Piece]]] = []
    first = 0
    pieces: list[Piece] = []
    for sequence, (start, end) in enumerate(itertools.pairwise(bounds)):
        t = start
        while t < end:
            left = room - (t - first)
            steps = end - t if end - t <= left else left // multiple * multiple
            if steps == 0:
                cut.append((Segment(0, 1, first, t), pieces))
                first, pieces = t, []
                continue
            pieces.append(Piece(0, t - first, steps, sequence, t - start))
            t += steps
    cut.append((Segment(0, 1, first, bounds[-1]), pieces))
    return cut


def is_last_dense(x: Tensor) -> bool:
    """Tell whether kernels can read x as it is: float32 with its last axis dense."""
    return x.dtype == torch.float32 and (x.stride(-1) == 1 or x.shape[-1] == 1)


def last_dense(x: Tensor) -> Tensor:
    """Return x in float32 with its last axis dense; x itself where it is that already."""
    return x if is_last_dense(x) else x.to(torch.float32).contiguous()


def dense(x: Tensor) -> Tensor:
    """Return x in float32 without gaps; x itself where it is that already."""
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()


def walk(x: Tensor | None) -> tuple[int, int, int]:
    """Return address, batch stride and time stride of x (B, L, D); zeros for None."""
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def address(x: Tensor | None) -> int:
    """Return where x lies, 0 for None. The caller keeps x alive."""
    return 0 if x is None else x.data_ptr()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Allocate on the CPU, whatever torch's default device and type are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def zeros(*shape: int) -> Tensor:
    """Allocate float32 zeros on the CPU, whatever torch's default device and type are."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")
