"""Synthetic tasks that need selection: induction heads and selective copying (arXiv 2312.00752, section 4.1).

Both are tokens of a small vocabulary, and answers that a model gives at the last positions. Samples have numbers, and a
sample is a function of the seed, its split, its number and its length: see `synthetic_random`.

    induction-heads    x x x x ! a x x x ... x !         answer at the last position: a
    selective-copying  . . a . . b . c . ... . ? ? ?     answers at the last positions: a b c

Shapes: B samples, L positions, M answers.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from mamba_seq.data_prep.synthetic_random import below

TaskName = Literal["induction-heads", "selective-copying"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_WHERE, _WHAT, _FILLER = range(3)
"""What a number is drawn for."""


@dataclass
class Samples:
    """What is to be remembered of some samples of one length, from which any piece of them is made."""

    numbers: Tensor
    """(B,) int64."""
    length: int
    """Nominal length: of the whole sequence in induction heads, of what stands before the markers in copying."""
    positions: Tensor
    """(B, M) int64, ascending: where the tokens to remember stand."""
    answers: Tensor
    """(B, M) int64: the tokens to remember."""


class Task(Protocol):
    """A synthetic task.

    Attributes:
        vocab_size: tokens in all.
        memorise: answers M of a sample.
    """

    vocab_size: int
    memorise: int

    def shortest(self) -> int:
        """Return the least length that a sample can have."""
        ...

    def positions(self, length: int) -> int:
        """Return the positions L of a sample of a nominal length."""
        ...

    def chance(self) -> float:
        """Return the accuracy of guessing."""
        ...

    def samples(self, split: Split, numbers: Tensor, length: int) -> Samples:
        """Return what is to be remembered of the samples of some numbers (B,), on their device."""
        ...

    def tokens(self, samples: Samples, split: Split, start: int, end: int) -> Tensor:
        """Return the tokens (B, end - start) int64 of positions `start` to before `end`."""
        ...


class InductionHeads:
    """After a token that occurs twice, at a random place and at the very end, say what came after it the first time.

    Of `vocab_size` tokens the last is that special one; the others are filler and answers alike, uniformly.
    """

    memorise = 1

    def __init__(self, vocab_size: int = 16, seed: int = 0) -> None:
        if vocab_size < 3:
            raise ValueError(f"vocab_size is {vocab_size}, expected at least 3: a special token and two others")
        self.vocab_size = vocab_size
        self.seed = seed

    def shortest(self) -> int:
        """Return the least length: the special token, the answer, the special token."""
        return 3

    def positions(self, length: int) -> int:
        """Return the positions of a sample: its length."""
        return length

    def chance(self) -> float:
        """Return the accuracy of guessing."""
        return 1 / (self.vocab_size - 1)

    def samples(self, split: Split, numbers: Tensor, length: int) -> Samples:
        """Draw for samples (B,) where the special token stands first, and the answer right behind it."""
        _check_length(length, self.shortest())
        numbers = numbers[:, None]
        key = _key(self.seed, split)
        first = below(length - 2, key, _WHERE, length, numbers)
        return Samples(numbers[:, 0], length, first + 1, below(self.vocab_size - 1, key, _WHAT, length, numbers))

    def tokens(self, samples: Samples, split: Split, start: int, end: int) -> Tensor:
        """Return the tokens (B, end - start) of a piece of the samples."""
        special = self.vocab_size - 1
        place = torch.arange(start, end, device=samples.numbers.device)
        key = _key(self.seed, split)
        tokens = below(special, key, _FILLER, samples.length, samples.numbers[:, None], place)
        tokens = torch.where(place == samples.positions, samples.answers, tokens)
        return tokens.masked_fill((place == samples.positions - 1) | (place == samples.length - 1), special)


class SelectiveCopying:
    """Say some tokens in their order that stood at random places among noise.

    Of `vocab_size` tokens the first is noise, the last the marker that stands for each answer after the end, and the
    others are the tokens to remember. (The copying task of Arjovsky et al., arXiv 1511.06464, with random spacing.)
    """

    def __init__(self, vocab_size: int = 16, memorise: int = 16, seed: int = 0) -> None:
        if vocab_size < 4:
            raise ValueError(f"vocab_size is {vocab_size}, expected at least 4: noise, a marker and two others")
        if memorise < 1:
            raise ValueError(f"memorise is {memorise}, expected at least 1")
        self.vocab_size = vocab_size
        self.memorise = memorise
        self.seed = seed

    def shortest(self) -> int:
        """Return the least length: the tokens without noise."""
        return self.memorise

    def positions(self, length: int) -> int:
        """Return the positions of a sample: its length, and a marker for each answer."""
        return length + self.memorise

    def chance(self) -> float:
        """Return the accuracy of guessing."""
        return 1 / (self.vocab_size - 2)

    def samples(self, split: Split, numbers: Tensor, length: int) -> Samples:
        """Draw for samples (B,) the tokens to remember and a set of places for them, every set equally likely."""
        _check_length(length, self.shortest())
        numbers, many = numbers[:, None], self.memorise
        key = _key(self.seed, split)
        each = torch.arange(many, device=numbers.device)
        last = length - many + each  # Floyd's sampling: none of it depends on the length
        drawn = below(last + 1, key, _WHERE, length, numbers, each)
        places = torch.empty_like(drawn)
        for i in range(many):
            taken = (places[:, :i] == drawn[:, i : i + 1]).any(dim=1)
            places[:, i] = torch.where(taken, last[i], drawn[:, i])
        answers = 1 + below(self.vocab_size - 2, key, _WHAT, length, numbers, each)
        return Samples(numbers[:, 0], length, places.sort(dim=1).values, answers)

    def tokens(self, samples: Samples, split: Split, start: int, end: int) -> Tensor:
        """Return the tokens (B, end - start) of a piece of the samples."""
        tokens = samples.answers.new_zeros((len(samples.numbers), end - start + 1))
        inside = (samples.positions >= start) & (samples.positions < end)
        # what stands elsewhere goes into a column that is cut off
        tokens.scatter_(1, (samples.positions - start).where(inside, end - start), samples.answers)
        tokens[:, max(0, samples.length - start) : end - start] = self.vocab_size - 1
        return tokens[:, : end - start]


def make_task(name: TaskName, vocab_size: int, memorise: int, seed: int) -> Task:
    """Return the task of a name.

    Raises:
        ValueError: for a vocabulary or a number of answers that the task cannot have.
    """
    if name == "selective-copying":
        return SelectiveCopying(vocab_size, memorise, seed)
    if memorise != 1:
        raise ValueError(f"memorise is {memorise}, expected 1 for induction-heads, which have one answer")
    return InductionHeads(vocab_size, seed)


def _key(seed: int, split: Split) -> int:
    return int(below((1 << 63) - 1, seed, SPLITS.index(split)))


def _check_length(length: int, shortest: int) -> None:
    if length < shortest:
        raise ValueError(f"length is {length}, expected at least {shortest}")
