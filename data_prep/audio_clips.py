"""Clips of sound as batches of levels: an endless seeded stream for training, and fixed lists for evaluation.

Every training clip is a function of (seed, its number) and every batch of (seed, its step) alone: a run may stop and go
on at any step, and neither the number of workers nor that of processes changes what a step sees. A file that turns out
to be damaged when it is read is named once and another is drawn in its place.

Shapes: B batch, L length of a clip in samples.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mamba_seq.data_prep.audio_augment import Variation, draw_variation
from mamba_seq.data_prep.audio_sounds import Sounds
from mamba_seq.data_prep.codecs import Codec, Levels
from mamba_seq.data_prep.errors import TooFewData

IGNORED = -100
"""A target that does not count: torch's `ignore_index`."""
NO_LABEL = -1
"""Of a clip without a class: a conditional model adds no vector for it. Such a null label needs no parameter, so that a
model trained without `label_dropout` may be the start of one with it. Nothing is lost: a vector of its own could just
as well be added to those of all levels and taken off those of the classes, and the model would be the same."""
TRIES = 100  # draws of a clip before giving up on finding a file that can be read

Draw = Literal["file", "length", "label"]


class AudioBatch(NamedTuple):
    """Clips of a codec's levels."""

    levels: Tensor
    """(B, L) uint8, int32 above 8 bits; silence after the end of a clip."""
    lengths: Tensor
    """Number of samples of each clip that count (B,) int64."""
    labels: Tensor
    """Class of each clip (B,) int64, -1 for none."""


class Clip(NamedTuple):
    """Levels of one clip (at most L,), and its class."""

    levels: Levels
    label: int


def inputs_and_targets(batch: AudioBatch, silence: int) -> tuple[Tensor, Tensor]:
    """What a model reads and what it shall say, (B, L) int64 each.

    The input is the clip one sample later, behind a level of silence, and silence after its end; the targets are the
    clip itself, `IGNORED` after its end.
    """
    levels = batch.levels.long()
    inside = torch.arange(levels.shape[1], device=levels.device) < batch.lengths[:, None]
    inputs = torch.nn.functional.pad(levels[:, :-1], (1, 0), value=silence)
    return inputs, levels.masked_fill(~inside, IGNORED)


class TrainingClips(Dataset[Clip]):
    """Training clips by number: a file is drawn, and of one that is longer than a clip a place in it.

    Args:
        sounds: Where they come from.
        indices: Numbers of the files to draw from.
        labels: The class of each file of `sounds`.
        codec: Makes levels of samples; its scaling is that of each clip by itself.
        length: Samples of a clip, at most.
        draw: "file": pass after pass over the files, each in an order of its own; "length": every place is as likely as
            any other; "label": a class, then a file of it.
        seed: Chooses all of it.
        label_dropout: Part of the clips that come without their class.
        speed: The most by which clips are played faster or slower, 0.1 for 10 %.
        flip: Turn half of the clips upside down.
        skip: The most samples that are left out at the beginning of a file that is no longer than a clip.

    Raises:
        TooFewData: There is no file.
    """

    def __init__(
        self,
        sounds: Sounds,
        indices: Sequence[int],
        labels: Sequence[int],
        codec: Codec,
        length: int,
        draw: Draw = "file",
        seed: int = 0,
        label_dropout: float = 0.0,
        speed: float = 0.0,
        flip: bool = False,
        skip: int = 0,
    ) -> None:
        if not len(indices):
            raise TooFewData("there is no sound file to train on; hold out smaller parts, or add files")
        self.seed = seed
        self._sounds = sounds
        self._indices = np.asarray(indices)
        self._labels = labels
        self._codec = codec
        self._length = length
        self._draw = draw
        self._label_dropout = label_dropout
        self._speed, self._flip, self._skip = speed, flip, skip
        places = np.maximum(1, sounds.lengths[self._indices] - length + 1)
        self._cumulative = np.cumsum(places.astype(np.float64))
        own = np.array([labels[i] for i in self._indices])
        self._by_label = [self._indices[own == label] for label in np.unique(own)]
        self._pass: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> Clip:
        """The levels and the class of a clip."""
        rng = np.random.default_rng((self.seed, number))
        for attempt in range(TRIES):
            index = self._file(rng, number, attempt)
            spare = int(self._sounds.lengths[index]) - self._length
            start = int(rng.integers(spare + 1)) if spare > 0 else 0
            variation = self._variation(number, cut=spare > 0)
            samples = self._sounds.read(index, start, variation.needs(self._length))
            if samples is not None:
                levels = self._codec.encode(variation.of(samples, self._length))
                return Clip(levels, NO_LABEL if self._is_untold(number) else self._labels[index])
        raise TooFewData(
            f"{TRIES} sound files in a row could not be read, {self._sounds.files[index].path} the last; "
            "see the warnings before this, and take the damaged files away"
        )

    def _variation(self, number: int, cut: bool) -> Variation:
        if not (self._speed or self._flip or self._skip):
            return Variation()
        rng = np.random.default_rng((self.seed, number, 3))
        return draw_variation(rng, self._speed, self._flip, 0 if cut else self._skip)

    def _is_untold(self, number: int) -> bool:
        # numbers of its own: the clips are those of a run without
        return bool(np.random.default_rng((self.seed, number, 2)).random() < self._label_dropout)

    def _file(self, rng: np.random.Generator, number: int, attempt: int) -> int:
        if self._draw == "label":
            those = self._by_label[int(rng.integers(len(self._by_label)))]
            return int(those[rng.integers(len(those))])
        if self._draw == "length":
            at = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
            return int(self._indices[min(at, len(self._indices) - 1)])
        if attempt:  # instead of a damaged file
            return int(self._indices[rng.integers(len(self._indices))])
        which, place = divmod(number, len(self._indices))
        if self._pass is None or self._pass[0] != which:
            self._pass = which, np.random.default_rng((self.seed, which, 1)).permutation(self._indices)
        return int(self._pass[1][place])


