"""Batches of clips: the same whoever makes them, short ones filled up, damaged files left out."""

import itertools
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mamba_seq.data_prep.audio import AudioData, AudioDataConfig
from mamba_seq.data_prep.audio_augment import Variation
from mamba_seq.data_prep.audio_clips import AudioBatch, inputs_and_targets
from mamba_seq.data_prep.audio_trim import trimmed
from mamba_seq.data_prep.codecs import get_codec
from mamba_seq.data_prep.errors import NoRecords, TooFewData
from mamba_seq.data_prep.splits import SPLITS

RATE = 8000
DATA = os.environ.get("MAMBA_SEQ_DATA")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Clips of 0.05 to 0.3 s, each a ramp of its own, of two digits and three speakers."""
    root = tmp_path / "digits"
    root.mkdir()
    for i, (digit, speaker, n) in enumerate(itertools.product((0, 7), ("ann", "bob", "cy"), (0, 5, *range(10, 16)))):
        frames = 400 + 12 * i
        soundfile.write(root / f"{digit}_{speaker}_{n}.wav", np.linspace(-0.5, 0.5, frames), RATE)
    return root


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Four files of 5000 samples, in which the sample is the place."""
    root = tmp_path / "music"
    root.mkdir()
    for i in range(4):
        soundfile.write(root / f"{i}.wav", np.arange(5000) / 5000, RATE, subtype="FLOAT")
    return root


def data(root: Path, **fields: Any) -> AudioData:
    config = {"roots": [str(root)], "sample_rate": RATE, "length": 1000, "batch_size": 4, **fields}
    made = AudioData(AudioDataConfig(**config))
    made.setup()
    return made


def first(data: AudioData, steps: int) -> list[AudioBatch]:
    return list(itertools.islice(data.train_dataloader(), steps))


