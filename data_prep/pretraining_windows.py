"""Windows of a corpus for a language model: tiles or random places, a function of (seed, length, number) alone.

A stretch is what lies between two long runs of N of a training interval. Tiling goes through all stretches again and
again: each is cut into windows that do not overlap, from a start that is drawn anew every time, in an order that is
too. What is shorter than a window is filled up with N at its end, which no loss counts; below `fill` of a window it is
left out.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.corpus import Corpus
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.length_warmup import LengthWarmup
from mamba_seq.data_prep.packed_genomes import LOWER
from mamba_seq.data_prep.splits import Interval

Windows = Literal["tiles", "random"]


class Stretch(NamedTuple):
    """Bases `start` to `end` of a record of the corpus, and what they weigh."""

    record: int
    start: int
    end: int
    weight: float = 1.0


def stretches(
    corpus: Corpus, intervals: Sequence[Interval], gap: int, weights: Sequence[float] | None = None
) -> list[Stretch]:
    """Cut intervals at runs of `gap` N or more; `weights` are those of the corpus's paths, all 1 by default."""
    numbers = {(record.file, record.name): i for i, record in enumerate(corpus.records)}
    found = []
    for interval in intervals:
        record = numbers[interval.file, interval.record]
        weight = 1.0 if weights is None else weights[corpus.sources[record]]
        at = interval.start
        for start, end in [*corpus.unknown_runs(record, gap).tolist(), (interval.end, interval.end)]:
            upto = min(start, interval.end)
            if upto > at:
                found.append(Stretch(record, at, upto, weight))
            at = max(at, end)
    return found


