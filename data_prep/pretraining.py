"""The data of a DNA language model in training: from FASTA files to batches, as a Lightning datamodule."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.corpus import Corpus, HeldOut, split_corpus
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.length_warmup import LengthWarmup
from mamba_seq.data_prep.packed_genomes import LOWER
from mamba_seq.data_prep.pretraining_windows import (
    PretrainingBatches,
    PretrainingWindows,
    Stretch,
    Windows,
    stretches,
)
from mamba_seq.data_prep.splits import Split, Splits

VALIDATION_TOKENS = 1 << 18
"""Most bases of a validation batch of several windows: it keeps nothing for a backward pass."""


@dataclass(kw_only=True)
class PretrainingDataConfig:
    """FASTA files, what of them is held out, and the windows that are drawn of the rest."""

    paths: list[str]
    """FASTA files, plain or compressed, and folders of them, those below included."""
    weights: list[float] | None = None
    """How often the bases of each path are drawn; twice as often as others with 2, not with 0. By default all alike."""
    exclude: list[str] = field(default_factory=list)
    """Names or patterns of records or files to leave out, such as *_alt or */novel/*."""
    splits_bed: str | None = None
    """Table (BED) of held-out regions: record, start, end, and train, valid or test (test where it has no fourth
    column).
    If some are for training, nothing else is."""
    test_records: list[str] = field(default_factory=list)
    """Names or patterns of records or files to test on, such as chr21 or */test/*."""
    validation_records: list[str] = field(default_factory=list)
    """The same for validation."""
    test_fraction: float | None = None
    """Part of the bases to test on of every file that table and patterns leave alone; by default 5 % where these name
    no test, else none."""
    validation_fraction: float | None = None
    """The same for validation, by default 1 %."""
    regions: int = 1
    """How many regions of a file each of the two parts is cut into."""
    length: int = 1024
    """Bases of a training window."""
    length_warmup: list[int] = field(default_factory=list)
    """Sequence-length warm-up (Mamba, appendix E.3): lengths of the windows of the stages that training begins with,
    ascending, such as [1024, 2048, 4096]. Batches have as many bases as later."""
    length_warmup_steps: list[int] = field(default_factory=list)
    """Steps of each of these stages."""
    batch_tokens: int = 1048576
    """Bases of a step: a batch of windows of length L has batch_tokens // L of them."""
    windows: Windows = "tiles"
    """Go through all training bases in windows that do not overlap, again and again, or draw windows at random."""
    gap: int = 1000
    """Runs of so many N or more are skipped: no window reaches over one. Shorter ones are read, and not counted."""
    fill: float = 0.5
    """A stretch shorter than a window is used where it fills so much of one."""
    soft_masked_weight: float = 1.0
    """Weight of lower-case bases, which repeat maskers mark, in the training loss; 0 trains on none of them."""
    reverse_complement: bool = True
    """Read half of the training windows on the other strand."""
    validation_bases: int = 1048576
    """Bases of validation."""
    seed: int = 0
    """Seed of splits and windows."""
    workers: int = 0
    """Processes that make batches; 0 makes them in the training process."""
    cache_folder: str | None = None
    """Where packed files are kept; in the user's cache folder by default."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("data.paths is empty, expected FASTA files or folders of them")
        if self.weights is not None and (
            len(self.weights) != len(self.paths) or min(self.weights) < 0 or not any(self.weights)
        ):
            raise ValueError(
                f"data.weights is {self.weights}, expected a number of 0 or more for each of the {len(self.paths)} "
                "paths, not all 0"
            )
        for name in ("length", "batch_tokens", "gap", "validation_bases", "regions"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.soft_masked_weight <= 1:
            raise ValueError(f"data.soft_masked_weight is {self.soft_masked_weight}, expected 0 to 1")
        if not 0 < self.fill <= 1:
            raise ValueError(f"data.fill is {self.fill}, expected above 0, at most 1")
        LengthWarmup(self.length_warmup, self.length_warmup_steps)
        if max(self.length_warmup, default=0) > self.length:
            raise ValueError(f"data.length_warmup is {self.length_warmup}, expected lengths up to data.length")


class PretrainingData(L.LightningDataModule):
    """Batches of cased token ids (B, L) uint8: `codes % LOWER` are token ids, `codes >= LOWER` lower-case letters.

    The training loader has no end. Set `start_step` before asking for it and it begins there.
    """

    def __init__(self, config: PretrainingDataConfig) -> None:
        super().__init__()
        self.config = config
        self.start_step = 0
        self._corpus: Corpus | None = None
        self._splits: Splits | None = None

    def setup(self, stage: str | None = None) -> None:
        """Pack the files that are not yet, and split them, once.

        Raises:
            DataError: files cannot be read, or are too few for the lengths and fractions asked for.
        """
        if self._corpus is not None:
            return
        config = self.config
        corpus = Corpus(config.paths, config.exclude, config.cache_folder)
        held_out = HeldOut(
            config.splits_bed,
            config.test_records,
            config.validation_records,
            config.test_fraction,
            config.validation_fraction,
            config.regions,
            config.seed,
        )
        self._splits = split_corpus(corpus.records, held_out)
        self._corpus = corpus
        for split, what in (("train", "training"), ("validation", "validation"), ("test", "the test")):
            if not self.stretches(split):  # type: ignore[arg-type]
                raise TooFewData(f"no base is left for {what}; hold out other regions, records or fractions")

    @property
    def corpus(self) -> Corpus:
        """The files, after `setup`."""
        assert self._corpus is not None, "call setup() first"
        return self._corpus

    @property
    def splits(self) -> Splits:
        """Which stretches are for training, validation and test, after `setup`."""
        assert self._splits is not None, "call setup() first"
        return self._splits

    def stretches(self, split: Split) -> list[Stretch]:
        """The stretches of a split without long runs of N; those of training with their weights."""
        weights = self.config.weights if split == "train" else None
        return stretches(self.corpus, self.splits.of(split), self.config.gap, weights)

    def training_batches(self, start_step: int = 0, rank: int = 0, world_size: int = 1) -> PretrainingBatches:
        """The batches of all steps from `start_step` on."""
        config = self.config
        windows = PretrainingWindows(
            self.corpus,
            [stretch for stretch in self.stretches("train") if stretch.weight > 0],
            config.windows,
            config.fill,
            config.reverse_complement,
            config.seed,
        )
        warmup = LengthWarmup(config.length_warmup, config.length_warmup_steps)
        return PretrainingBatches(windows, config.length, config.batch_tokens, warmup, start_step, rank, world_size)

    def held_out_places(self, split: Split, length: int, bases: int) -> list[Stretch]:
        """Places of pieces of a held-out split, of at most `length`, drawn from the paths in turn until they have
        `bases` in all; the same ones at every call.
        """
        places = [
            Stretch(stretch.record, start, min(start + length, stretch.end))
            for stretch in self.stretches(split)
            for start in range(stretch.start, stretch.end, length)
        ]
        order: list[int] = np.random.default_rng((self.config.seed, length)).permutation(len(places)).tolist()
        drawn: Counter[int] = Counter()
        turns = {}
        for i in order:
            source = self.corpus.sources[places[i].record]
            turns[i] = drawn[source]
            drawn[source] += 1
        found = []
        for i in sorted(order, key=turns.__getitem__):  # a small path is not lost beside a large one
            if bases <= 0:
                break
            record, start, end, _ = places[i]
            found.append(Stretch(record, start, min(end, start + bases)))
            bases -= end - start
        return found

    def held_out_pieces(self, split: Split, length: int, bases: int) -> list[Codes]:
        """The token ids (n,) uint8 of those places."""
        places = self.held_out_places(split, length, bases)
        return [self.corpus.fetch(place.record, place.start, place.end) for place in places]

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches from `start_step` on, without end."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            self.training_batches(self.start_step, rank, world_size),
            batch_size=None,
            num_workers=self.config.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches, the same every time."""
        pieces = self.held_out_pieces("validation", self.config.length, self.config.validation_bases)
        batches = [batch for batch, _ in padded_batches(pieces, min(self.config.batch_tokens, VALIDATION_TOKENS))]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def padded_batches(pieces: Sequence[Codes], batch_tokens: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches (B, L) uint8 of pieces (n,), filled up with N at their ends, and their numbers; like lengths
    together.
    """
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
    while order:
        longest = max(1, len(pieces[order[0]]))
        n = max(1, batch_tokens // longest)
        here, order = order[:n], order[n:]
        batch = np.full((len(here), longest), DNA.unknown_code, dtype=np.uint8)
        for row, i in enumerate(here):
            batch[row, : len(pieces[i])] = pieces[i] % LOWER
        yield torch.from_numpy(batch), here
