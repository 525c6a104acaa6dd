"""The data of a DNA classifier in training: from a folder of genomes to batches, as a Lightning datamodule."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from mamba_seq.data_prep.augmentation import Augmentation, Letters
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.genome_windows import (
    Draw,
    EvaluationWindows,
    GenomeWindows,
    Places,
    TrainingBatches,
    collate,
    evaluation_windows,
)
from mamba_seq.data_prep.genomes import Cache, Genomes
from mamba_seq.data_prep.length_warmup import LengthWarmup
from mamba_seq.data_prep.splits import Interval, Split, Splits, split_by_record, split_by_region


@dataclass(kw_only=True)
class GenomeDataConfig:
    """Genomes, how they are split, and the windows that are drawn of them."""

    root: str
    """Folder with a folder of FASTA files for each class; the folder's name is the label."""
    labels: list[str] | None = None
    """The class folders to read, in test_root too; all by default."""
    lengths: list[int] = field(default_factory=lambda: [1024, 8192])
    """Lengths of the training windows, in bases; every batch has one of them."""
    length_weights: list[float] | None = None
    """How often each length is drawn; all equally often by default."""
    batch_tokens: int = 65536
    """Bases in a batch: a batch of windows of length L has batch_tokens // L of them."""
    length_warmup: list[int] = field(default_factory=list)
    """Sequence-length warm-up (Mamba, appendix E.3): longest windows of the stages that training begins with,
    ascending, such as [1024, 2048, 4096]. Batches have as many bases as later; lengths drawn longer are cut to
    these."""
    length_warmup_steps: list[int] = field(default_factory=list)
    """Steps of each of these stages."""
    seed: int = 0
    """Seed of the split and of all windows."""
    split: Literal["region", "record"] = "region"
    """Hold out regions of every genome, or whole records."""
    splits_file: str | None = None
    """A table of an earlier run's splits (splits.tsv) to use instead."""
    test_root: str | None = None
    """Folder of other sequences of the same classes to test on, such as strains or regions that training never sees;
    whole records of it are then the test, and test_fraction must be 0."""
    test_fraction: float = 0.1
    """Part of the bases of every genome (by record: of every class) that is held out for the test."""
    validation_fraction: float = 0.05
    """Part of the bases that is held out for validation."""
    regions: int = 1
    """With the split by region, how many regions of a genome each of the two parts is cut into."""
    test_records: list[str] = field(default_factory=list)
    """With the split by record, names or patterns of records or files, such as *_chrIV; then not test_fraction."""
    validation_records: list[str] = field(default_factory=list)
    """The same for validation."""
    draw: Draw = "length"
    """Within a class, draw windows by length (every place equally likely) or uniform over records."""
    max_n_fraction: float = 0.2
    """Windows with a larger part of N than this are drawn again."""
    reverse_complement: bool = True
    """Read half of the training windows on the other strand."""
    mask_probability: float = 0.1
    """Part of the training windows in which some bases become N."""
    mask_fraction: float = 0.05
    """The largest part of the bases of such a window that becomes N."""
    mutation_fraction: float = 0.0
    """The largest part of the bases of a training window that become another base: keeps small data from being learnt
    by heart."""
    mutation_letters: Letters = "any"
    """What such a base becomes: any of the three others, or one of the window's own (the changed bases change places),
    which keeps the composition: take that where long windows are told apart by theirs."""
    validation_windows: int = 40
    """Validation windows a class, of each length."""
    validation_lengths: list[int] | None = None
    """Lengths of the validation windows, in bases; those of the training windows by default. Regions held out for
    validation must have room for them."""
    test_windows: int = 100
    """Test windows a class, of each length."""
    workers: int = 0
    """Processes that make batches; 0 makes them in the training process."""
    cache: Cache = "auto"
    """Read genomes into memory, from disk, or auto: into memory when they are expected to fit into cache_gb."""
    cache_gb: float = 2.0
    """The most gigabytes that auto reads into memory."""
    index_folder: str | None = None
    """Where indexes for reading from disk are kept; the user's cache folder by default."""