def same(a: list[AudioBatch], b: list[AudioBatch]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def test_classes_and_short_clips(digits: Path) -> None:
    made = data(digits)
    assert made.labels == ["zero", "seven"]
    for batch in first(made, 9):
        assert batch.levels.shape == (4, 1000)
        assert batch.levels.dtype == torch.uint8
        for row, length, label in zip(*batch, strict=True):
            assert (row[:length] == 0).any()  # each clip fills the range by itself, from the lowest level
            assert row[length - 1] == 255
            assert (row[length:] == 128).all()
            assert (length >= 400 + 12 * 24) == bool(label)
    inputs, targets = inputs_and_targets(batch, 128)
    assert (inputs[:, 0] == 128).all()
    for row, given, wanted, length in zip(batch.levels, inputs, targets, batch.lengths, strict=True):
        assert torch.equal(given[1:], row[:-1].long())
        assert torch.equal(wanted[:length], row[:length].long())
        assert (wanted[length:] == -100).all()


def test_the_silence_after_a_clip_is_learnt_if_asked_for(digits: Path) -> None:
    made, plain = data(digits, learn_end=True), data(digits)
    for batch, without in zip(first(made, 3), first(plain, 3), strict=True):
        assert torch.equal(batch.levels, without.levels)
        assert torch.equal(inputs_and_targets(batch, 128)[1], batch.levels.long())
    held_out = [next(iter(each.val_dataloader())) for each in (made, plain)]
    assert same(held_out[:1], held_out[1:])


def test_a_pass_reads_every_file_once(digits: Path) -> None:
    made = data(digits, batch_size=1)
    training = len(made.splits.of("train"))
    assert training == 36
    lengths = [int(batch.lengths) for batch in first(made, 2 * training)]
    assert len(set(lengths[:training])) == training
    assert set(lengths[:training]) == set(lengths[training:])
    assert lengths[:training] != lengths[training:]


@pytest.mark.parametrize("draw", ["file", "length", "label"])
def test_a_batch_is_a_function_of_its_step(digits: Path, draw: str) -> None:
    want = first(data(digits, draw=draw), 6)
    assert same(first(data(digits, draw=draw, workers=2), 6), want)
    assert same(first(data(digits, draw=draw, cache="disk"), 6), want)
    late = data(digits, draw=draw)
    late.start_step = 4
    assert same(first(late, 2), want[4:])
    assert not same(first(data(digits, draw=draw, seed=1), 6), want)
    halves = [data(digits, draw=draw, batch_size=2).training_batches(rank=rank, world_size=2) for rank in (0, 1)]
    both = [torch.cat([half.batch(step).levels for half in halves]) for step in range(6)]
    assert all(torch.equal(got, batch.levels) for got, batch in zip(both, want, strict=True))


def test_classes_are_left_out_of_some_training_clips_alone(digits: Path) -> None:
    whole, some = data(digits), data(digits, label_dropout=0.5)
    batches = first(whole, 20), first(some, 20)
    told = torch.cat([batch.labels for batch in batches[0]])
    found = torch.cat([batch.labels for batch in batches[1]])
    assert all(torch.equal(a.levels, b.levels) for a, b in zip(*batches, strict=True))
    assert torch.equal(found[found >= 0], told[found >= 0])
    assert 0.3 < (found < 0).float().mean() < 0.7
    # the same again, from wherever a run goes on
    assert torch.equal(next(iter(some.training_batches(start_step=7))).labels, batches[1][7].labels)
    clips = some.evaluation_clips("train")
    assert all(clips[i].label >= 0 for i in range(len(clips)))


def test_training_clips_differ_from_their_recordings_if_asked_for(digits: Path, music: Path) -> None:
    plain = data(digits)
    for fields in ({"speed": 0.2}, {"flip": True}, {"skip": 100}):
        varied = data(digits, **fields)
        want, found = first(plain, 20), first(varied, 20)
        assert same(first(varied, 20), found)
        assert same(first(data(digits, **fields, cache="disk", workers=2), 20), found)
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(want, found, strict=True))  # of the same files
        ratios = torch.cat([b.lengths / a.lengths for a, b in zip(want, found, strict=True)])
        if "speed" in fields:
            assert 0.82 < ratios.min() < 0.9
            assert 1.1 < ratios.max() < 1.21
        elif "skip" in fields:
            left = torch.cat([a.lengths - b.lengths for a, b in zip(want, found, strict=True)])
            assert left.min() < 10
            assert 90 < left.max() <= 100
        else:
            assert (ratios == 1).all()
            # each is a ramp, upwards or downwards
            rising = torch.cat([batch.levels[:, 300].int() > batch.levels[:, 0].int() for batch in found])
            assert 0.3 < rising.float().mean() < 0.7
        assert (varied.evaluation_clips("train")[3].levels == plain.evaluation_clips("train")[3].levels).all()
    # a stretch of a longer recording is made of as much of it as it needs, and its beginning is anywhere already
    (batch,) = first(data(music, split="file", draw="length", speed=0.1, skip=500, batch_size=16), 1)
    assert (batch.lengths[batch.lengths < 1000] >= 900).all()
    assert (batch.lengths == 1000).sum() > 8


@pytest.mark.parametrize(("speed", "frequency"), [(1.1, 550), (0.8, 400)])
def test_faster_is_higher(speed: float, frequency: float) -> None:
    variation = Variation(speed)
    tone = np.sin(2 * np.pi * 500 * np.arange(variation.needs(8000)) / 16000).astype(np.float32)
    clip = variation.of(tone, 8000)
    assert clip.dtype == np.float32
    assert len(clip) == 8000
    assert np.abs(np.fft.rfft(clip * np.hanning(8000))).argmax() * 2 == frequency
    assert len(variation.of(tone[:0], 8000)) == 0
    assert len(Variation(skip=10).of(tone[:4], 8000)) == 2


def test_words_are_trimmed_to_their_sound() -> None:
    rate = 16000
    rng = np.random.default_rng(0)
    room = rng.normal(0, 0.002, rate).astype(np.float32)
    word = room.copy()
    word[4000:9600] += np.sin(np.arange(5600) * 0.2).astype(np.float32)
    found = trimmed(word, rate)
    assert np.array_equal(found, word[4000 - 480 : 9600 + 1600])
    # a quiet beginning, 25 dB below the rest, belongs to it; without a room the threshold is 20 dB below
    word[3200:4000] += 0.056 * np.sin(np.arange(800) * 0.2).astype(np.float32)
    assert len(trimmed(word, rate)) == 6400 + 480 + 1600
    assert len(trimmed(word[3200:9600], rate)) == 5600 + 480
    # a click and a constant are no sound; a burst that belongs to a word is
    word = room.copy()
    word[6080:9280] += np.sin(np.arange(3200) * 0.2).astype(np.float32)
    for place, begins in ((160, 6080), (4800, 4800)):
        clicked = word + np.float32(0.2)
        clicked[place : place + 40] += 1
        assert np.array_equal(trimmed(clicked, rate), clicked[begins - 480 : 9280 + 1600])
    for whole in (room, 0 * room, word[:100], word[:0]):
        assert np.array_equal(trimmed(whole, rate), whole)
    assert trimmed(np.ones(800, np.float32), 8000).size == 800


