"""Collections of sound files: what is in a folder, who speaks, which class it is of, which split it is made for.

Three layouts are known:

    speech-commands      <word>/<speaker>_nohash_<n>.wav, validation_list.txt and testing_list.txt beside the words
                         (arXiv 1804.03209; v0.01 and v0.02), or without lists, and then the hash of its README
    free-spoken-digits   <digit>_<speaker>_<n>.wav (the Free Spoken Digit Dataset): n 0 to 4 for the test
    folder               anything else, searched through

A file that cannot be used is named, and left out.
"""

import hashlib
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mamba_seq.data_prep.audio_io import SUFFIXES, AudioInfo, audio_info
from mamba_seq.data_prep.errors import DataError, NoRecords, UnreadableFile
from mamba_seq.data_prep.splits import Split

log = logging.getLogger(__name__)

Layout = Literal["speech-commands", "free-spoken-digits", "folder"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The words of SC09, in the order of its classes."""
LISTS: dict[str, Split] = {"validation_list.txt": "validation", "testing_list.txt": "test"}
SHOWN = 5  # files that are left out are named one by one up to this many

_SPEECH_COMMANDS = re.compile(r"(?P<speaker>.+)_nohash_\d+")
_SPOKEN_DIGIT = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<n>\d+)")
_HASHES = 2**27 - 1  # MAX_NUM_WAVS_PER_CLASS of the data set's README


@dataclass(frozen=True)
class AudioFile:
    """One file of a collection.

    Args:
        source: Name of the collection's folder.
        file: Path below it, with forward slashes.
        path: Where it is on this machine.
        info: What its header says.
        label: Its class; "" for none.
        speaker: Who or what is heard; "" when the layout does not say.
        split: What its collection holds it for; None when the layout does not say.
    """

    source: str
    file: str
    path: Path
    info: AudioInfo
    label: str = ""
    speaker: str = ""
    split: Split | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


def find_audio(
    root: str | Path,
    layout: Layout | None = None,
    folder_labels: bool = False,
    speaker_pattern: str | None = None,
) -> tuple[list[AudioFile], list[Skipped]]:
    """The sound files of a folder, sorted by path, and those that are none or have no samples.

    Args:
        root: The folder.
        layout: How it is laid out; None looks at the names of its files.
        folder_labels: In the layout "folder", the first folder of a file's path is its class.
        speaker_pattern: In the layout "folder", a regular expression whose group "speaker" is found in a file's path;
            without it the first folder of the path is the speaker.

    Raises:
        UnreadableFile: The folder is missing or is a file.
        NoRecords: No file of it can be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise UnreadableFile(f"{root} is not a folder, a folder of sound files was expected")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not _hidden(path, root))
    layout = layout or detect_layout(paths)
    given = _given_splits(root) if layout == "speech-commands" else {}
    files: list[AudioFile] = []
    skipped: list[Skipped] = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            label, speaker, split = _meaning(layout, name, given, folder_labels, speaker_pattern)
            files.append(AudioFile(root.resolve().name, name, path, audio_info(path), label, speaker, split))
        except DataError as error:
            skipped.append(Skipped(path, str(error)))
    report(skipped)
    if not files:
        what = f"none of the {len(paths)} there can be used" if paths else f"it has no {', '.join(SUFFIXES[:6])}"
        raise NoRecords(f"{root} has no sound file: {what}; name the folder that holds them")
    return files, skipped


def report(skipped: list[Skipped]) -> None:
    """Warn of files that are left out: how many, and the first by name."""
    if skipped:
        log.warning("%d sound files cannot be used and are left out:", len(skipped))
        for each in skipped[:SHOWN]:
            log.warning("  %s", each.reason)
        if len(skipped) > SHOWN:
            log.warning("  and %d more", len(skipped) - SHOWN)


def detect_layout(paths: list[Path]) -> Layout:
    """Return the layout that most of the files are named after."""
    counts = Counter(
        "speech-commands"
        if _SPEECH_COMMANDS.fullmatch(path.stem)
        else "free-spoken-digits"
        if _SPOKEN_DIGIT.fullmatch(path.stem)
        else "folder"
        for path in paths
    )
    return max(LAYOUTS, key=lambda layout: counts[layout]) if counts else "folder"


def in_order(labels: set[str]) -> list[str]:
    """Return class names in their order: digits from zero to nine, others by the alphabet."""
    return sorted(labels, key=DIGITS.index) if labels <= set(DIGITS) else sorted(labels)


def hash_split(file_name: str, validation: float = 10.0, test: float = 10.0) -> Split:
    """Split as the README of Speech Commands does: by a hash of the speaker, so that none is in two splits.

    Args:
        file_name: Of the clip; what follows "_nohash_" does not matter.
        validation: Percentage of the speakers.
        test: The same.
    """
    speaker = re.sub(r"_nohash_.*$", "", Path(file_name).name)
    number = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (_HASHES + 1)
    percentage = number * (100.0 / _HASHES)
    if percentage < validation:
        return "validation"
    return "test" if percentage < validation + test else "train"


def _meaning(
    layout: Layout, name: str, given: dict[str, Split], folder_labels: bool, speaker_pattern: str | None
) -> tuple[str, str, Split | None]:
    """Return class, speaker and split of a file by its path below the root."""
    path = Path(name)
    first = path.parts[0] if len(path.parts) > 1 else ""
    if layout == "speech-commands":
        match = _SPEECH_COMMANDS.fullmatch(path.stem)
        if match is None or not first:
            raise NoRecords(f"{name} is not named <word>/<speaker>_nohash_<n>, as the others there")
        if given:
            # by their stems: a copy of the data set may hold another format
            return first, match["speaker"], given.get(path.with_suffix("").as_posix(), "train")
        return first, match["speaker"], hash_split(path.name)
    if layout == "free-spoken-digits":
        match = _SPOKEN_DIGIT.fullmatch(path.stem)
        if match is None:
            raise NoRecords(f"{name} is not named <digit>_<speaker>_<n>, as the others there")
        # its README holds out 0 to 4 of each speaker and digit; the next five are ours
        n = int(match["n"])
        return DIGITS[int(match["digit"])], match["speaker"], "test" if n < 5 else "validation" if n < 10 else "train"
    found = re.search(speaker_pattern, name) if speaker_pattern is not None else None
    speaker = first if speaker_pattern is None else found["speaker"] if found is not None else ""
    return first if folder_labels else "", speaker, None


def _given_splits(root: Path) -> dict[str, Split]:
    """Return the split of each file that the lists name, by its path without suffix; empty without lists."""
    there = [name for name in LISTS if (root / name).is_file()]
    if not there:
        return {}
    if len(there) < len(LISTS):
        missing = next(name for name in LISTS if name not in there)
        raise UnreadableFile(f"{root} has {there[0]} and no {missing}; bring it back, or remove both to split by hash")
    splits: dict[str, Split] = {}
    for name, split in LISTS.items():
        for line in (root / name).read_text(encoding="utf-8").splitlines():
            if line.strip():
                splits[Path(line.strip()).with_suffix("").as_posix()] = split
    return splits


def _hidden(path: Path, root: Path) -> bool:
    """Whether a part of the path says that it is no clip: `.cache`, `_background_noise_`, `._clip.wav` of a Mac."""
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