class GenomeData(L.LightningDataModule):
    """Batches of tokens (B, L) uint8 and labels (B,) int64 for training, validation and test.

    The training loader has no end: bound a run by steps. Set `start_step` before asking for it and it begins there,
    with what an uninterrupted run would have seen. In a distributed run each process gets its own windows.

    Args:
        config: What to read and how.
    """

    def __init__(self, config: GenomeDataConfig) -> None:
        super().__init__()
        self.config = config
        self.start_step = 0
        self._genomes: Genomes | None = None
        self._test_genomes: Genomes | None = None
        self._splits: Splits | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the genomes and split them, once.

        Raises:
            DataError: The genomes cannot be read, or are too few for the lengths and fractions asked for.
        """
        if self._genomes is not None:
            return
        config = self.config
        genomes = Genomes(config.root, config.cache, config.cache_gb, config.index_folder, config.labels)
        splits = self._split(genomes)
        splits.check_against(genomes.records)
        if config.test_root is not None:
            self._test_genomes = Genomes(
                config.test_root, config.cache, config.cache_gb, config.index_folder, config.labels
            )
            self._check_test_genomes(genomes, splits)
        self._genomes, self._splits = genomes, splits

    @property
    def genomes(self) -> Genomes:
        """The genomes, after `setup`."""
        if self._genomes is None:
            raise RuntimeError("the genomes have not been read yet: call setup() first")
        return self._genomes

    @property
    def splits(self) -> Splits:
        """Which stretches are for training, validation and test, after `setup`."""
        if self._splits is None:
            raise RuntimeError("the genomes have not been split yet: call setup() first")
        return self._splits

    @property
    def test_intervals(self) -> list[Interval]:
        """The stretches that the test windows lie in, after `setup`."""
        if self._test_genomes is None:
            return self.splits.of("test")
        records = [record for record in self._test_genomes.records if record.length]
        return [Interval(r.label, r.file, r.name, 0, r.length, "test") for r in records]

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        return self.genomes.labels

    def training_batches(self, start_step: int = 0, rank: int = 0, world_size: int = 1) -> TrainingBatches:
        """The batches of all steps from `start_step` on."""
        config = self.config
        places = Places(self.genomes, self.splits.of("train"), config.draw, config.max_n_fraction)
        augmentation = Augmentation(
            config.reverse_complement,
            config.mask_probability,
            config.mask_fraction,
            config.mutation_fraction,
            config.mutation_letters,
        )
        windows = GenomeWindows(places, augmentation, config.seed)
        return TrainingBatches(
            windows,
            config.lengths,
            config.batch_tokens,
            config.length_weights,
            start_step,
            rank,
            world_size,
            LengthWarmup(config.length_warmup, config.length_warmup_steps),
        )

    def evaluation_windows(
        self, split: Split, length: int, per_class: int, seed: int | None = None
    ) -> EvaluationWindows:
        """A fixed list of windows of a split, balanced over the classes; the seed is the config's by default."""
        seed = self.config.seed if seed is None else seed
        genomes = self._test_genomes if split == "test" and self._test_genomes is not None else self.genomes
        intervals = self.test_intervals if split == "test" else self.splits.of(split)
        return evaluation_windows(genomes, intervals, length, per_class, seed, self.config.max_n_fraction)

    def evaluation_loader(self, windows: EvaluationWindows) -> DataLoader[Any]:
        """Batches of about `batch_tokens` bases of such a list, in its order."""
        return DataLoader(
            windows,
            batch_size=max(1, self.config.batch_tokens // windows.length),
            collate_fn=collate,
            num_workers=self.config.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches from `start_step` on, without end."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            self.training_batches(self.start_step, rank, world_size),
            batch_size=None,
            num_workers=self.config.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """A loader of validation windows for each length."""
        lengths = self.config.lengths if self.config.validation_lengths is None else self.config.validation_lengths
        return self._loaders("validation", self.config.validation_windows, lengths)

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """A loader of test windows for each length."""
        return self._loaders("test", self.config.test_windows, self.config.lengths)

    def _loaders(self, split: Split, per_class: int, lengths: list[int]) -> list[DataLoader[Any]]:
        chosen = sorted(set(lengths))
        return [self.evaluation_loader(self.evaluation_windows(split, length, per_class)) for length in chosen]

    def _check_test_genomes(self, genomes: Genomes, splits: Splits) -> None:
        """Refuse test genomes of other classes, and a second test beside them."""
        if self._test_genomes is not None and self._test_genomes.labels != genomes.labels:
            raise TooFewData(
                f"{self.config.test_root} has the classes {self._test_genomes.labels}, "
                f"{self.config.root} has {genomes.labels}; the same in both were expected"
            )
        if splits.of("test"):
            raise ValueError(
                f"test_root {self.config.test_root!r} came with parts of {self.config.root!r} held out for the test "
                "too; set test_fraction to 0 and name no test_records"
            )

    def _split(self, genomes: Genomes) -> Splits:
        config = self.config
        if config.splits_file is not None:
            return Splits.from_tsv(Path(config.splits_file).read_text(encoding="utf-8"), config.splits_file)
        if config.split == "region":
            return split_by_region(
                genomes.records, config.test_fraction, config.validation_fraction, config.seed, config.regions
            )
        return split_by_record(
            genomes.records,
            config.test_records,
            config.validation_records,
            config.test_fraction,
            config.validation_fraction,
            config.seed,
        )