class ClipBatches(IterableDataset[AudioBatch]):
    """Batches without end, from `start_step` on. Load it with `DataLoader(batches, batch_size=None)`.

    Args:
        clips: Where the clips come from.
        length: Samples that a clip is filled up to.
        silence: The level it is filled up with.
        batch_size: Clips of a batch.
        start_step: The first step.
        rank: Number of this process, which gets clips of its own.
        world_size: Number of processes.
        learn_end: What clips are filled up with counts as theirs.
    """

    def __init__(
        self,
        clips: TrainingClips,
        length: int,
        silence: int,
        batch_size: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        learn_end: bool = False,
    ) -> None:
        self.clips = clips
        self.start_step = start_step
        self._length = length
        self._silence = silence
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._learn_end = learn_end

    def __iter__(self) -> Iterator[AudioBatch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for i in itertools.count(self.start_step + first, step):
            yield self.batch(i)

    def batch(self, step: int) -> AudioBatch:
        """The batch of a step."""
        first = (step * self._world_size + self._rank) * self._batch_size
        numbers = range(first, first + self._batch_size)
        batch = collate([self.clips[number] for number in numbers], self._length, self._silence)
        return batch._replace(lengths=torch.full_like(batch.lengths, self._length)) if self._learn_end else batch


class EvaluationClips(Dataset[Clip]):
    """A fixed list of clips: files from end to end in pieces of `length`, and of all pieces at most so many.

    A piece that cannot be read is a clip without samples, so that none of its targets counts.

    Args:
        sounds: Where they come from.
        indices: Numbers of the files.
        labels: The class of each file of `sounds`.
        codec: Makes levels of samples.
        length: Samples of a piece; the last one of a file may have fewer.
        most: How many pieces to take, drawn by a seed that is always the same; 0 for all.
    """

    def __init__(
        self,
        sounds: Sounds,
        indices: Sequence[int],
        labels: Sequence[int],
        codec: Codec,
        length: int,
        most: int = 0,
    ) -> None:
        self._sounds, self._labels, self._codec, self._length = sounds, labels, codec, length
        self.pieces = [(int(i), start) for i in indices for start in range(0, int(sounds.lengths[i]), length)]
        if 0 < most < len(self.pieces):
            chosen = np.random.default_rng(0).choice(len(self.pieces), most, replace=False)
            self.pieces = [self.pieces[i] for i in sorted(chosen.tolist())]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> Clip:
        """The levels and the class of a piece."""
        index, start = self.pieces[number]
        samples = self._sounds.read(index, start, self._length)
        if samples is None:
            samples = np.zeros(0, dtype=np.float32)
        return Clip(self._codec.encode(samples), self._labels[index])

    def source(self, number: int) -> str:
        """The collection that a piece is of."""
        return self._sounds.files[self.pieces[number][0]].source


def collate(clips: Sequence[Clip], length: int, silence: int) -> AudioBatch:
    """A batch of clips, each filled up with silence."""
    wide = any(clip.levels.dtype != np.uint8 for clip in clips)
    levels = np.full((len(clips), length), silence, dtype=np.int32 if wide else np.uint8)
    for row, clip in zip(levels, clips, strict=True):
        row[: len(clip.levels)] = clip.levels
    lengths = torch.tensor([len(clip.levels) for clip in clips], dtype=torch.int64)
    return AudioBatch(
        torch.from_numpy(levels), lengths, torch.tensor([clip.label for clip in clips], dtype=torch.int64)
    )