def test_clips_may_be_trimmed(digits: Path, music: Path, tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    padded.mkdir()
    for path in digits.iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(padded / path.name, np.pad(samples, (rate // 2, rate // 4)), rate)
    fields = {"length": 8000, "codec": "linear-16bit-gain"}
    made = data(padded, trim=True, **fields)
    before, after = round(0.03 * RATE), round(0.1 * RATE)
    for plain, found in zip(first(data(digits, **fields), 3), first(made, 3), strict=True):
        spare = found.lengths - plain.lengths - before - after
        assert (spare.abs() <= 2 * RATE // 100).all(), spare  # whole frames
        assert torch.equal(plain.labels, found.labels)
    longest = max(len(made.evaluation_clips("test")[i].levels) for i in range(6))
    assert longest < min(made.sounds.lengths) - before - after
    # a stretch of a longer recording is any
    assert same(first(data(music, split="file", trim=True), 3), first(data(music, split="file"), 3))


def test_chunks_of_long_files(music: Path) -> None:
    for cache in ("memory", "disk"):
        made = data(music, split="file", draw="length", cache=cache, codec="linear-16bit-gain", batch_size=8)
        batch = first(made, 1)[0]
        assert (batch.labels == -1).all()
        assert (batch.lengths == 1000).all()
        assert batch.levels.dtype == torch.int32
        amplitudes = get_codec("linear-16bit-gain").decode(batch.levels.numpy())
        starts = amplitudes[:, 0] * 5000
        assert len(np.unique(np.round(starts))) == 8
        assert np.abs(amplitudes - (starts[:, None] + np.arange(1000)) / 5000).max() < 1e-3


def test_evaluation_reads_files_from_end_to_end(music: Path) -> None:
    made = data(music, split="file", test_files=["0.wav"], validation_files=["1.wav"], length=1500, validation_clips=2)
    clips = made.evaluation_clips("test")
    assert [start for _, start in clips.pieces] == [0, 1500, 3000, 4500]
    assert [len(clips[i].levels) for i in range(4)] == [1500, 1500, 1500, 500]
    assert clips.source(0) == "music"
    (batch,) = made.test_dataloader()
    assert batch.lengths.tolist() == [1500, 1500, 1500, 500]
    assert len(made.val_dataloader().dataset) == 2
    assert made.evaluation_clips("validation", 2).pieces == made.evaluation_clips("validation", 2).pieces


def spoil(digits: Path) -> None:
    for speaker in ("ann", "bob"):
        bad = np.linspace(-0.5, 0.5, 500)
        bad[300] = math.nan
        soundfile.write(digits / f"0_{speaker}_20.wav", bad, RATE, subtype="FLOAT")
    soundfile.write(digits / "7_cy_20.flac", np.random.default_rng(0).uniform(-1, 1, 5000), RATE)
    whole = (digits / "7_cy_20.flac").read_bytes()
    (digits / "7_cy_20.flac").write_bytes(whole[: len(whole) // 2])
    (digits / "7_cy_21.wav").write_bytes(b"")


def test_damaged_files_in_memory_are_found_before_training(digits: Path, caplog: pytest.LogCaptureFixture) -> None:
    want = first(data(digits, cache="memory"), 4)
    spoil(digits)
    with caplog.at_level(logging.WARNING):
        made = data(digits, cache="memory")
    assert sorted(each.path.name for each in made.skipped) == [
        "0_ann_20.wav",
        "0_bob_20.wav",
        "7_cy_20.flac",
        "7_cy_21.wav",
    ]
    assert "3 sound files cannot be used and are left out:" in caplog.messages
    assert "0_ann_20.wav has nan at frame 300" in caplog.text
    assert same(first(made, 4), want)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_on_disk_stop_no_worker(digits: Path, caplog: pytest.LogCaptureFixture, workers: int) -> None:
    spoil(digits)
    made = data(digits, cache="disk", workers=workers, batch_size=8)
    batches = first(made, 15)
    assert all(batch.lengths.min() > 0 for batch in batches)
    assert same(batches, first(data(digits, cache="disk", batch_size=8), 15))
    assert {file.path.name for file in made.sounds.damaged} == {"0_ann_20.wav", "0_bob_20.wav", "7_cy_20.flac"}
    if not workers:
        told = [message for message in caplog.messages if message.startswith("left out from now on")]
        assert (len(told), len({*told})) == (6, 3)  # each file once by each of the two


def test_a_piece_that_cannot_be_read_has_no_target(music: Path) -> None:
    soundfile.write(music / "0.wav", np.full(5000, math.nan), RATE, subtype="FLOAT")
    made = data(music, split="file", test_files=["0.wav"], validation_files=["1.wav"], cache="disk")
    for batch in made.test_dataloader():
        assert (batch.lengths == 0).all()
        assert (inputs_and_targets(batch, 128)[1] == -100).all()


def test_when_nothing_can_be_read(music: Path) -> None:
    for path in music.iterdir():
        soundfile.write(path, np.full(5000, math.nan), RATE, subtype="FLOAT")
    with pytest.raises(TooFewData, match="none of the 4 sound files can be read"):
        data(music, split="file", cache="memory")
    with pytest.raises(TooFewData, match="100 sound files in a row could not be read"):
        first(data(music, split="file", cache="disk"), 1)


def test_classes_can_be_chosen(digits: Path) -> None:
    made = data(digits, labels=["seven"])
    assert made.labels == ["seven"]
    assert {file.label for file in made.sounds.files} == {"seven"}
    with pytest.raises(TooFewData, match="no sound file is of class 'three'; there are zero, seven"):
        data(digits, labels=["three"])


def test_collections_together(digits: Path, music: Path, tmp_path: Path) -> None:
    made = data(digits, roots=[str(digits), str(music)], split="file", sample_rate=4000)
    assert made.labels == ["zero", "seven"]
    assert {file.source for file in made.sounds.files} == {"digits", "music"}
    assert made.sounds.lengths.max() == 2500
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "digits").symlink_to(digits)
    with pytest.raises(ValueError, match=r"two of data\.roots are named 'digits'"):
        data(digits, roots=[str(digits), str(digits)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRecords, match="has no sound file"):
        data(tmp_path / "empty")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("roots", [], r"data\.roots is empty"),
        ("length", 0, r"data\.length is 0, expected at least 1"),
        ("test_fraction", 1.0, r"data\.test_fraction is 1\.0, expected 0 or more, below 1"),
        ("codec", "vinyl", "unknown codec 'vinyl'"),
        ("labels", ["a", "a"], "has a name twice"),
        ("workers", -1, r"data\.workers is -1"),
        ("skip", -1, r"data\.skip is -1"),
        ("speed", 1.0, r"data\.speed is 1\.0, expected 0 or more, below 1"),
    ],
)
def test_bad_configs_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioDataConfig(**{"roots": ["x"], field: value})


@pytest.mark.skipif(DATA is None, reason="MAMBA_SEQ_DATA names no folder of real recordings")
def test_real_recordings() -> None:
    assert DATA is not None
    roots = [str(Path(DATA) / name) for name in ("digits16k", "digits8k")]
    spoken = AudioData(AudioDataConfig(roots=roots, batch_size=64))
    spoken.setup()
    assert not spoken.skipped
    assert (len(spoken.sounds.files), len(spoken.labels)) == (4999, 10)
    speakers = {split: {f.speaker for f in spoken.splits.of(split) if f.source == "digits16k"} for split in SPLITS}
    assert not speakers["train"] & speakers["validation"]
    (batch,) = first(spoken, 1)
    assert batch.lengths.max() <= 16000
    assert len(batch.labels.unique()) > 4
    assert ((batch.levels == 0).any(dim=1) & (batch.levels == 255).any(dim=1)).all()
    piano = AudioData(AudioDataConfig(roots=[str(Path(DATA) / "piano16k")], split="file", draw="length", cache="disk"))
    piano.setup()
    assert len(piano.sounds.files) == 15
    assert (first(piano, 1)[0].lengths == 16000).all()
