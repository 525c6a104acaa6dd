"""Clips as sound files: WAV, FLAC, Ogg Vorbis, Opus and MP3, in 16 bits or what a format makes of them."""

import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_seq.data_prep.codecs import Samples
from mamba_seq.pipelines.errors import OutputError

FORMATS = {
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "ogg": ("OGG", "VORBIS", "audio/ogg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
}
"""libsndfile's names of format and subtype, and the media type."""
RATES = {
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
"""Samples a second, of formats that do not take all."""
FULL = 32767


def format_of(name: str) -> str | None:
    """Return the format that a file's suffix names, or None."""
    suffix = Path(name).suffix.lower().removeprefix(".")
    return suffix if suffix in FORMATS else None


def check_rate(form: str, sample_rate: int) -> None:
    """Refuse a format that has no such rate.

    Raises:
        OutputError: with the rates that it has.
    """
    rates = RATES.get(form, (sample_rate,))
    if sample_rate not in rates:
        raise OutputError(
            f"the model makes {sample_rate} samples a second, and {form} has {', '.join(map(str, rates))}; take "
            "another --format, such as flac"
        )


def to_pcm(samples: Samples) -> tuple[NDArray[np.int16], int]:
    """Round amplitudes (L,) to 16 bits; also return how many were beyond full scale, and cut off."""
    beyond = int(np.count_nonzero(np.abs(samples) > 1))
    return np.rint(np.clip(samples, -1, 1).astype(np.float64) * FULL).astype("<i2"), beyond


def encode(pcm: NDArray[np.int16], sample_rate: int, form: str) -> bytes:
    """Return the bytes of a sound file of samples (L,)."""
    kind, subtype, _ = FORMATS[form]
    sink = io.BytesIO()
    soundfile.write(sink, pcm, sample_rate, subtype=subtype, format=kind)
    return sink.getvalue()
