"""Synthetic tasks: what stands where, seeds and splits, pieces that are those of the whole."""

from collections import Counter

import numpy as np
import pytest
import torch

from mamba_seq.data_prep.synthetic import InductionHeads, SelectiveCopying, Task, make_task
from mamba_seq.data_prep.synthetic_random import below

TASKS: list[Task] = [InductionHeads(16, seed=3), SelectiveCopying(16, 5, seed=3)]
FIRST = torch.arange(200)


def whole(task: Task, length: int, split: str = "train", numbers: torch.Tensor = FIRST) -> torch.Tensor:
    samples = task.samples(split, numbers, length)  # type: ignore[arg-type]
    return task.tokens(samples, split, 0, task.positions(length))  # type: ignore[arg-type]


def splitmix(x: int) -> int:
    """SplitMix64 in Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_numbers_are_those_of_splitmix() -> None:
    for seed, place in ((0, 0), (7, 2**40), (2**62, 5)):
        first = splitmix(seed * 0x9E3779B97F4A7C15 % 2**64)
        second = splitmix((first + place * 0x9E3779B97F4A7C15) % 2**64)
        assert int(below(2**63 - 1, seed, torch.tensor([place]))) == second % 2**63 % (2**63 - 1)


def test_numbers_are_uniform_and_independent() -> None:
    drawn = below(15, 0, torch.arange(1000)[:, None], torch.arange(300)).numpy()
    counts = np.bincount(drawn.ravel(), minlength=15)
    assert abs(counts / drawn.size - 1 / 15).max() < 5 * (1 / 15 / drawn.size) ** 0.5
    scaled = drawn - drawn.mean()
    for a, b in ((scaled[:, 1:], scaled[:, :-1]), (scaled[1:], scaled[:-1])):
        assert abs((a * b).mean() / scaled.var()) < 0.01


@pytest.mark.parametrize("length", [3, 4, 63, 1000])
def test_the_answer_follows_the_first_special_token(length: int) -> None:
    task = InductionHeads(16, seed=1)
    answers = task.samples("train", FIRST, length).answers
    places = set()
    for row, answer in zip(whole(task, length).tolist(), answers[:, 0].tolist(), strict=True):
        assert len(row) == length
        assert row.count(15) == 2
        assert row[-1] == 15
        assert row[row.index(15) + 1] == answer != 15
        assert min(row) >= 0
        places.add(row.index(15))
    assert min(places) == 0 or length > 63
    assert places <= set(range(length - 2))
    if length <= 4:
        assert places == set(range(length - 2))


@pytest.mark.parametrize("length", [5, 6, 63, 1000])
def test_tokens_to_copy_stand_in_order_among_noise(length: int) -> None:
    task = SelectiveCopying(16, 5, seed=1)
    answers = task.samples("train", FIRST, length).answers
    for row, expected in zip(whole(task, length).tolist(), answers.tolist(), strict=True):
        assert len(row) == length + 5
        assert row[length:] == [15] * 5
        assert [token for token in row[:length] if token] == expected
        assert all(1 <= token <= 14 for token in expected)


def test_every_set_of_places_is_equally_likely() -> None:
    task = SelectiveCopying(4, 2, seed=0)
    positions = task.samples("train", torch.arange(30000), 5).positions
    counts = Counter(map(tuple, positions.tolist()))
    assert len(counts) == 10
    assert max(abs(count / 30000 - 0.1) for count in counts.values()) < 0.01


@pytest.mark.parametrize("task", TASKS)
def test_pieces_are_those_of_the_whole(task: Task) -> None:
    expected = whole(task, 1000, "test")
    samples = task.samples("test", FIRST, 1000)
    for piece in (1, 63, 999, 5000):
        if piece == 1:
            starts = range(990, task.positions(1000))
        else:
            starts = range(0, task.positions(1000), piece)
        for start in starts:
            end = min(task.positions(1000), start + piece)
            assert torch.equal(task.tokens(samples, "test", start, end), expected[:, start:end])


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_depends_on_its_number_split_seed_and_length_alone(task: Task) -> None:
    expected = whole(task, 63)
    assert torch.equal(whole(task, 63, numbers=torch.tensor([150, 7])), expected[[150, 7]])
    other = make_task(
        "induction-heads" if task.memorise == 1 else "selective-copying", task.vocab_size, task.memorise, seed=4
    )
    for different in (whole(other, 63), whole(task, 63, "validation"), whole(task, 63, "test")):
        assert not (different == expected).all(dim=1).any()
    assert len({tuple(row) for row in expected.tolist()}) == len(FIRST)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="vocab_size is 2, expected at least 3"):
        InductionHeads(2)
    with pytest.raises(ValueError, match="vocab_size is 3, expected at least 4"):
        SelectiveCopying(3)
    with pytest.raises(ValueError, match="memorise is 0, expected at least 1"):
        SelectiveCopying(16, 0)
    with pytest.raises(ValueError, match="memorise is 2, expected 1 for induction-heads"):
        make_task("induction-heads", 16, 2, 0)
    with pytest.raises(ValueError, match="length is 2, expected at least 3"):
        InductionHeads().samples("train", FIRST, 2)
