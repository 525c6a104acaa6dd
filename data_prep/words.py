"""The data of a classifier of spoken words: from folders of sound files to varied clips, as a Lightning datamodule.

Every training clip is a function of (seed, its number), and every batch of (seed, its step) alone. A clip's word is
drawn first, then the collection, then the recording: words and collections count alike, however many files they have.

Shapes: B batch, L samples of a clip.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from mamba_seq.data_prep.audio import AudioData, AudioDataConfig
from mamba_seq.data_prep.audio_files import Layout
from mamba_seq.data_prep.audio_sounds import Sounds
from mamba_seq.data_prep.audio_splits import AudioSplits, By
from mamba_seq.data_prep.codecs import Samples
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.mel import get_features
from mamba_seq.data_prep.splits import Split
from mamba_seq.data_prep.word_augment import no_word, vary

NOTHING = "none"
"""The class of a sound that is none of the words."""
SOUNDS_OF_NOTHING = 500
"""Sounds that are no word, in an evaluation."""


@dataclass(kw_only=True)
class WordDataConfig:
    """Recordings of words, how they are split, and the clips that are made of them."""

    roots: list[str]
    """Folders of sound files, each a collection of its own."""
    layout: Literal["auto"] | Layout = "auto"
    """How they are laid out: speech-commands, free-spoken-digits, or folder, which is anything else."""
    labels: list[str] = field(default_factory=list)
    """Take only these words, in this order; all by default. In the layout folder, the first folder of a path is the
    word."""
    speaker_pattern: str | None = None
    """In the layout folder, a regular expression with a group "speaker"."""
    sample_rate: int = 16000
    """Samples a second; files of another rate are resampled."""
    length: int = 16000
    """Samples of a clip."""
    features: str = "log-mel-40band-12.5ms-3600hz"
    """What the model reads of a clip."""
    nothing: float = 0.15
    """Part of the training clips that is silence, noise or scrambled speech, of the class "none"."""
    batch_size: int = 64
    """Clips of a batch."""
    seed: int = 0
    """Seed of the split and of all clips."""
    split: By = "given"
    """Hold out what the collections say (given), whole speakers, or whole files."""
    test_fraction: float = 0.1
    """With the split by speaker or file, part of each collection's seconds that is held out for the test."""
    validation_fraction: float = 0.1
    """The same for validation."""
    test_files: list[str] = field(default_factory=list)
    """Instead of test_fraction, names or patterns of files or speakers."""
    validation_files: list[str] = field(default_factory=list)
    """Instead of validation_fraction, the same for validation."""
    workers: int = 0
    """Processes that make batches; 0 makes them in the training process."""

    def __post_init__(self) -> None:
        self.sounds()
        get_features(self.features, self.sample_rate)
        if not 0 < self.nothing < 1:
            raise ValueError(f"data.nothing is {self.nothing}, expected above 0, below 1")
        if NOTHING in self.labels:
            raise ValueError(f"data.labels has {NOTHING!r}, which is the class of what is no word; leave it out")

    def sounds(self) -> AudioDataConfig:
        """The part that says which files are read and how they are split."""
        shared = {each.name for each in dataclasses.fields(AudioDataConfig)}
        mine = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return AudioDataConfig(
            **{name: value for name, value in mine.items() if name in shared}, folder_labels=True, cache="memory"
        )


class WordBatch(NamedTuple):
    """Clips and their classes."""

    samples: Tensor
    """(B, L) float32."""
    labels: Tensor
    """(B,) int64; the class after the last word is that of no word."""


