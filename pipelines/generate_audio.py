"""Clips of sound from a language model of levels, batch after batch.

A clip is a function of the model, its class, the prompt, how it is drawn, the seed and its index.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from mamba_seq.counted import Drawing
from mamba_seq.data_prep.codecs import Codec, Levels, Samples, bits_per_sample, get_codec
from mamba_seq.heads import LanguageModel
from mamba_seq.pipelines.audio_request import AudioRequest, Clip, chosen_clips, clip_length, read_prompt
from mamba_seq.pipelines.clip_places import COLUMNS, Places
from mamba_seq.pipelines.errors import OutputError, RequestError
from mamba_seq.pipelines.gallery import Gallery
from mamba_seq.pipelines.output import STDOUT
from mamba_seq.pipelines.sound_files import check_rate, encode, to_pcm
from mamba_seq.waveform_decoding import WaveformDecoder, with_guidance

log = logging.getLogger("mamba_seq.pipelines")

AT_ONCE = {"cpu": 64, "cuda": 1024}
"""Rows of a batch: clips, or of guided ones half as many."""
PIECE = {"cpu": 800, "cuda": 3200}
"""Samples of every clip between two looks at the progress."""


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
    form = request.form
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
    with Places(request) as places:
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


def _write(samples: Samples) -> None:
    """Write samples to standard output, 16 bits each, little-endian."""
    pcm, beyond = to_pcm(samples)
    if beyond and len(samples):
        log.warning("%d samples were beyond full scale and are cut off", beyond)
    left = memoryview(pcm.tobytes())
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()
