"""Clips of sound from a language model of levels: which ones, in which batches, and where they go.

A clip is a function of the model, its class, the prompt, how it is drawn, the seed and its index. Files appear together
at the end: they wait in a hidden folder beside where they go, and are renamed.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mamba_seq.counted import Drawing
from mamba_seq.data_prep.audio_io import audio_info, read_audio
from mamba_seq.data_prep.codecs import Codec, Levels, Samples, bits_per_sample, get_codec
from mamba_seq.heads import LanguageModel
from mamba_seq.pipelines.errors import OutputError, RequestError
from mamba_seq.pipelines.gallery import Gallery
from mamba_seq.pipelines.output import STDOUT, check_output, open_output
from mamba_seq.pipelines.sound_files import check_rate, encode, format_of, to_pcm
from mamba_seq.waveform_decoding import WaveformDecoder, with_guidance

log = logging.getLogger("mamba_seq.pipelines")

TABLE = "clips.tsv"
COLUMNS = ("file", "label", "seed", "index", "seconds", "log_likelihood", "bits_per_sample", "peak")
ALL = "all"
AT_ONCE = {"cpu": 64, "cuda": 1024}
"""Rows of a batch: clips, or of guided ones half as many."""
PIECE = {"cpu": 800, "cuda": 3200}
"""Samples of every clip between two looks at the progress."""


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


class Made(NamedTuple):
    """A clip that was made."""

    clip: Clip
    samples: Samples
    """(L,), the prompt included."""
    log_likelihood: float
    """Of the samples behind the prompt, in nats."""
    bits: float
    """Their mean negative log-likelihood in bits."""
    peak: float

    def row(self, file: str, labels: list[str], seed: int, sample_rate: int) -> list[str]:
        """Return its row of the table."""
        label = labels[self.clip.label] if self.clip.label >= 0 else "NA"
        seconds = f"{len(self.samples) / sample_rate:.6g}"
        figures = (f"{self.log_likelihood:.3f}", f"{self.bits:.4f}", f"{self.peak:.4f}")
        return [file, label, str(seed), str(self.clip.number), seconds, *figures]


def generate_audio(model: LanguageModel, spec: str, request: AudioRequest, show: Callable[..., None]) -> None:
    """Make the clips and write them.

    Args:
        model: of levels of sound.
        spec: what `-m` said.
        request: what is wanted.
        show: takes a line of text and the part that is done, 0 to 1.

    Raises:
        RequestError: for a class that the model has not, a prompt as long as the clip or longer, or guidance that the
            model has not been trained for.
        OutputError: when the output cannot be written.
        DataError: for a prompt that is no sound.
    """
    config = model.config
    assert config.codec is not None
    assert config.sample_rate is not None
    codec, sample_rate = get_codec(config.codec), config.sample_rate
    form = request.format or (format_of(request.output) if request.is_file else None) or "wav"
    if request.output != STDOUT or request.gallery is not None:
        check_rate(form, sample_rate)
    try:
        drawing = with_guidance(request.drawing, config)
    except ValueError as error:
        raise RequestError(f"model {spec!r} cannot make such clips: {error}") from error
    if drawing.rows == 2:
        log.info("guided by %g%s", drawing.guidance, ", as the model says" * (request.drawing.guidance is None))
    clips = chosen_clips(spec, request, config.labels)
    if request.is_file and len(clips) > 1:
        raise OutputError(f"{len(clips)} clips do not go into the file {request.output}; name a folder with -o")
    length = clip_length(request.seconds, config.context, sample_rate)
    prompt = read_prompt(request.prompt, codec, sample_rate, length)
    device = next(model.parameters()).device
    if device.type == "cuda":
        model.to(torch.bfloat16)  # as the weights are stored
    pieces = Pieces(model, codec, clips, length, prompt, drawing, show)
    gallery = None
    if request.gallery is not None:
        gallery = Gallery(spec, drawing, sample_rate, form, request.prompt, config.labels)
    with Places(request, form) as places:
        made_seconds = 0.0
        for made in pieces.stream() if request.output == STDOUT else pieces.whole():
            name = places.name(made.clip)
            pcm, beyond = to_pcm(made.samples)
            if beyond:
                log.warning("%s: %d samples were beyond full scale and are cut off", name, beyond)
            row = made.row(name, config.labels, request.drawing.seed, sample_rate)
            sound = encode(pcm, sample_rate, form) if request.output != STDOUT or gallery is not None else b""
            places.put(made.clip, sound, row)
            if gallery is not None:
                gallery.add(dict(zip(COLUMNS, row, strict=True)), made.samples, sound)
            made_seconds += len(made.samples) / sample_rate
        if gallery is not None:
            places.page(gallery.page())
    log.info(
        "%d clip%s, %.1f s of sound in %.1f s (%.2f times real time), seed %d",
        *(len(clips), "s" * (len(clips) != 1), made_seconds, pieces.took, made_seconds / max(pieces.took, 1e-9)),
        request.drawing.seed,
    )


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


class Pieces:
    """Makes the clips, batch after batch.

    Attributes:
        took: seconds that it took.
    """

    def __init__(
        self,
        model: LanguageModel,
        codec: Codec,
        clips: list[Clip],
        length: int,
        prompt: Levels | None,
        drawing: Drawing,
        show: Callable[..., None],
    ) -> None:
        self._decoder = WaveformDecoder(model, codec.silence)
        self._conditional = bool(model.config.labels)
        self._device = next(model.parameters()).device.type
        self._rate = model.config.sample_rate or 1
        self._codec, self._clips, self._length, self._drawing, self._show = codec, clips, length, drawing, show
        self._prompt = np.zeros(0, dtype=np.uint8) if prompt is None else prompt
        self._done = 0
        self.took = 0.0

    def whole(self) -> Iterator[Made]:
        """Yield the clips in order."""
        size = AT_ONCE[self._device] // self._drawing.rows
        for first in range(0, len(self._clips), size):
            clips = self._clips[first : first + size]
            found = list(self._batch(clips))
            levels = np.concatenate([each[0] for each in found], axis=1)
            likelihood = np.concatenate([each[1] for each in found], axis=1)
            for clip, own, log_p in zip(clips, levels, likelihood, strict=True):
                yield self._made(clip, own, log_p)

    def stream(self) -> Iterator[Made]:
        """Do the same, and write the samples to standard output; a single clip piece by piece, as it is made."""
        if len(self._clips) > 1:
            for made in self.whole():
                _write(made.samples)
                yield made
            return
        _write(self._codec.decode(self._prompt))
        found = []
        for levels, likelihood in self._batch(self._clips):
            _write(self._codec.decode(levels[0]))
            found.append((levels[0], likelihood[0]))
        levels, likelihood = (np.concatenate(each) for each in zip(*found, strict=True))
        yield self._made(self._clips[0], levels, likelihood)

    def _batch(self, clips: list[Clip]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield levels and log-probabilities (B, n) of the samples behind the prompt, piece after piece."""
        began = time.monotonic()
        labels = [clip.label for clip in clips] if self._conditional else None
        prompt = torch.from_numpy(self._prompt.astype(np.int64))
        engine = self._decoder.start([clip.number for clip in clips], self._drawing, labels, prompt)
        left = self._length - len(self._prompt)
        self._done += len(self._prompt) * len(clips)
        total = len(self._clips) * self._length
        while left:
            count = min(left, PIECE[self._device])
            levels, likelihood = engine.advance(count)
            left -= count
            self._done += count * len(clips)
            piece = levels.cpu().numpy(), likelihood.cpu().numpy()
            took = self.took + time.monotonic() - began
            speed = self._done / self._rate / max(took, 1e-9)
            self._show(f"{self._done / self._rate:.1f} s of sound, {speed:.2f} times real time", self._done / total)
            yield piece
        self.took += time.monotonic() - began

    def _made(self, clip: Clip, levels: np.ndarray, likelihood: np.ndarray) -> Made:
        samples = self._codec.decode(np.concatenate([self._prompt, levels]))
        nats = float(likelihood.sum(dtype=np.float64))
        return Made(clip, samples, nats, bits_per_sample(-nats / len(levels)), float(np.abs(samples).max()))


