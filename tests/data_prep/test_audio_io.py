"""Sound files of every format, rate and size, and what is none."""

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_seq.data_prep import audio_io
from mamba_seq.data_prep.audio_io import audio_info, read_audio
from mamba_seq.data_prep.errors import BadAudio, UnreadableFile

FORMATS = {
    "wav": {"subtype": "PCM_16"},
    "flac": {"subtype": "PCM_24"},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
    "aiff": {},
}
LOSSLESS = ("wav", "flac", "aiff")


def tone(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * math.pi * hz * np.arange(round(seconds * rate)) / rate)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, samples: np.ndarray, rate: int, **options: str) -> Path:
        path = tmp_path / name
        soundfile.write(path, samples, rate, **{**FORMATS.get(path.suffix[1:], {}), **options})
        return path

    return make


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format(write: Write, suffix: str) -> None:
    x = tone(0.5, 48000)
    path = write(f"a.{suffix}", x, 48000)
    assert audio_info(path).length(16000) == 8000
    got = read_audio(path, 48000)
    assert got.dtype == np.float32
    assert got.shape == (24000,)
    # Opus ends in a few samples of its own
    assert np.abs(got - x)[:-300].max() < (1e-4 if suffix in LOSSLESS else 0.1)
    # a stretch is the whole, cut out
    assert np.abs(read_audio(path, 48000, 7001, 2049) - got[7001 : 7001 + 2049]).max() < 1e-6


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44101, 48000, 192000])
def test_resampling(write: Write, rate: int) -> None:
    """A tone stays one, of the same height and loudness, and a stretch is the whole cut out."""
    path = write("a.wav", tone(1.6, rate), rate, subtype="FLOAT")
    got = read_audio(path, 16000)
    assert got.shape == (25600,)
    assert np.abs(got - tone(1.6, 16000))[200:-200].max() < 2e-3
    for start, length in [(0, 63), (1, 1000), (17001, 2049), (25599, 500), (25600, 5)]:
        part = read_audio(path, 16000, start, length)
        assert part.shape == (min(length, 25600 - start),)
        if len(part):
            assert np.abs(part - got[start : start + length]).max() < 1e-4


def test_channels_are_mixed(write: Write) -> None:
    x = np.stack([np.full(100, 0.1 * i) for i in range(8)], axis=1)
    path = write("a.wav", x, 192000, subtype="PCM_24")
    assert audio_info(path).channels == 8
    assert read_audio(path, 192000) == pytest.approx(np.full(100, 0.35), abs=1e-5)


@pytest.mark.parametrize("suffix", FORMATS)
def test_blocks_make_no_difference(write: Write, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = write(f"a.{suffix}", np.stack([tone(1, 48000), tone(1, 48000, 1000)], axis=1), 48000)
    whole = read_audio(path, 16000)
    monkeypatch.setattr(audio_io, "BLOCK", 7001)
    assert np.abs(read_audio(path, 16000) - whole).max() < 1e-6


def three_hours(path: Path, rate: int, channels: int) -> None:
    """Write a sparse file, 24 bits a sample, silent but for a tenth of a second two hours into it."""
    at, frame = 2 * 3600 * rate, 3 * channels
    with path.open("wb") as file:
        # a header of AU knows files of more than 4 GB: "to the end"
        file.write(struct.pack(">4sIIIII", b".snd", 24, 0xFFFFFFFF, 4, rate, channels))
        file.seek(24 + at * frame)
        file.write((b"\x20\x00\x00" * channels) * (rate // 10))
        file.truncate(24 + 3 * 3600 * rate * frame)


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (192000, 8)])
def test_three_hours_are_read_by_seeking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, channels: int
) -> None:
    path = tmp_path / "long.au"
    three_hours(path, rate, channels)
    decoded: list[int] = []
    read = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, frames: int, **options: object) -> np.ndarray:
        decoded.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    info = audio_info(path)
    assert (info.channels, info.sample_rate, info.length(16000)) == (channels, rate, 3 * 3600 * 16000)
    got = read_audio(path, 16000, 2 * 3600 * 16000 - 800, 1600 + 800)
    assert sum(decoded) < 0.3 * rate
    assert np.abs(got[:600]).max() < 1e-2
    assert got[1000:2200] == pytest.approx(np.full(1200, 0.25), abs=1e-3)


def damaged(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\x00" * 100 + data[len(data) // 2 + 200 :])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("a.wav", lambda path: path.write_bytes(b""), "is empty, a sound file was expected"),
        (
            "a.wav",
            lambda path: path.write_bytes(b"RIFF nothing" * 9),
            "is not sound: .*WAV, FLAC, Ogg, Opus or MP3 was",
        ),
        ("a.wav", lambda path: path.write_bytes(path.read_bytes()[:44]), "has no samples"),
        ("a.flac", damaged, "is damaged: .*flac"),
        ("a.flac", lambda path: path.write_bytes(path.read_bytes()[:5000]), "is (damaged|not sound): .*flac"),
        ("a.mp3", lambda path: path.write_bytes(path.read_bytes()[:2000]), r"ends after \d+ of 24000 frames"),
    ],
)
def test_damaged_files_are_named(write: Write, name: str, spoil: Callable[[Path], None], message: str) -> None:
    path = write(name, np.random.default_rng(0).uniform(-0.5, 0.5, 24000), 48000)
    spoil(path)
    with pytest.raises(BadAudio, match=rf"{name} {message}"):
        read_audio(path, 16000)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_no_numbers(write: Write, bad: float) -> None:
    x = tone(0.1, 16000)
    x[77] = bad
    path = write("a.wav", x, 16000, subtype="FLOAT")
    with pytest.raises(BadAudio, match=f"has {bad} at frame 77; finite amplitudes were expected"):
        read_audio(path, 16000)


def test_what_is_not_there(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UnreadableFile, match=r"none\.wav cannot be read: No such file"):
        audio_info(tmp_path / "none.wav")
    with pytest.raises(UnreadableFile, match="is a folder, a sound file was expected"):
        read_audio(tmp_path, 16000)
    path = write("a.wav", tone(0.1, 16000), 16000)
    with pytest.raises(ValueError, match=r"samples from 1601, None of them, came; .*a\.wav has 1600 at 16000 Hz"):
        read_audio(path, 16000, 1601)


def test_a_single_frame(write: Write) -> None:
    path = write("a.wav", np.array([0.5]), 48000)
    assert read_audio(path, 48000).tolist() == [0.5]
    assert read_audio(path, 16000).tolist() == []
