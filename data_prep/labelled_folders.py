"""Folders: one for each class with FASTA, sound or series in it, one with a table for each split, or one of files
without classes, which a model may label.
"""

import dataclasses
from pathlib import Path

import numpy as np

from mamba_seq.data_prep.audio_files import SHOWN
from mamba_seq.data_prep.audio_io import SUFFIXES as SOUNDS
from mamba_seq.data_prep.audio_io import read_audio
from mamba_seq.data_prep.codecs import DEFAULT
from mamba_seq.data_prep.errors import DataError, NoRecords, TooFewData
from mamba_seq.data_prep.genomes import PACKED_SUFFIXES
from mamba_seq.data_prep.genomes import SUFFIXES as FASTA
from mamba_seq.data_prep.labelled import SPLIT_NAMES, TABLES, Example, Labelled, LabelledConfig, read_file
from mamba_seq.data_prep.labelled_fasta import read_fasta
from mamba_seq.data_prep.labelled_series import load_npy, numbers_of
from mamba_seq.data_prep.labelled_tables import read_table

_FASTA = tuple(suffix + packed for suffix in (*FASTA, ".faa", ".fastq", ".fq") for packed in PACKED_SUFFIXES)
_SPLIT_FILES = (*_FASTA, *(suffix + packed for suffix in TABLES for packed in PACKED_SUFFIXES))
_SERIES = (".npy", ".csv", ".tsv", ".txt")
Classes = dict[str | None, list[Path]]
"""The files of each class; of None, those without."""
WITHOUT_CLASSES = "a folder without classes"


def read_folder(root: Path, config: LabelledConfig) -> Labelled:
    """Read a folder of class folders, whose names are the labels, of one table a split, or of files without labels.

    Raises:
        DataError: It is none of these, a class has no file, or a file cannot be read.
    """
    tables = _split_tables(root)
    if tables:
        return _read_tables(tables, config)
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = [] if classes else sorted(p for p in root.iterdir() if _known(p) and (config.values or not _is_table(p)))
    if not classes and not loose:
        raise NoRecords(
            f"{root} has neither class folders nor tables named train, dev and test; put the files of each class "
            "into a "
            "folder of its name"
        )
    files: Classes = {folder.name: sorted(p for p in folder.rglob("*") if _known(p)) for folder in classes}
    files = files or {None: loose}
    empty = next((label for label, paths in files.items() if not paths), None)
    if empty is not None:
        raise TooFewData(
            f"{root / (empty or '')} has no file that is known here (FASTA, sound, .npy, .csv); add some, or remove "
            "the folder if it is no class"
        )
    found = Labelled("a folder a class" if classes else WITHOUT_CLASSES, [])
    kinds = {_kind(path) for paths in files.values() for path in paths}
    if len(kinds) > 1:
        raise NoRecords(f"{root} holds {' and '.join(sorted(kinds))}; one kind of file was expected")
    kind = kinds.pop()
    if kind == "sound":
        _read_sounds(root, files, found, config)
        return found
    for label, paths in files.items():
        for path in paths:
            name = path.relative_to(root).as_posix()
            if kind == "FASTA":
                found.examples += read_fasta(path, config, label).examples
            else:
                found.examples.append(_series(path, name, label, config))
    found.kind += f", {kind}"
    return found


def read_sound(path: Path, config: LabelledConfig) -> Labelled:
    """Read one recording, which has no label."""
    sound = [_sound(path, path.name, None, config)]
    return Labelled("a sound file", sound, sample_rate=config.sample_rate, codec=DEFAULT.name)


def _read_sounds(root: Path, files: Classes, found: Labelled, config: LabelledConfig) -> None:
    """Read the recordings of each class; those that cannot be read are left out and told, as in training on sound."""
    found.kind, found.codec, found.sample_rate = f"{found.kind}, sound", DEFAULT.name, config.sample_rate
    damaged: list[str] = []
    for label, paths in files.items():
        before = len(found.examples)
        for path in paths:
            try:
                found.examples.append(_sound(path, path.relative_to(root).as_posix(), label, config))
            except DataError as error:
                damaged.append(str(error))
        if len(found.examples) == before:
            raise TooFewData(
                f"{root / (label or '')} has no sound file that can be read, the first: {damaged[-len(paths)]}"
            )
    if damaged:
        shown = "; ".join(damaged[:SHOWN]) + ("; and so on" if len(damaged) > SHOWN else "")
        found.warnings.append(f"{len(damaged)} sound files cannot be used and are left out: {shown}")


def _split_tables(root: Path) -> list[Path]:
    return sorted(
        p
        for p in root.iterdir()
        if p.is_file() and p.name.split(".")[0].lower() in SPLIT_NAMES and p.name.lower().endswith(_SPLIT_FILES)
    )


def _read_tables(paths: list[Path], config: LabelledConfig) -> Labelled:
    """Read a file a split; the same id in two of them is two examples."""
    parts = []
    for path in paths:
        split = SPLIT_NAMES[path.name.split(".")[0].lower()]
        part = read_file(path, config)
        part.examples = [dataclasses.replace(e, id=f"{path.name}:{e.id}", split=split) for e in part.examples]
        parts.append(part)
    first = parts[0]
    first.kind = f"a folder with {', '.join(path.name for path in paths)}"
    first.examples = [each for part in parts for each in part.examples]
    first.warnings = [warning for part in parts for warning in part.warnings]
    return first


def _known(path: Path) -> bool:
    name = path.name.lower()
    return path.is_file() and not name.startswith(".") and name.endswith((*_FASTA, *SOUNDS, *_SERIES))


def _is_table(path: Path) -> bool:
    return _kind(path) == "series" and path.suffix.lower() != ".npy"


def _text(label: str | None) -> tuple[str, ...] | None:
    return None if label is None else (label,)


def _kind(path: Path) -> str:
    name = path.name.lower()
    return "FASTA" if name.endswith(_FASTA) else "sound" if name.endswith(tuple(SOUNDS)) else "series"


def _sound(path: Path, name: str, label: str | None, config: LabelledConfig) -> Example:
    levels = DEFAULT.encode(read_audio(path, config.sample_rate))
    # recordings of one voice stay together where names say whose they are
    group = path.stem.split("_nohash_")[0] if "_nohash_" in path.stem else ""
    return Example(name, levels.astype("int64"), _text(label), group=group, where=str(path))


def _series(path: Path, name: str, label: str | None, config: LabelledConfig) -> Example:
    if path.suffix.lower() == ".npy":
        values = load_npy(path).astype("float32")
        if values.ndim not in (1, 2):
            raise NoRecords(f"{path} is an array {values.shape}, expected (L,) or (L, F): one series")
        return Example(name, values if values.ndim == 2 else values[:, None], _text(label), where=str(path))
    table = read_table(path, numbers=True)
    columns = [table.column(name, "values") for name in config.values or table.columns]
    names = [table.columns[c] for c in columns]
    rows = [numbers_of([row[c] for c in columns], table.where(line), names) for line, row in table.rows]
    return Example(name, np.stack(rows), _text(label), where=str(path))
