"""Folders of clips, with the labels that they were asked for or are known to be of.

Labels come from a table of the folder, `clips.tsv` with the columns `file` and `label`; from the layout of a known
collection; or from folders that are each named like a label. Without any of these, clips have none.
"""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.audio_files import AudioFile, Skipped, detect_layout, find_audio, report
from mamba_seq.data_prep.audio_io import SUFFIXES, read_audio
from mamba_seq.data_prep.errors import BadRecord, DataError, NoRecords, UnreadableFile

log = logging.getLogger("mamba_seq.pipelines")

TABLE = "clips.tsv"


@dataclass(frozen=True)
class Clips:
    """Clips of one length."""

    samples: NDArray[np.float32]
    """(N, L); zeros after the end of a shorter clip."""
    labels: list[str]
    """Of each clip; "" where nothing is known."""
    files: list[str]
    """Paths below the folder."""


def read_clips(folder: str | Path, sample_rate: int, length: int, known: list[str]) -> Clips:
    """Read all clips of a folder from their beginning, at most `length` samples of each.

    Args:
        folder: of sound files.
        sample_rate: of what is returned.
        length: samples L.
        known: labels that there may be.

    Raises:
        UnreadableFile: The folder or a file that its table names is missing.
        NoRecords: No file can be used.
        BadRecord: The table is none, or a label is not known.
    """
    root = Path(folder)
    files, labels = _labelled(root, known)
    kept, samples, skipped, longer = [], [], [], 0
    for file, label in zip(files, labels, strict=True):
        try:
            sound = read_audio(file.path, sample_rate, 0, length)
        except DataError as error:
            skipped.append(Skipped(file.path, str(error)))
            continue
        longer += file.info.length(sample_rate) > length
        samples.append(np.pad(sound, (0, length - len(sound))))
        kept.append((file.file, label))
    report(skipped)
    if not kept:
        raise NoRecords(f"none of the {len(files)} sound files of {root} can be read; see the warnings before this")
    if longer:
        seconds = length / sample_rate
        log.warning("%d clips of %s are longer than %g s: only their beginning is heard", longer, root, seconds)
    return Clips(np.stack(samples), [label for _, label in kept], [file for file, _ in kept])


def holds_sound(folder: Path) -> bool:
    """Whether a folder has a file that is named like sound."""
    return folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))


def _labelled(root: Path, known: list[str]) -> tuple[list[AudioFile], list[str]]:
    """Return the files and the label of each."""
    if (root / TABLE).is_file():
        return _by_table(root, known)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES) if root.is_dir() else []
    layout = detect_layout(paths)
    if layout != "folder":
        files, _ = find_audio(root, layout)
        labels = [file.label for file in files]
    else:
        files, _ = find_audio(root, "folder", folder_labels=True)
        labels = [file.label for file in files]
        if not set(labels) & set(known):
            return files, [""] * len(files)  # folders of something else
    for file, label in zip(files, labels, strict=True):
        if label not in known:
            where = f"folder {label!r}" if label else "no folder"
            raise BadRecord(
                f"{file.file} of {root} is in {where}, the labels known are {', '.join(known)}; name the folders like "
                f"them, or write {TABLE} with the columns file and label"
            )
    return files, labels


def _by_table(root: Path, known: list[str]) -> tuple[list[AudioFile], list[str]]:
    table = root / TABLE
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"{table} cannot be read as a table: {error}") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        there = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise BadRecord(f"{table} has {there}, expected columns file and label, between tabs, and a row a clip")
    files, _ = find_audio(root, "folder")
    by_name = {file.file: file for file in files}
    found, labels = [], []
    for number, row in enumerate(rows, 2):
        name, label = row["file"] or "", row["label"] or ""
        if label in ("NA", "-"):
            label = ""
        if label and label not in known:
            raise BadRecord(f"{table}, line {number}: label {label!r}, expected one of {', '.join(known)}")
        if name not in by_name:
            if not (root / name).exists():
                raise UnreadableFile(f"{table}, line {number}: there is no sound file {name!r} in {root}")
            continue  # find_audio has said what is wrong with it
        found.append(by_name[name])
        labels.append(label)
    if not found:
        raise NoRecords(f"none of the clips that {table} names can be used")
    return found, labels