class Places:
    """Where files go: beside, and at the end of a with block that does not raise to their names."""

    def __init__(self, request: AudioRequest, form: str) -> None:
        self._request, self._form = request, form
        self._stack = contextlib.ExitStack()
        self._rows: list[list[str]] = []
        self._page: list[bytes] = []
        self._beside: Path | None = None
        self._made_folder: list[Path] = []

    def __enter__(self) -> "Places":
        output, gallery = self._request.output, self._request.gallery
        try:
            if output not in (STDOUT, "") and not self._request.is_file:
                self._make_folder(Path(output))
            if output == STDOUT or self._request.is_file:
                check_output(output, () if self._request.prompt is None else (self._request.prompt,))
            if gallery is not None:
                check_output(gallery)
                if gallery == STDOUT and output == STDOUT:
                    raise OutputError("clips and gallery are both to go to standard output; name a file for one")
        except BaseException:
            self._forget_folder()
            raise
        return self

    def name(self, clip: Clip) -> str:
        """Return what the table calls the file of a clip."""
        if self._request.output == STDOUT:
            return clip.name
        return Path(self._request.output).name if self._request.is_file else f"{clip.name}.{self._form}"

    def put(self, clip: Clip, sound: bytes, row: list[str]) -> None:
        """Take a clip."""
        self._rows.append(row)
        if self._request.output == STDOUT:
            return
        if self._request.is_file:
            with open_output(self._request.output) as sink:
                sink.write(sound)
            return
        assert self._beside is not None
        self._write(self._beside / self.name(clip), sound)

    def page(self, page: bytes) -> None:
        """Take the gallery."""
        self._page.append(page)

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self._appear()
        finally:
            self._stack.close()
            if kind is not None:
                self._forget_folder()

    def _appear(self) -> None:
        if self._beside is not None:
            lines = ["\t".join(row) for row in [list(COLUMNS), *self._rows]]
            self._write(self._beside / TABLE, ("\n".join(lines) + "\n").encode())
            for file in sorted(self._beside.iterdir(), key=lambda file: file.name == TABLE):
                file.replace(Path(self._request.output) / file.name)
        if self._page:
            assert self._request.gallery is not None
            with open_output(self._request.gallery) as sink:
                sink.write(self._page[0])

    def _make_folder(self, folder: Path) -> None:
        try:
            for each in [folder, *folder.parents]:
                if each.exists():
                    break
                self._made_folder.append(each)
            folder.mkdir(parents=True, exist_ok=True)
            beside = tempfile.TemporaryDirectory(dir=folder, prefix=".clips.", suffix=".part")
        except FileExistsError as error:
            raise OutputError(
                f"cannot write the folder {folder}: it is a file; name a folder, or a file as clip.wav"
            ) from error
        except OSError as error:
            raise OutputError(f"cannot write the folder {folder}: {(error.strerror or str(error)).lower()}") from error
        self._beside = Path(self._stack.enter_context(beside))

    def _forget_folder(self) -> None:
        self._stack.close()
        with contextlib.suppress(OSError):
            for folder in self._made_folder:  # those that are empty, innermost first
                folder.rmdir()

    def _write(self, path: Path, data: bytes) -> None:
        try:
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self._request.output}: {(error.strerror or str(error)).lower()}"
            ) from error


def _write(samples: Samples) -> None:
    """Write samples to standard output, 16 bits each, little-endian."""
    pcm, beyond = to_pcm(samples)
    if beyond and len(samples):
        log.warning("%d samples were beyond full scale and are cut off", beyond)
    left = memoryview(pcm.tobytes())
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()