class PretrainingWindows:
    """Windows of one corpus; item (number, length) is (length,) uint8, cased token ids (see `packed_genomes.LOWER`).

    Args:
        corpus: the corpus.
        those: stretches to take windows of.
        how: "tiles" or "random": places drawn by weight and length of their stretch.
        fill: a stretch shorter than a window is taken where it fills so much of one.
        reverse_complement: read half of the windows on the other strand.
        seed: of all draws.
    """

    def __init__(
        self,
        corpus: Corpus,
        those: Sequence[Stretch],
        how: Windows = "tiles",
        fill: float = 0.5,
        reverse_complement: bool = True,
        seed: int = 0,
    ) -> None:
        self.corpus = corpus
        self.how = how
        self.fill = fill
        self.reverse_complement = reverse_complement
        self.seed = seed
        self._records = np.array([s.record for s in those], dtype=np.int64)
        self._starts = np.array([s.start for s in those], dtype=np.int64)
        self._lengths = np.array([s.end - s.start for s in those], dtype=np.int64)
        self._weights = np.array([s.weight for s in those], dtype=np.float64)
        self._round = functools.lru_cache(maxsize=2)(self._make_round)

    def window(self, number: int, length: int) -> Codes:
        """Cased token ids (length,) uint8 of window `number`."""
        rng = np.random.default_rng((self.seed, length, number))
        if self.how == "tiles":
            turn, place = divmod(number, self.of_round(length))
            records, starts, ends = self._round(turn, length)
            record, start, end = int(records[place]), int(starts[place]), int(ends[place])
        else:
            record, start, end = self._random(rng, length)
        codes = self.corpus.fetch(record, start, end, cased=True)
        if self.reverse_complement and rng.random() < 0.5:
            codes = (DNA.complement_codes[codes % LOWER] + codes // LOWER * LOWER)[::-1]
        return np.pad(codes, (0, length - len(codes)), constant_values=DNA.unknown_code)

    @functools.cache  # noqa: B019 - of a few lengths, and as long-lived as a run
    def of_round(self, length: int) -> int:
        """Number of tiles of a length in one round through all stretches, the same in every round."""
        return sum(whole * len(tiles) + more for tiles, whole, more in self._groups(length))

    def check(self, length: int) -> None:
        """Raise TooFewData unless there is a window of this length."""
        if not np.any(self._lengths >= self.fill * length):
            longest = int(self._lengths.max(initial=0))
            raise TooFewData(
                f"no stretch of the training bases fills {self.fill:.0%} of a window of {length:,}, the longest "
                f"without a long run of N has {longest:,}; take shorter windows, or raise data.gap to let N into them"
            )

    @functools.cache  # noqa: B019 - as above
    def _groups(self, length: int) -> list[tuple[NDArray[np.int64], int, int]]:
        """Return, for the stretches of each weight, the stretch of each of their tiles, how often a round goes through
        all of these, and how many of them it takes besides, drawn anew in every round.
        """
        groups = []
        for weight in np.unique(self._weights):
            which = np.flatnonzero((self._weights == weight) & (self._lengths >= self.fill * length))
            tiles = np.repeat(which, np.maximum(1, self._lengths[which] // length))
            groups.append((tiles, int(weight), round((weight - int(weight)) * len(tiles))))
        return groups

    def _make_round(self, turn: int, length: int) -> tuple[NDArray[np.int64], ...]:
        """Return records, starts and ends of the tiles of one round, in its order."""
        rng = np.random.default_rng((self.seed, length, turn, 1))
        parts = [np.empty((3, 0), dtype=np.int64)]
        for tiles, whole, more in self._groups(length):
            parts += [self._tiles(tiles, length, rng) for _ in range(whole)]
            if more:
                parts.append(self._tiles(tiles, length, rng)[:, rng.permutation(len(tiles))[:more]])
        found = np.concatenate(parts, axis=1)
        return tuple(found[:, rng.permutation(found.shape[1])])

    def _tiles(self, which: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return records, starts and ends (3, tiles) of the tiles of stretches; `which` names that of each, in
        order.
        """
        stretch, first, index, tiles = np.unique(which, return_index=True, return_inverse=True, return_counts=True)
        # what is left over is shared by chance between both ends
        spare = np.maximum(0, self._lengths[stretch] - tiles * length)
        shift = rng.integers(0, spare + 1)
        starts = (self._starts[stretch] + shift - first * length)[index] + np.arange(len(which)) * length
        ends = np.minimum(starts + length, (self._starts + self._lengths)[which])
        return np.stack([self._records[which], starts, ends])

    def _random(self, rng: np.random.Generator, length: int) -> tuple[int, int, int]:
        cumulative = self._cumulative(length)
        i = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        spare = max(0, int(self._lengths[i]) - length)
        start = int(self._starts[i] + rng.integers(spare + 1))
        return int(self._records[i]), start, min(start + length, int(self._starts[i] + self._lengths[i]))

    @functools.cache  # noqa: B019 - as above
    def _cumulative(self, length: int) -> NDArray[np.float64]:
        enough = self._lengths >= self.fill * length
        return np.cumsum(np.where(enough, self._weights * self._lengths, 0.0))


class PretrainingBatches(IterableDataset[Tensor]):
    """Batches without end from `start_step` on: cased token ids (B, L) uint8, B = batch_tokens // L.

    Args:
        windows: where they come from.
        length: L, after the warm-up.
        batch_tokens: bases of a step, the same at every length.
        warmup: shorter windows of the first steps.
        start_step: the first step.
        rank: number of this process, which gets windows of its own.
        world_size: number of processes.
    """

    def __init__(
        self,
        windows: PretrainingWindows,
        length: int,
        batch_tokens: int,
        warmup: LengthWarmup,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 1 <= length <= batch_tokens:
            raise ValueError(f"length is {length}, expected 1 to batch_tokens = {batch_tokens}")
        for each in (*warmup.lengths, length):
            windows.check(each)
        self.windows = windows
        self.length = length
        self.batch_tokens = batch_tokens
        self.start_step = start_step
        self._warmup = warmup
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for i in itertools.count(self.start_step + first, step):
            yield self.batch(i)

    def length_of(self, step: int) -> int:
        """The length of a step's windows."""
        longest = self._warmup.longest(step)
        return self.length if longest is None else min(self.length, longest)

    def batch(self, step: int) -> Tensor:
        """The batch of a step, (B, L) uint8."""
        length = self.length_of(step)
        n = self.batch_tokens // length
        # tiles are numbered anew in every stage: no window of a length is left out
        done = step - self._warmup.first_step(self._warmup.stage(step))
        first = (done * self._world_size + self._rank) * n
        return torch.from_numpy(np.stack([self.windows.window(first + i, length) for i in range(n)]))
