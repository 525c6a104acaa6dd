"""The data of a waveform model in training: from folders of sound files to batches, as a Lightning datamodule."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from mamba_seq.data_prep.audio_clips import (
    NO_LABEL,
    ClipBatches,
    Draw,
    EvaluationClips,
    TrainingClips,
    collate,
)
from mamba_seq.data_prep.audio_files import AudioFile, Layout, Skipped, find_audio, in_order, report
from mamba_seq.data_prep.audio_sounds import Sounds
from mamba_seq.data_prep.audio_splits import AudioSplits, By, split_audio
from mamba_seq.data_prep.codecs import Codec, get_codec
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.splits import Split

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AudioDataConfig:
    """Sound files, how they are split, and the clips that are drawn of them."""

    roots: list[str]
    """Folders of sound files, each a collection of its own."""
    layout: Literal["auto"] | Layout = "auto"
    """How they are laid out: speech-commands, free-spoken-digits, or folder, which is anything else; auto goes by the
    names of the files of each."""
    folder_labels: bool = False
    """In the layout folder, the first folder of a file's path is its class; without, files have no class."""
    labels: list[str] = field(default_factory=list)
    """Take only files of these classes, in this order; all by default, digits from zero to nine."""
    speaker_pattern: str | None = None
    """In the layout folder, a regular expression with a group "speaker", such as (?P<speaker>[^/_]+)_; the first folder
    of the path by default."""
    sample_rate: int = 16000
    """Samples a second; files of another rate are resampled."""
    codec: str = "mu-law-8bit-minmax"
    """What makes levels of samples."""
    length: int = 16000
    """Samples of a clip. Shorter files are filled up, and what is filled up is no target; of longer ones a clip is cut
    out at a random place."""
    batch_size: int = 16
    """Clips of a batch."""
    learn_end: bool = False
    """What shorter training clips are filled up with is a target too, so that a model learns to be silent when one is
    over. Likelihoods of held-out clips never count it."""
    seed: int = 0
    """Seed of the split and of all clips."""
    split: By = "given"
    """Hold out what the collections say (given), whole speakers, or whole files."""
    test_fraction: float = 0.1
    """With the split by speaker or file, part of each collection's seconds that is held out for the test."""
    validation_fraction: float = 0.1
    """The same for validation."""
    test_files: list[str] = field(default_factory=list)
    """Instead of test_fraction, names or patterns of files or speakers, such as goldberg-*."""
    validation_files: list[str] = field(default_factory=list)
    """Instead of validation_fraction, the same for validation."""
    label_dropout: float = 0.0
    """Part of the training clips whose class is left out, so that a conditional model also knows what clips of no class
    are like, and generate can guide it away from them. Held-out clips keep theirs."""
    speed: float = 0.0
    """Play every training clip up to this part faster or slower, 0.1 for 10 %, so that it is learnt less by heart."""
    flip: bool = False
    """Turn half of the training clips upside down, for the same end: nobody hears it."""
    skip: int = 0
    """Leave up to so many samples out at the beginning of files that are no longer than a clip, for the same end."""
    trim: bool = False
    """Leave out the room before and after the sound of files that are no longer than a clip, held-out ones too: by its
    noise a model knows which recording it hears, and needs no class to say what comes."""
    draw: Draw = "file"
    """Draw clips file after file (file), every place equally likely (length), or a class first (label)."""
    validation_clips: int = 256
    """The most clips that validation reads; 0 for all."""
    test_clips: int = 0
    """The most clips that the test reads; 0 for all."""
    workers: int = 0
    """Processes that make batches; 0 makes them in the training process."""
    cache: Literal["auto", "memory", "disk"] = "auto"
    """Read files into memory, which finds the damaged ones before training; from disk; or auto: into memory when they
    fit into cache_gb."""
    cache_gb: float = 4.0
    """The most gigabytes that auto reads into memory, at 4 bytes a sample."""

    def __post_init__(self) -> None:
        if not self.roots:
            raise ValueError("data.roots is empty, expected at least one folder of sound files")
        for name in ("sample_rate", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("validation_clips", "test_clips", "workers", "skip"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("test_fraction", "validation_fraction", "label_dropout", "speed"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected 0 or more, below 1")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"data.labels has a name twice: {self.labels}")
        get_codec(self.codec)


class AudioData(L.LightningDataModule):
    """Batches of levels (`AudioBatch`) for training, validation and test.

    The training loader has no end: bound a run by steps. Set `start_step` before asking for it and it begins there,
    with what an uninterrupted run would have seen. In a distributed run each process gets its own clips.

    Args:
        config: What to read and how.

    Attributes:
        codec: Makes levels of samples.
        skipped: Files that cannot be used, as far as is known after `setup`.
        labels: Names of the classes, in the order of their numbers; empty when the files have none.
    """

    def __init__(self, config: AudioDataConfig) -> None:
        super().__init__()
        self.config = config
        self.codec: Codec = get_codec(config.codec)
        self.start_step = 0
        self.skipped: list[Skipped] = []
        self.labels: list[str] = []
        self._sounds: Sounds | None = None
        self._splits: AudioSplits | None = None

    def setup(self, stage: str | None = None) -> None:
        """Find the files, read them into memory if they fit, and split them; once.

        Raises:
            DataError: There is nothing to read, or too little for the split asked for.
        """
        if self._sounds is not None:
            return
        config = self.config
        files = self._find()
        size = sum(file.info.length(config.sample_rate) for file in files) * 4e-9
        in_memory = config.cache == "memory" or (config.cache == "auto" and size <= config.cache_gb)
        log.info("%d sound files, %.2f GB: read from %s", len(files), size, "memory" if in_memory else "disk")
        sounds = Sounds(files, config.sample_rate, in_memory, trim=config.length if config.trim else 0)
        report(sounds.skipped)
        self.skipped += sounds.skipped
        if not sounds.files:
            raise TooFewData(f"none of the {len(files)} sound files can be read; see the warnings before this")
        self._splits = split_audio(
            sounds.files,
            config.split,
            config.test_fraction,
            config.validation_fraction,
            config.seed,
            config.test_files,
            config.validation_files,
        )
        self._sounds = sounds

    @property
    def sounds(self) -> Sounds:
        """The samples of all files, after `setup`."""
        if self._sounds is None:
            raise RuntimeError("the sound files have not been read yet: call setup() first")
        return self._sounds

    @property
    def splits(self) -> AudioSplits:
        """Which files are for training, validation and test, after `setup`."""
        if self._splits is None:
            raise RuntimeError("the sound files have not been split yet: call setup() first")
        return self._splits

    def training_batches(self, start_step: int = 0, rank: int = 0, world_size: int = 1) -> ClipBatches:
        """The batches of all steps from `start_step` on."""
        config = self.config
        clips = TrainingClips(
            self.sounds,
            self._of("train"),
            self._numbers(),
            self.codec,
            config.length,
            config.draw,
            config.seed,
            config.label_dropout,
            config.speed,
            config.flip,
            config.skip,
        )
        return ClipBatches(
            clips, config.length, self.codec.silence, config.batch_size, start_step, rank, world_size, config.learn_end
        )

    def evaluation_clips(self, split: Split, most: int = 0) -> EvaluationClips:
        """A fixed list of clips of a split, end to end, at most so many; 0 for all."""
        return EvaluationClips(self.sounds, self._of(split), self._numbers(), self.codec, self.config.length, most)

    def evaluation_loader(self, clips: EvaluationClips) -> DataLoader[Any]:
        """Batches of such a list, in its order."""
        return DataLoader(
            clips,
            batch_size=self.config.batch_size,
            collate_fn=partial(collate, length=self.config.length, silence=self.codec.silence),
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

    def val_dataloader(self) -> DataLoader[Any]:
        """A loader of validation clips."""
        return self.evaluation_loader(self.evaluation_clips("validation", self.config.validation_clips))

    def test_dataloader(self) -> DataLoader[Any]:
        """A loader of test clips."""
        return self.evaluation_loader(self.evaluation_clips("test", self.config.test_clips))

    def _find(self) -> list[AudioFile]:
        """Return the files of all roots that are of a class to be read, and set the classes."""
        config = self.config
        files: list[AudioFile] = []
        for root in config.roots:
            found, skipped = find_audio(
                root, None if config.layout == "auto" else config.layout, config.folder_labels, config.speaker_pattern
            )
            if found[0].source in {file.source for file in files}:
                raise ValueError(
                    f"two of data.roots are named {found[0].source!r}; the table of splits needs names of their own"
                )
            files += found
            self.skipped += skipped
        there = {file.label for file in files} - {""}
        self.labels = config.labels or in_order(there)
        if config.labels:
            for label in config.labels:
                if label not in there:
                    raise TooFewData(
                        f"no sound file is of class {label!r}; there are {', '.join(in_order(there)) or 'no classes'}"
                    )
            files = [file for file in files if file.label in config.labels]
        return files

    def _numbers(self) -> list[int]:
        """Return the number of each file's class."""
        numbers = {label: i for i, label in enumerate(self.labels)}
        return [numbers.get(file.label, NO_LABEL) for file in self.sounds.files]

    def _of(self, split: Split) -> list[int]:
        """Return the numbers of a split's files."""
        return [i for i, its in enumerate(self.splits.splits) if its == split]
