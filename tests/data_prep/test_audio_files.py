"""Collections of sound files: their layouts, classes, speakers and splits, and files that are left out."""

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_seq.data_prep.audio_files import DIGITS, find_audio, hash_split, in_order
from mamba_seq.data_prep.audio_splits import split_audio
from mamba_seq.data_prep.errors import NoRecords, TooFewData, UnreadableFile


def clip(path: Path, frames: int = 80, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(frames, 0.1), rate)
    return path


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    root = tmp_path / "speech_commands_v0.02"
    for word in ("one", "zero", "backward"):
        for speaker in ("0a7c2a8d", "ffd2ba2f", "bbbbbbbb"):
            clip(root / word / f"{speaker}_nohash_0.wav")
    clip(root / "_background_noise_" / "white_noise.wav")
    (root / "README.md").write_text("the data set's")
    return root


def test_speech_commands_with_lists(commands: Path) -> None:
    (commands / "validation_list.txt").write_text("one/0a7c2a8d_nohash_0.wav\n")
    (commands / "testing_list.txt").write_text("zero/0a7c2a8d_nohash_0.wav\none/ffd2ba2f_nohash_0.wav\n")
    files, skipped = find_audio(commands)
    assert not skipped
    assert len(files) == 9  # no background noise
    assert {f.file: f.split for f in files if f.split != "train"} == {
        "one/0a7c2a8d_nohash_0.wav": "validation",
        "zero/0a7c2a8d_nohash_0.wav": "test",
        "one/ffd2ba2f_nohash_0.wav": "test",
    }
    assert {f.speaker for f in files} == {"0a7c2a8d", "ffd2ba2f", "bbbbbbbb"}
    assert {f.label for f in files} == {"one", "zero", "backward"}
    (commands / "testing_list.txt").unlink()
    with pytest.raises(UnreadableFile, match=r"has validation_list\.txt and no testing_list\.txt; bring it back"):
        find_audio(commands)


def test_speech_commands_by_hash(commands: Path) -> None:
    files, _ = find_audio(commands)
    assert all(f.split == hash_split(f.file) for f in files)
    # one speaker, one split
    assert len({(f.speaker, f.split) for f in files}) == 3


def test_the_hash_is_the_published_one() -> None:
    """Lines of the lists of Speech Commands: the hash of the speaker puts them there."""
    for speaker, split in {
        "026290a7": "validation",
        "060cd039": "validation",
        "0c40e715": "test",
        "0ea0e2f4": "test",
    }.items():
        assert hash_split(f"{speaker}_nohash_0.wav") == split
    assert hash_split("026290a7_nohash_0.wav") == hash_split("x/026290a7_nohash_3.flac")
    splits = [hash_split(f"{i:08x}_nohash_0.wav") for i in range(4000)]
    assert splits.count("validation") == pytest.approx(400, abs=60)
    assert splits.count("test") == pytest.approx(400, abs=60)
    percentage = (0x86F7E437FAA5A7FCE15D1DDCB9EAEAEA377667B8 % 2**27) * 100 / (2**27 - 1)  # that number is sha1 of "a"
    assert hash_split("a_nohash_0.wav", percentage - 0.1, 0.2) == "test"
    assert hash_split("a_nohash_0.wav", percentage + 0.1, 0.0) == "validation"
    assert hash_split("a_nohash_0.wav", percentage - 0.2, 0.1) == "train"


def test_free_spoken_digits(tmp_path: Path) -> None:
    for n in (0, 4, 5, 9, 10, 32):
        clip(tmp_path / "recordings" / f"7_jackson_{n}.wav")
    files, _ = find_audio(tmp_path)
    assert {(f.label, f.speaker) for f in files} == {("seven", "jackson")}
    assert [f.split for f in files] == ["test", "train", "train", "test", "validation", "validation"]


def test_any_folder(tmp_path: Path) -> None:
    names = ["bach/a.flac", "bach/deep/b.ogg", "satie/c.wav", "d.mp3", "notes.txt", ".cache/e.wav", "bach/._a.wav"]
    for name in names:
        clip(tmp_path / name, 4800, 16000) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    files, _ = find_audio(tmp_path)
    assert [(f.file, f.label, f.speaker, f.split) for f in files] == [
        ("bach/a.flac", "", "bach", None),
        ("bach/deep/b.ogg", "", "bach", None),
        ("d.mp3", "", "", None),
        ("satie/c.wav", "", "satie", None),
    ]
    labelled, _ = find_audio(tmp_path, folder_labels=True, speaker_pattern=r"(?P<speaker>[ac])\.\w+$")
    assert [(f.label, f.speaker) for f in labelled] == [("bach", "a"), ("bach", ""), ("", ""), ("satie", "c")]


