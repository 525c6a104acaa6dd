"""Windows of genomes as batches: an endless seeded stream for training, and fixed lists for evaluation.

Every training window is a function of (seed, its number) and every batch of (seed, its step) alone. So a run may stop
and go on at any step, and neither the number of workers nor that of processes changes what a step sees.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.augmentation import Augmentation
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.genomes import Genomes
from mamba_seq.data_prep.length_warmup import LengthWarmup
from mamba_seq.data_prep.splits import Interval

TRIES = 100  # draws of a window before giving up on finding one with few enough N

Draw = Literal["length", "uniform"]


class Place(NamedTuple):
    """Where a window lies: number of the record in `Genomes.records`, its first base, its length."""

    record: int
    start: int
    length: int


class _Choices(NamedTuple):
    """The intervals of one class that hold a window of some length, each at `starts` places."""

    records: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    cumulative: np.ndarray


class Places:
    """Draws places of windows: a class uniformly, then an interval, then a start uniformly.

    Args:
        genomes: The genomes.
        intervals: The stretches that windows must lie in, of one split.
        draw: "length": every place of a class is as likely as any other; "uniform": every record is.
        max_n_fraction: Windows with more N than this are drawn again.

    Raises:
        TooFewData: A class has no interval at all.
    """

    def __init__(
        self, genomes: Genomes, intervals: Sequence[Interval], draw: Draw = "length", max_n_fraction: float = 0.2
    ) -> None:
        self.genomes = genomes
        self._draw = draw
        self._max_n_fraction = max_n_fraction
        numbers = {(record.file, record.name): i for i, record in enumerate(genomes.records)}
        self._intervals: dict[str, list[tuple[int, Interval]]] = {label: [] for label in genomes.labels}
        for interval in intervals:
            self._intervals[interval.label].append((numbers[interval.file, interval.record], interval))
        self._choices: dict[tuple[int, int], _Choices] = {}

    def sample(self, rng: np.random.Generator, length: int, label: int | None = None) -> tuple[Place, Codes, int]:
        """A place, its token ids (length,) uint8 and the number of its class.

        Raises:
            TooFewData: The class, any if none is given, has no interval of this length, or too many of its windows are
                mostly N.
        """
        labels = self.genomes.labels
        for each in range(len(labels)) if label is None else (label,):
            if (length, each) not in self._choices:
                self._choices[length, each] = self._of_class(labels[each], length)
        label = int(rng.integers(len(labels))) if label is None else label
        records, first, starts, cumulative = self._choices[length, label]
        for _ in range(TRIES):
            i = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
            i = min(i, len(records) - 1)
            place = Place(int(records[i]), int(first[i] + rng.integers(starts[i])), length)
            codes = self.genomes.fetch(place.record, place.start, place.start + length)
            if np.count_nonzero(codes == DNA.unknown_code) <= self._max_n_fraction * length:
                return place, codes, label
        record = self.genomes.records[place.record]
        raise TooFewData(
            f"{TRIES} windows of {length} bases of class {record.label!r} in a row had more than "
            f"{self._max_n_fraction:.0%} N, the last in record {record.name!r} of {record.file}; remove records that "
            "are mostly N, take shorter windows, or allow more N"
        )

    def disjoint(self, length: int) -> dict[str, int]:
        """How many windows of this length fit side by side into the intervals of each class."""
        return {
            label: sum(interval.length // length for _, interval in those) for label, those in self._intervals.items()
        }

    def _of_class(self, label: str, length: int) -> _Choices:
        those = [(record, interval) for record, interval in self._intervals[label] if interval.length >= length]
        if not those:
            longest = max((interval.length for _, interval in self._intervals[label]), default=0)
            raise TooFewData(
                f"class {label!r} has no stretch of {length} bases in this split, its longest has {longest}; "
                "take shorter windows, hold out larger fractions, or add genomes"
            )
        records = np.array([record for record, _ in those])
        starts = np.array([interval.length - length + 1 for _, interval in those])
        weights = starts.astype(np.float64)
        if self._draw == "uniform":
            of_record: dict[int, float] = defaultdict(float)
            for record, weight in zip(records.tolist(), weights.tolist(), strict=True):
                of_record[record] += weight
            weights /= np.array([of_record[record] for record in records.tolist()])
        first = np.array([interval.start for _, interval in those])
        return _Choices(records, first, starts, np.cumsum(weights))


class GenomeWindows(Dataset[tuple[Codes, int]]):
    """Training windows by number: item (number, length) depends on the seed and those two alone."""

    def __init__(self, places: Places, augmentation: Augmentation, seed: int = 0) -> None:
        self.places = places
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Codes, int]:
        """Token ids (length,) uint8 and class of window `number`."""
        number, length = key
        rng = np.random.default_rng((self.seed, number, length))
        _, codes, label = self.places.sample(rng, length)
        return self.augmentation(codes, rng), label


class TrainingBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches without end, from `start_step` on: tokens (B, L) uint8 and labels (B,) int64.

    The windows of a batch have one length L, drawn for every step; B = batch_tokens // L. Load it with
    `DataLoader(batches, batch_size=None)`: with any number of workers the steps come in order.

    Args:
        windows: Where the windows come from.
        lengths: The lengths to draw from.
        batch_tokens: Bases in a batch.
        length_weights: How often each length is drawn, by default all equally often.
        start_step: The first step.
        rank: Number of this process, which gets windows of its own.
        world_size: Number of processes.
        warmup: Longest windows of the first steps; a batch of shorter windows has more of them.
    """

    def __init__(
        self,
        windows: GenomeWindows,
        lengths: Sequence[int],
        batch_tokens: int,
        length_weights: Sequence[float] | None = None,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        warmup: LengthWarmup | None = None,
    ) -> None:
        weights = np.array([1.0] * len(lengths) if length_weights is None else length_weights, dtype=np.float64)
        if not lengths or min(lengths) < 1 or max(lengths) > batch_tokens:
            raise ValueError(
                f"lengths {list(lengths)} came; 1 to batch_tokens = {batch_tokens} each, at least one, expected"
            )
        if len(weights) != len(lengths) or weights.min() < 0 or weights.sum() <= 0:
            raise ValueError(
                f"length_weights {length_weights} came; one number of 0 or more a length, not all 0, expected"
            )
        self.windows = windows
        self.lengths = list(lengths)
        self.batch_tokens = batch_tokens
        self.start_step = start_step
        self._probabilities = weights / weights.sum()
        self._rank = rank
        self._world_size = world_size
        self._warmup = warmup if warmup is not None else LengthWarmup([], [])
        self._shortest = min([*self.lengths, *self._warmup.lengths])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for i in itertools.count(self.start_step + first, step):
            yield self.batch(i)

    def length_of(self, step: int) -> int:
        """The length of a step's windows, the same in all processes."""
        rng = np.random.default_rng((self.windows.seed, step))
        drawn = self.lengths[int(rng.choice(len(self.lengths), p=self._probabilities))]
        longest = self._warmup.longest(step)
        return drawn if longest is None else min(drawn, longest)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: tokens (B, L) uint8, labels (B,) int64."""
        length = self.length_of(step)
        n = self.batch_tokens // length
        first = (step * self._world_size + self._rank) * (self.batch_tokens // self._shortest)
        return collate([self.windows[number, length] for number in range(first, first + n)])


class EvaluationWindows(Dataset[tuple[Codes, int]]):
    """A fixed list of windows, `per_class` of every class, class after class.

    Attributes:
        places: Where each window lies.
        labels: The class number of each window.
        disjoint: How many windows of this length fit side by side into the split, a class: the windows are drawn at
            random and overlap, so not more than these are independent.
        left_out: Classes without a window, and why.
    """

    def __init__(
        self, places: Places, length: int, per_class: int, seed: int = 0, *, may_leave_out: bool = False
    ) -> None:
        self.length = length
        self.places: list[Place] = []
        self.labels: list[int] = []
        self.disjoint = places.disjoint(length)
        self.left_out: dict[str, str] = {}
        self._genomes = places.genomes
        for label, name in enumerate(places.genomes.labels):
            rng = np.random.default_rng((seed, length, label))
            try:
                chosen = [places.sample(rng, length, label)[0] for _ in range(per_class)]
            except TooFewData as error:
                if not may_leave_out or len(self.left_out) == len(places.genomes.labels) - 1:
                    raise
                self.left_out[name], self.disjoint[name], chosen = str(error), 0, []
            self.places += chosen
            self.labels += [label] * len(chosen)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Codes, int]:
        """Token ids (length,) uint8 and class of a window."""
        place = self.places[index]
        return self._genomes.fetch(place.record, place.start, place.start + place.length), self.labels[index]


def evaluation_windows(
    genomes: Genomes,
    intervals: Sequence[Interval],
    length: int,
    per_class: int,
    seed: int = 0,
    max_n_fraction: float = 0.2,
    *,
    may_leave_out: bool = False,
) -> EvaluationWindows:
    """A fixed seeded list of windows of these intervals, balanced over the classes.

    Args:
        genomes: The genomes.
        intervals: Those of one split, `splits.of("test")`.
        length: Bases of a window.
        per_class: Windows of every class; places of a class are drawn uniformly, with replacement.
        seed: Chooses the places.
        max_n_fraction: Windows with more N than this are not taken.
        may_leave_out: Go without classes that have no such window, as long as one is left.

    Raises:
        TooFewData: A class has no interval of this length, or next to no window with few enough N.
    """
    places = Places(genomes, intervals, "length", max_n_fraction)
    return EvaluationWindows(places, length, per_class, seed, may_leave_out=may_leave_out)


def collate(items: Sequence[tuple[Codes, int]]) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) uint8 and labels (B,) int64 of windows of one length."""
    tokens = torch.from_numpy(np.stack([codes for codes, _ in items]))
    return tokens, torch.tensor([label for _, label in items], dtype=torch.int64)
