"""Many FASTA files, packed, as one corpus of DNA, and which stretches of it are held out.

`Corpus.records` are `GenomeRecord`s whose label is the path as given (a file, or a folder with all below it), so that
splits are kept in the same tables as a classifier's.
"""

import csv
import fnmatch
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mamba_seq.data_prep.alphabet import Codes
from mamba_seq.data_prep.errors import BadRecord, TooFewData, UnreadableFile
from mamba_seq.data_prep.genomes import PACKED_SUFFIXES, SUFFIXES, GenomeRecord
from mamba_seq.data_prep.packed_genomes import PackedFile, Runs, packed_file
from mamba_seq.data_prep.splits import Interval, Split, Splits, split_by_record, split_by_region

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}


class Corpus:
    """The records of files and folders of FASTA, packed on disk and read through memory maps.

    Args:
        paths: files, or folders whose FASTA files count, those in folders below included.
        exclude: patterns of records or files to leave out, such as *_alt or */novel/*.
        cache_folder: of the packed files; by default in the user's cache folder.

    Attributes:
        records: what there is, in the order of the paths, files and records.
        sources: number of the path that each record comes from.

    Raises:
        DataError: a path is missing or holds no FASTA file, a file cannot be read, nothing is left.
    """

    def __init__(
        self, paths: Sequence[str], exclude: Sequence[str] = (), cache_folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.records: list[GenomeRecord] = []
        self.sources: list[int] = []
        self._place: list[tuple[PackedFile, int]] = []
        labels = _labels(paths)
        for source, path in enumerate(paths):
            for file, name in _files(Path(path), labels[source]):
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
                    continue
                packed = packed_file(file, cache_folder)
                for i, (record, length) in enumerate(zip(packed.names, packed.lengths, strict=True)):
                    if length and not any(fnmatch.fnmatchcase(record, pattern) for pattern in exclude):
                        self.records.append(GenomeRecord(labels[source], name, record, length))
                        self.sources.append(source)
                        self._place.append((packed, i))
        if not self.records:
            raise TooFewData(f"no record is left of {', '.join(paths) or 'no path'}; give FASTA files, or exclude less")

    def fetch(self, record: int, start: int, end: int, cased: bool = False) -> Codes:
        """Token ids (end - start,) uint8; see `PackedFile.fetch`."""
        packed, i = self._place[record]
        return packed.fetch(i, start, end, cased)

    def unknown_runs(self, record: int, shortest: int = 1) -> Runs:
        """Where at least so many N stand in a row, (runs, 2)."""
        packed, i = self._place[record]
        return packed.unknown_runs(i, shortest)


@dataclass(frozen=True)
class HeldOut:
    """What is kept from training; the table first, then the patterns, then the fractions of what these leave alone.

    Args:
        bed: table of regions: record, start, end, and train, valid or test; without the fourth column, test. If some
            are for training, nothing else is.
        test_records: patterns of records or files that are the test.
        validation_records: the same for validation.
        test_fraction: part of every other file's bases; None for 5 % where neither table nor patterns name a test, else
            none.
        validation_fraction: the same for validation, 1 %.
        regions: number of regions that each part of a file is cut into.
        seed: places them.
    """

    bed: str | None = None
    test_records: Sequence[str] = ()
    validation_records: Sequence[str] = ()
    test_fraction: float | None = None
    validation_fraction: float | None = None
    regions: int = 1
    seed: int = 0


def split_corpus(records: Sequence[GenomeRecord], held_out: HeldOut) -> Splits:
    """Split records of a corpus as asked.

    Raises:
        DataError: the table cannot be read, names no record that there is, or overlaps itself; a pattern matches
            nothing.
    """
    given = _read_bed(Path(held_out.bed), records) if held_out.bed is not None else []
    limited = any(interval.split == "train" for interval in given)
    in_table = {(interval.file, interval.record) for interval in given}
    rest = [record for record in records if (record.file, record.name) not in in_table]
    patterns = [*held_out.test_records, *held_out.validation_records]
    kept = split_by_record(rest, held_out.test_records, held_out.validation_records).intervals if patterns else ()
    named = [interval for interval in kept if interval.split != "train"]
    found = {interval.split for interval in [*given, *named]}
    gone = {(interval.file, interval.record) for interval in named}
    untouched = [record for record in rest if (record.file, record.name) not in gone]
    test, validation = held_out.test_fraction, held_out.validation_fraction
    if test is None:
        test = 0.0 if "test" in found else 0.05
    if validation is None:
        validation = 0.0 if "validation" in found else 0.01
    drawn: Sequence[Interval] = ()
    if not limited:
        drawn = split_by_region(untouched, test, validation, held_out.seed, held_out.regions).intervals
    between = [] if limited else _between(given, records)
    return Splits(tuple(sorted([*given, *named, *between, *drawn])))


def _read_bed(path: Path, records: Sequence[GenomeRecord]) -> list[Interval]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path} cannot be read as a BED table: {error}") from error
    by_name: dict[str, list[GenomeRecord]] = {}
    for record in records:
        by_name.setdefault(record.name, []).append(record)
    intervals = []
    for number, row in enumerate(csv.reader(lines, delimiter="\t"), start=1):
        if not row or row[0].startswith(("#", "track", "browser")):
            continue
        split = _SPLIT_NAMES.get(row[3] if len(row) > 3 else "test")
        if len(row) < 3 or not (row[1].isdecimal() and row[2].isdecimal()) or split is None:
            raise BadRecord(
                f"{path}, line {number}: {row} came; record, start, end and train, valid or test, separated by tabs, "
                "were expected"
            )
        start, end = int(row[1]), int(row[2])
        for record in by_name.get(row[0], []):  # several files may have a record of a name: it is held out of all
            end = min(end, record.length)
            if start < end:
                intervals.append(Interval(record.label, record.file, record.name, start, end, split))
    if not intervals:
        names = ", ".join(list(by_name)[:3])
        raise BadRecord(f"{path} names no base of these records ({names} ...); give a table of the same genomes")
    return intervals