def test_files_that_cannot_be_used_are_named_and_counted(
    commands: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (commands / "one" / "empty_nohash_0.wav").write_bytes(b"")
    (commands / "one" / "noise_nohash_0.wav").write_bytes(b"noise" * 100)
    clip(commands / "one" / "silent_nohash_0.wav", 0)
    clip(commands / "one" / "misnamed.wav")
    for i in range(3):
        (commands / "zero" / f"x{i}_nohash_0.wav").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        files, skipped = find_audio(commands)
    assert len(files) == 9
    assert len(skipped) == 7
    assert caplog.messages[0] == "7 sound files cannot be used and are left out:"
    assert "and 2 more" in caplog.messages[-1]
    told = " ".join(each.reason for each in skipped)
    for message in (
        "empty_nohash_0.wav is empty",
        "noise_nohash_0.wav is not sound",
        "misnamed.wav is not named <word>",
    ):
        assert message in told
    assert "silent_nohash_0.wav has no samples" in told


def test_folders_without_sound(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="nowhere is not a folder, a folder of sound files was expected"):
        find_audio(tmp_path / "nowhere")
    with pytest.raises(NoRecords, match=r"has no sound file: it has no \.wav, \.flac"):
        find_audio(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(NoRecords, match="none of the 1 there can be used"):
        find_audio(tmp_path)


def test_order_of_classes() -> None:
    assert in_order(set(DIGITS)) == list(DIGITS)
    assert in_order({"zero", "one", "backward"}) == ["backward", "one", "zero"]


@pytest.fixture
def speakers(tmp_path: Path) -> Path:
    for speaker in range(20):
        for n in range(5):
            clip(tmp_path / f"s{speaker}" / f"{n}.wav", 80 * (1 + n))
    return tmp_path


@pytest.mark.parametrize("seed", [0, 1])
def test_speakers_are_in_one_split_each(speakers: Path, seed: int) -> None:
    files, _ = find_audio(speakers)
    splits = split_audio(files, "speaker", 0.2, 0.1, seed)
    of = {split: {f.speaker for f in splits.of(split)} for split in ("train", "validation", "test")}
    assert {split: len(those) for split, those in of.items()} == {"train": 14, "validation": 2, "test": 4}
    assert sum(map(len, of.values())) == 20
    assert split_audio(files, "speaker", 0.2, 0.1, seed) == splits
    assert split_audio(files, "speaker", 0.2, 0.1, seed + 1) != splits
    # a file less moves few others
    fewer = split_audio(files[:40] + files[41:], "speaker", 0.2, 0.1, seed)
    before = dict(zip(files, splits.splits, strict=True))
    moved = {f.speaker for f, split in zip(fewer.files, fewer.splits, strict=True) if before[f] != split}
    assert len(moved) <= 2


def test_files_are_held_out_by_part_or_by_name(speakers: Path) -> None:
    files, _ = find_audio(speakers)
    splits = split_audio(files, "file", 0.2, 0.0)
    seconds = sum(f.info.frames for f in splits.of("test")) / sum(f.info.frames for f in files)
    assert 0.2 <= seconds < 0.23
    assert not splits.of("validation")
    named = split_audio(files, "file", test_files=["s3", "s4/0.wav"], validation_files=["s1?/4*"])
    assert {f.file for f in named.of("test")} == {*(f"s3/{n}.wav" for n in range(5)), "s4/0.wav"}
    assert {f.file for f in named.of("validation")} == {f"s1{n}/4.wav" for n in range(10)}
    row = named.to_tsv().splitlines()[1].split("\t")
    assert row[1:] == ["s0/0.wav", "", "s0", "80", "8000", "train"]


def test_splits_that_cannot_be(speakers: Path) -> None:
    files, _ = find_audio(speakers)
    with pytest.raises(
        TooFewData, match=r"does not say which of its files are for the test .*split by speaker or file"
    ):
        split_audio(files, "given")
    with pytest.raises(TooFewData, match="'s99' matches no sound file and no speaker"):
        split_audio(files, "file", test_files=["s99"])
    with pytest.raises(TooFewData, match="1 sound files leave none for train"):
        split_audio(files[:1], "file")
    clip(speakers / "root.wav")
    with pytest.raises(TooFewData, match=r"root\.wav of .* says no speaker; give a speaker_pattern"):
        split_audio(find_audio(speakers)[0], "speaker")
