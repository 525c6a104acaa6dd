"""Clips of sound that are asked for: how many, of which classes, how long, and what they begin with."""

import dataclasses
import logging
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mamba_seq.counted import Drawing
from mamba_seq.data_prep.audio_io import SUFFIXES, audio_info, read_audio
from mamba_seq.data_prep.codecs import Codec, Levels
from mamba_seq.pipelines.errors import OutputError, RequestError
from mamba_seq.pipelines.output import STDOUT
from mamba_seq.pipelines.sound_files import FORMATS, format_of

log = logging.getLogger("mamba_seq.pipelines")

ALL = "all"
NOT_WRITTEN = {*SUFFIXES, ".m4a", ".aac", ".wma", ".pcm", ".raw"} - {f".{form}" for form in FORMATS}
"""Suffixes of sound that a folder of clips is not meant by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioRequest:
    """What is wanted of a model."""

    output: str
    """A folder; a file, by its suffix; or "-", 16-bit samples to standard output."""
    clips: int = 1
    """How many, of every class that was named."""
    seconds: float | None = None
    """Length of a clip, the prompt included; None takes that of the clips that the model was trained on."""
    labels: tuple[str, ...] = ()
    """Classes; "all" stands for each of the model's. Without, clips are of the model's classes in turn."""
    prompt: str | None = None
    """A sound file that clips begin with."""
    drawing: Drawing = dataclasses.field(default_factory=Drawing)
    """Temperature, filters, seed, and guidance: None takes the model's own."""
    format: str | None = None
    """Of the files; None goes by the suffix of a file, and is wav in a folder."""
    gallery: str | None = None
    """A page to write."""

    @property
    def form(self) -> str:
        """The format of the files.

        Raises:
            OutputError: The output's suffix is that of another format, or of one that is not written; or raw samples
                are to be in one.
        """
        suffix = format_of(self.output) if self.is_file else None
        if self.format is not None and self.format != (suffix or self.format):
            raise OutputError(
                f"{self.output} ends in .{suffix}, and --format is {self.format}; leave one of the two out"
            )
        if self.format is not None and self.output == STDOUT and self.gallery is None:
            raise OutputError(
                f"--format is {self.format}, and -o - writes raw samples of 16 bits; name a file or a folder, or leave "
                "--format out"
            )
        ending = Path(self.output).suffix.lower()
        if not self.is_file and ending in NOT_WRITTEN and not Path(self.output).is_dir():
            raise OutputError(
                f"clips are not written as {ending}; name a file ending in .{', .'.join(FORMATS)}, or a folder"
            )
        return self.format or suffix or "wav"

    @property
    def is_file(self) -> bool:
        """Whether the output is one file."""
        return self.output != STDOUT and format_of(self.output) is not None and not Path(self.output).is_dir()


class Clip(NamedTuple):
    """A clip that is asked for."""

    name: str
    """Of its file, without a suffix."""
    label: int
    """Its class, -1 for none."""
    number: int
    """What the table calls its index."""


def chosen_clips(spec: str, request: AudioRequest, labels: list[str]) -> list[Clip]:
    """Return the clips in order; see `AudioRequest.labels`.

    Raises:
        RequestError: for a class that the model has not.
    """
    numbers = range(request.clips)
    if not labels:
        if request.labels:
            raise RequestError(
                f"--label {request.labels[0]} was given, but model {spec!r} knows no classes; leave it out"
            )
        return [Clip(f"clip-{i:04d}", -1, i) for i in numbers]
    asked = list(dict.fromkeys(name for label in request.labels for name in (labels if label == ALL else [label])))
    for name in asked:
        if name not in labels:
            raise RequestError(f"model {spec!r} has no label {name!r}; it has {', '.join(labels)} (or say {ALL})")
    plain = [re.sub(r"[^\w.-]+", "_", label).strip(".") or "label" for label in labels]
    if len(set(plain)) < len(plain):
        plain = [f"{number}-{name}" for number, name in enumerate(plain)]
    if not asked:
        return [Clip(f"{plain[i % len(labels)]}-{i:04d}", i % len(labels), i) for i in numbers]
    return [Clip(f"{plain[n]}-{i:04d}", n, i) for n in map(labels.index, asked) for i in numbers]


def clip_length(seconds: float | None, context: int | None, sample_rate: int) -> int:
    """Return the samples of a clip.

    Raises:
        RequestError: when that is none.
    """
    if seconds is None:
        return context or sample_rate
    if not (math.isfinite(seconds) and round(seconds * sample_rate) >= 1):
        raise RequestError(f"--seconds {seconds:g} is no sample at {sample_rate} Hz; give more")
    return round(seconds * sample_rate)


def read_prompt(path: str | None, codec: Codec, sample_rate: int, length: int) -> Levels | None:
    """Return the levels of a prompt.

    Raises:
        RequestError: when it is not shorter than the clip.
        DataError: when it is no sound.
    """
    if path is None:
        return None
    samples = audio_info(path).length(sample_rate)
    if samples >= length:
        raise RequestError(
            f"the prompt {path} is {samples / sample_rate:.3f} s long and the clip {length / sample_rate:.3f} s, which "
            "the prompt is a part of; ask for more --seconds, or cut the prompt"
        )
    sound = read_audio(path, sample_rate)
    loud = int(np.count_nonzero(np.abs(sound) * codec.gain > 1)) if codec.scaling == "gain" else 0
    if loud:
        log.warning("%s: %d samples are beyond what the model's codec holds, and are cut off", path, loud)
    return codec.encode(sound)
