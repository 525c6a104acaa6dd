"""Packed sequences cut into pieces: every step once, in order, each piece inside one sequence."""

import itertools

import pytest
import torch

from mamba_seq.kernels._packing import Packing


@pytest.mark.parametrize("longest", [1, 4, 32, 2049])
@pytest.mark.parametrize(
    "bounds", [[0, 1], [0, 1, 2, 3], [0, 17, 34, 51], [0, 1, 34, 35, 39], [0, 2049], [*range(0, 1000), 2049]]
)
def test_pieces_cover_every_step_once(bounds: list[int], longest: int) -> None:
    packing = Packing.cut(torch.tensor(bounds, dtype=torch.int32), bounds[-1], longest)
    pieces, firsts = packing.pieces.tolist(), packing.firsts.tolist()
    assert packing.sequences == len(bounds) - 1
    assert firsts[0] == 0
    for s, (start, end) in enumerate(itertools.pairwise(bounds)):
        cuts = [*range(start, end, longest), end]
        assert pieces[firsts[s] : firsts[s + 1]] == [[s, a, b] for a, b in itertools.pairwise(cuts)]
    assert all(start == end == bounds[-1] for _, start, end in pieces[firsts[-1] :])
    assert {s for s, _, _ in pieces} == set(range(packing.sequences))
