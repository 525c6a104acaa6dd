"""Sound files to mono samples at the rate of a model: any stretch of them, read by seeking.

WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF and more, through libsndfile, which comes with soundfile; resampling by soxr.

Shapes: L samples.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from mamba_seq.data_prep.codecs import Samples
from mamba_seq.data_prep.errors import BadAudio, UnreadableFile

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".rf64", ".caf")
BLOCK = 1 << 18  # frames that are decoded at a time: a file of hours and many channels is never in memory whole
MARGIN = 256  # samples beyond either end of a stretch that its resampling hears
MP3_RESERVOIR = 24 * 1152  # frames before a stretch of an MP3 that may hold its bits: without them it is silent
SHORTFALL = 4608  # frames, four of MP3's blocks, by which a file may end before its header says


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a file says.

    Args:
        frames: Samples of each channel.
        sample_rate: Samples a second.
        channels: Number of channels.
    """

    frames: int
    sample_rate: int
    channels: int

    def length(self, sample_rate: int) -> int:
        """Number of samples at another rate, rounded."""
        return (2 * self.frames * sample_rate + self.sample_rate) // (2 * self.sample_rate)


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read a file's header.

    Raises:
        UnreadableFile: It is missing, a folder, or may not be read.
        BadAudio: It is no sound, or has no samples.
    """
    with _open(Path(path)) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def read_audio(path: str | os.PathLike[str], sample_rate: int, start: int = 0, length: int | None = None) -> Samples:
    """Read a stretch of a file: its channels' mean, at `sample_rate`.

    A stretch is the same as cut out of the whole, to the accuracy of the resampling.

    Args:
        path: The file.
        sample_rate: Samples a second of what is returned, and of `start` and `length`.
        start: The first sample.
        length: Number of samples, cut off at the end of the file; all that follow by default.

    Returns:
        (L,) float32. Amplitudes beyond 1 are as they are in files of floating-point samples.

    Raises:
        UnreadableFile: The file is missing, a folder, or may not be read.
        BadAudio: It is no sound, is damaged or cut off, has no samples, or samples that are NaN or infinite.
        ValueError: The stretch begins outside the file.
    """
    path = Path(path)
    with _open(path) as file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
        whole = info.length(sample_rate)
        if not 0 <= start <= whole or (length is not None and length < 0):
            raise ValueError(f"samples from {start}, {length} of them, came; {path} has {whole} at {sample_rate} Hz")
        length = whole - start if length is None else min(length, whole - start)
        if not length:
            return np.zeros(0, dtype=np.float32)
        # stretches begin where a frame of the file and a sample at the new rate fall together
        common = math.gcd(info.sample_rate, sample_rate)
        frames_each, samples_each = info.sample_rate // common, sample_rate // common
        margin = 0 if frames_each == samples_each else MARGIN
        unit = max(0, start - margin) // samples_each
        first = unit * frames_each
        last = min(info.frames, -(-(start + length + margin) * info.sample_rate // sample_rate))
        try:
            samples = _mono(file, path, first, last, sample_rate)
        except soundfile.LibsndfileError as error:
            raise BadAudio(f"{path} is damaged: {_reason(error)}; a sound file was expected") from error
    samples = samples[start - unit * samples_each :][:length]
    return np.pad(samples, (0, length - len(samples))) if len(samples) < length else samples


def _mono(file: soundfile.SoundFile, path: Path, first: int, last: int, sample_rate: int) -> Samples:
    """Decode frames `first` to `last`, mix and resample them, block after block."""
    rate = file.samplerate
    stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    parts: list[Samples] = []
    at = first
    while at < last:
        # soundfile seeks after every read, and after a seek an MP3 lacks the bits that blocks before it hold
        early = min(at, MP3_RESERVOIR) if file.format == "MP3" else 0
        if file.tell() != at - early:
            file.seek(at - early)
        block = file.read(early + min(BLOCK, last - at), dtype="float32", always_2d=True)[early:]
        if not len(block):
            if last - at > SHORTFALL or not at - first:
                raise BadAudio(f"{path} ends after {at} of {file.frames} frames; copy or download the file again")
            break
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float64).astype(np.float32)
        if not np.isfinite(mono).all():
            bad = int((~np.isfinite(mono)).argmax())
            raise BadAudio(f"{path} has {mono[bad]} at frame {at + bad}; finite amplitudes were expected")
        at += len(block)
        parts.append(mono if stream is None else stream.resample_chunk(mono, last=at >= last))
    if stream is not None and at < last:
        parts.append(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return np.concatenate(parts)


def _open(path: Path) -> soundfile.SoundFile:
    try:
        if path.is_dir():
            raise UnreadableFile(f"{path} is a folder, a sound file was expected")
        with path.open("rb") as file:  # the system's words for what is not there
            if not file.read(1):
                raise BadAudio(f"{path} is empty, a sound file was expected")
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}") from error
    try:
        opened = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise BadAudio(f"{path} is not sound: {_reason(error)}; WAV, FLAC, Ogg, Opus or MP3 was expected") from error
    if opened.frames <= 0 or opened.samplerate <= 0:
        opened.close()
        raise BadAudio(f"{path} has no samples")
    return opened


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.removeprefix("Error : ").rstrip(".")