class WordData(L.LightningDataModule):
    """Batches of clips (`WordBatch`); the training loader has no end, and begins at `start_step`.

    Args:
        config: What to read and how.
    """

    def __init__(self, config: WordDataConfig) -> None:
        super().__init__()
        self.config = config
        self.files = AudioData(config.sounds())
        self.features = get_features(config.features, config.sample_rate)
        self.start_step = 0

    def setup(self, stage: str | None = None) -> None:
        """Find, read and split the files, once.

        Raises:
            DataError: There is nothing to read, or too little for the split asked for, or no word is said.
        """
        self.files.setup(stage)
        if len(self.files.labels) < 2 or "" in {file.label for file in self.sounds.files}:
            raise TooFewData(
                f"the words of the recordings are {', '.join(self.files.labels) or 'not known'}, at least two were "
                "expected, and each file in a folder that is named like its word"
            )
        heard = {file.label for file in self.splits.of("train")}
        for label in self.files.labels:
            if label not in heard:
                raise TooFewData(f"no recording of {label!r} is left to train on; hold out less, or add files")

    @property
    def sounds(self) -> Sounds:
        """The samples of all files, after `setup`."""
        return self.files.sounds

    @property
    def splits(self) -> AudioSplits:
        """Which files are for training, validation and test, after `setup`."""
        return self.files.splits

    @property
    def labels(self) -> list[str]:
        """The classes: the words, and what is none of them."""
        return [*self.files.labels, NOTHING]

    def of(self, split: Split) -> list[int]:
        """The numbers of a split's files."""
        return [i for i, its in enumerate(self.splits.splits) if its == split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches from `start_step` on, without end."""
        clips = VariedWords(self.sounds, self.of("train"), self.labels, self.config)
        return DataLoader(
            WordBatches(clips, self.config.batch_size, self.start_step),
            batch_size=None,
            num_workers=self.config.workers,
        )

    def evaluation_loader(self, split: Split) -> DataLoader[Any]:
        """Batches of a split's recordings as they are, in the order of the files; then sounds that are no word."""
        words = PlainWords(self.sounds, self.of(split), self.labels, self.config)
        return DataLoader(words, batch_size=256, collate_fn=_collate)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation clips."""
        return self.evaluation_loader("validation")


class VariedWords:
    """Training clips by number.

    Args:
        sounds: The recordings.
        indices: Numbers of those to draw from.
        labels: The classes, that of no word last.
        config: Length, part of what is no word, and seed.
    """

    def __init__(self, sounds: Sounds, indices: Sequence[int], labels: Sequence[str], config: WordDataConfig) -> None:
        self.config = config
        self._sounds = sounds
        self._nothing = len(labels) - 1
        by_label: list[dict[str, list[int]]] = [{} for _ in labels[:-1]]
        for i in indices:
            file = sounds.files[i]
            by_label[labels.index(file.label)].setdefault(file.source, []).append(i)
        self._words = [list(sources.values()) for sources in by_label]

    def __getitem__(self, number: int) -> tuple[Samples, int]:
        """The samples (L,) and the class of a clip."""
        rng = np.random.default_rng((self.config.seed, number))
        if rng.random() < self.config.nothing:
            return no_word(lambda: self._draw(rng)[0], self.config.length, rng), self._nothing
        samples, label = self._draw(rng)
        return vary(samples, self.config.length, rng), label

    def _draw(self, rng: np.random.Generator) -> tuple[Samples, int]:
        label = int(rng.integers(len(self._words)))
        sources = self._words[label]
        files = sources[rng.integers(len(sources))]
        index = files[rng.integers(len(files))]
        return _read(self._sounds, index), label


class WordBatches(IterableDataset[WordBatch]):
    """Batches without end, from `start_step` on."""

    def __init__(self, clips: VariedWords, batch_size: int, start_step: int = 0) -> None:
        self.clips, self.batch_size, self.start_step = clips, batch_size, start_step

    def __iter__(self) -> Iterator[WordBatch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for i in itertools.count(self.start_step + first, step):
            yield self.batch(i)

    def batch(self, step: int) -> WordBatch:
        """The batch of a step."""
        return _collate([self.clips[step * self.batch_size + i] for i in range(self.batch_size)])


class PlainWords(Dataset[tuple[Samples, int]]):
    """Recordings from their beginning, filled up with nothing or cut off, and after them sounds that are no word.

    Those are made of the same recordings, by a seed that is always the same.
    """

    def __init__(self, sounds: Sounds, indices: Sequence[int], labels: Sequence[str], config: WordDataConfig) -> None:
        self._sounds, self._indices, self._labels, self._length = sounds, list(indices), labels, config.length

    def __len__(self) -> int:
        return len(self._indices) + SOUNDS_OF_NOTHING * bool(self._indices)

    def __getitem__(self, number: int) -> tuple[Samples, int]:
        """The samples (L,) and the class of a clip."""
        count = len(self._indices)
        if number >= count:
            rng = np.random.default_rng((1, number - count))
            return no_word(lambda: self._any(rng), self._length, rng), len(self._labels) - 1
        index = self._indices[number]
        samples = _read(self._sounds, index)[: self._length]
        padded = np.pad(samples, (0, self._length - len(samples)))
        return padded, self._labels.index(self._sounds.files[index].label)

    def source(self, number: int) -> str:
        """The collection of a clip; "" for a sound that is no word."""
        return self._sounds.files[self._indices[number]].source if number < len(self._indices) else ""

    def _any(self, rng: np.random.Generator) -> Samples:
        return _read(self._sounds, self._indices[rng.integers(len(self._indices))])


def _read(sounds: Sounds, index: int) -> Samples:
    # all files are in memory: those that cannot be read are out of the list
    return cast("Samples", sounds.read(index, 0, int(sounds.lengths[index])))


def _collate(clips: Sequence[tuple[Samples, int]]) -> WordBatch:
    return WordBatch(
        torch.from_numpy(np.stack([samples for samples, _ in clips])),
        torch.tensor([label for _, label in clips], dtype=torch.int64),
    )