def _between(given: Sequence[Interval], records: Sequence[GenomeRecord]) -> list[Interval]:
    """Return what the given intervals leave of the records that they touch, for training."""
    by_record: dict[tuple[str, str], list[Interval]] = {}
    for interval in sorted(given, key=lambda interval: interval.start):
        by_record.setdefault((interval.file, interval.record), []).append(interval)
    left = []
    for record in records:
        at = 0
        its = by_record.get((record.file, record.name), [])
        for start, end in [*((i.start, i.end) for i in its), (record.length, record.length)] if its else []:
            if start > at:
                left.append(Interval(record.label, record.file, record.name, at, start, "train"))
            at = max(at, end)
    return left


def _labels(paths: Sequence[str]) -> list[str]:
    """Name each path by its last part, or by as many as tell it from the others; the same path twice gets a number."""
    parts = [Path(path).resolve().parts for path in paths]
    names = []
    for those in parts:
        others = [other for other in parts if other != those]
        depth = 1
        while depth < len(those) - 1 and any(other[-depth:] == those[-depth:] for other in others):
            depth += 1
        names.append("/".join(those[-depth:]))
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return labels


def _files(path: Path, label: str) -> list[tuple[Path, str]]:
    """Return the FASTA files of a path and what they are called."""
    if path.is_file():
        return [(path, label)]
    if not path.is_dir():
        raise UnreadableFile(
            f"{path} is neither a file nor a folder; give the path of a FASTA file or a folder of them"
        )
    suffixes = tuple(suffix + packed for suffix in SUFFIXES for packed in PACKED_SUFFIXES)
    found = sorted(file for file in path.rglob("*") if file.name.lower().endswith(suffixes) and file.is_file())
    if not found:
        raise TooFewData(f"{path} has no FASTA files (*.fa, *.fasta, *.fna, perhaps with .gz), nor has a folder in it")
    return [(file, f"{label}/{file.relative_to(path).as_posix()}") for file in found]
