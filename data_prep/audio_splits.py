"""Which sound files are for training, validation and test: as their collection says, or by speaker or file.

The table of a run's splits names every file with its length, so that a run cannot go on with other files.
"""

import csv
import fnmatch
import hashlib
import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mamba_seq.data_prep.audio_files import AudioFile
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.splits import SPLITS, Split

By = Literal["given", "speaker", "file"]
HELD_OUT: dict[By, str] = {
    "given": "as the collections say",
    "speaker": "by speaker: nobody is heard in two of training, validation and test",
    "file": "by file",
}
"""How a card says what is held out."""
Key = tuple[str, str]
"""Source and file."""


@dataclass(frozen=True)
class AudioSplits:
    """The split of every file."""

    files: tuple[AudioFile, ...]
    splits: tuple[Split, ...]

    def of(self, split: Split) -> list[AudioFile]:
        """The files of a split, in their order."""
        return [file for file, its in zip(self.files, self.splits, strict=True) if its == split]

    def to_tsv(self) -> str:
        """The table: a header line, then a row a file."""
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t", lineterminator="\n")
        table.writerow(("source", "file", "label", "speaker", "frames", "rate", "split"))
        for file, split in zip(self.files, self.splits, strict=True):
            info = file.info
            table.writerow(
                (file.source, file.file, file.label, file.speaker, info.frames, info.sample_rate, split),
            )
        return text.getvalue()


def split_audio(
    files: Sequence[AudioFile],
    by: By = "given",
    test_fraction: float = 0.1,
    validation_fraction: float = 0.1,
    seed: int = 0,
    test_files: Sequence[str] = (),
    validation_files: Sequence[str] = (),
) -> AudioSplits:
    """Split files.

    Args:
        files: All of them.
        by: "given": as their collections say; "speaker": whole speakers are held out; "file": whole files.
        test_fraction: Part of the seconds of every source that is held out for the test, at least one speaker or file
            if it is not 0.
        validation_fraction: The same for validation.
        seed: Chooses who is held out.
        test_files: Instead of a fraction, the names or patterns of files or speakers, such as *_goldberg_*.
        validation_files: The same for validation.

    Raises:
        TooFewData: A collection does not say how it is split, or says of no speaker; a pattern matches nothing; a
            split that was asked for, or the training, gets no file.
    """
    if by == "given":
        splits = [_given(file) for file in files]
    else:
        held_out: dict[int, Split] = {}
        named = [("test", test_files, test_fraction), ("validation", validation_files, validation_fraction)]
        for split, patterns, fraction in named:
            chosen = _matching(files, patterns) if patterns else _part(files, by, fraction, seed, held_out)
            held_out.update({i: split for i in chosen if i not in held_out})  # type: ignore[misc]
        splits = [held_out.get(i, "train") for i in range(len(files))]
    made = AudioSplits(tuple(files), tuple(splits))
    for split in SPLITS:
        wanted = split == "train" or by == "given" or {"test": test_fraction, "validation": validation_fraction}[split]
        if wanted and not made.of(split):
            raise TooFewData(
                f"{len(files)} sound files leave none for {split}; add files (or cut long ones), hold out less, "
                + ("" if by == "file" else "split by file, ")
                + "or name files in data.test_files and data.validation_files"
            )
    return made


def _given(file: AudioFile) -> Split:
    if file.split is None:
        raise TooFewData(
            f"{file.source} does not say which of its files are for the test ({file.file} for one); "
            "split by speaker or file"
        )
    return file.split


def _matching(files: Sequence[AudioFile], patterns: Sequence[str]) -> list[int]:
    """Return which files a pattern matches, by path, name or speaker."""
    found: dict[str, list[int]] = {pattern: [] for pattern in patterns}
    for i, file in enumerate(files):
        names = (file.file, file.path.name, file.path.stem, file.speaker)
        for pattern in patterns:
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                found[pattern].append(i)
    for pattern, matches in found.items():
        if not matches:
            raise TooFewData(f"{pattern!r} matches no sound file and no speaker; {files[0].file} is one of the files")
    return sorted(set(itertools.chain(*found.values())))


def _part(files: Sequence[AudioFile], by: By, fraction: float, seed: int, taken: dict[int, Split]) -> list[int]:
    """Return files of whole groups that make up a part of every source's seconds; a seed orders the groups."""
    if not fraction:
        return []
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, file in enumerate(files):
        if by == "speaker" and not file.speaker:
            raise TooFewData(f"{file.file} of {file.source} says no speaker; give a speaker_pattern, or split by file")
        groups[file.source][file.speaker if by == "speaker" else file.file].append(i)
    chosen: list[int] = []
    for source, members in groups.items():
        seconds = {
            name: sum(files[i].info.frames / files[i].info.sample_rate for i in those)
            for name, those in members.items()
        }
        wanted, got = fraction * sum(seconds.values()), 0.0
        # a hash, so that a file that is added or left out moves few others
        for name in sorted(members, key=lambda name: hashlib.sha256(f"{seed}/{source}/{name}".encode()).digest()):
            if got >= wanted:
                break
            if not any(i in taken for i in members[name]):
                chosen += members[name]
                got += seconds[name]
    return chosen
