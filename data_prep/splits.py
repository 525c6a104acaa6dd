"""Which stretches of which genome are for training, validation and test: made by seed, kept as a table.

Intervals of different splits never overlap, and no window crosses the border of one. What a split by region cannot
do is keep homologous sequence apart: a region that is held out of one strain may stand, nearly the same, in another
strain of its species. Where strains or chromosomes must be told apart, split by record or file.
"""

import csv
import fnmatch
import io
import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np

from mamba_seq.data_prep.errors import BadRecord, TooFewData
from mamba_seq.data_prep.genomes import GenomeRecord

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, order=True)
class Interval:
    """Bases `start` to `end` (0-based, half-open) of a record, all of one split."""

    label: str
    file: str
    record: str
    start: int
    end: int
    split: Split

    @property
    def length(self) -> int:
        """Number of bases."""
        return self.end - self.start


@dataclass(frozen=True)
class Splits:
    """Disjoint intervals of a collection of genomes.

    Raises:
        BadRecord: An interval is empty or of an unknown split, or two of a record overlap.
    """

    intervals: tuple[Interval, ...]

    def __post_init__(self) -> None:
        by_record: dict[tuple[str, str], list[Interval]] = defaultdict(list)
        for interval in self.intervals:
            if not 0 <= interval.start < interval.end or interval.split not in SPLITS:
                raise BadRecord(f"a split has {interval}; start < end and one of {', '.join(SPLITS)} were expected")
            by_record[interval.file, interval.record].append(interval)
        for intervals in by_record.values():
            intervals.sort(key=lambda interval: interval.start)
            for left, right in itertools.pairwise(intervals):
                if right.start < left.end:
                    raise BadRecord(f"two intervals of a split overlap: {left} and {right}")

    def of(self, split: Split) -> list[Interval]:
        """The intervals of one split."""
        return [interval for interval in self.intervals if interval.split == split]

    def to_tsv(self) -> str:
        """A table with a header line: label, file, record, start, end, split."""
        out = io.StringIO()
        writer = csv.DictWriter(out, [field.name for field in fields(Interval)], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(interval) for interval in self.intervals)
        return out.getvalue()

    @classmethod
    def from_tsv(cls, text: str, name: str = "splits.tsv") -> Self:
        """Read what `to_tsv` wrote; `name` is what messages call it.

        Raises:
            BadRecord: A column is missing, a number is none, or intervals overlap.
        """
        rows = csv.DictReader(io.StringIO(text), delimiter="\t")
        expected = [field.name for field in fields(Interval)]
        if rows.fieldnames is None or not set(expected) <= set(rows.fieldnames):
            raise BadRecord(f"{name} has the columns {rows.fieldnames}, {expected} were expected, separated by tabs")
        intervals = []
        for number, row in enumerate(rows, start=2):
            values: dict[str, Any] = {key: row[key] for key in expected}
            try:
                start, end = int(values.pop("start")), int(values.pop("end"))
            except (TypeError, ValueError):
                raise BadRecord(
                    f"{name}, line {number}: start {row['start']!r} and end {row['end']!r} came, whole numbers were "
                    "expected"
                ) from None
            if values["split"] not in SPLITS:
                raise BadRecord(f"{name}, line {number}: split {values['split']!r} came; one of {SPLITS} was expected")
            intervals.append(Interval(**values, start=start, end=end))
        return cls(tuple(sorted(intervals)))

    def check_against(self, records: Iterable[GenomeRecord]) -> None:
        """Check that every interval lies within a record of these genomes.

        Raises:
            BadRecord: A record is missing, has another label or is too short.
        """
        known = {(record.file, record.name): record for record in records}
        for interval in self.intervals:
            record = known.get((interval.file, interval.record))
            if record is None or record.label != interval.label or record.length < interval.end:
                found = "no such record" if record is None else f"label {record.label!r}, {record.length} bases"
                raise BadRecord(f"a split has {interval}, but the genomes have {found}; use the split's own genomes")


def split_by_region(
    records: Sequence[GenomeRecord],
    test_fraction: float = 0.1,
    validation_fraction: float = 0.05,
    seed: int = 0,
    regions: int = 1,
) -> Splits:
    """Hold contiguous regions of every file out, of its longest record if they fit there.

    Where they do not, because the file is of many short contigs, whole records are drawn until the fractions are
    reached. The place depends on the seed and the file's name alone, so adding a genome moves nothing.

    Args:
        records: The genomes.
        test_fraction: Part of each file's bases.
        validation_fraction: Part of each file's bases.
        seed: Chooses the places.
        regions: Number of regions that each of the two parts is cut into.
    """
    _check_fractions(test_fraction, validation_fraction)
    fractions: dict[Split, float] = {"test": test_fraction, "validation": validation_fraction}
    by_file: dict[str, list[GenomeRecord]] = defaultdict(list)
    for record in records:
        if record.length:
            by_file[record.file].append(record)
    intervals: list[Interval] = []
    for file, its_records in by_file.items():
        rng = np.random.default_rng((seed, zlib.crc32(file.encode())))
        total = sum(record.length for record in its_records)
        longest = max(its_records, key=lambda record: record.length)
        pieces = [
            (size, split)
            for split, fraction in fractions.items()
            for size in [round(total * fraction / regions)] * regions
            if size
        ]
        if sum(size for size, _ in pieces) <= 0.9 * longest.length:
            intervals += _regions_of(longest, pieces, rng)
            intervals += [_whole(record, "train") for record in its_records if record is not longest]
        else:
            intervals += _whole_records(its_records, test_fraction * total, validation_fraction * total, rng)
    return Splits(tuple(sorted(intervals)))


def split_by_record(
    records: Sequence[GenomeRecord],
    test_records: Sequence[str] = (),
    validation_records: Sequence[str] = (),
    test_fraction: float = 0.0,
    validation_fraction: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Hold whole records out: those that patterns name, or where none do, a fraction of the bases of each class.

    Args:
        records: The genomes.
        test_records: Patterns such as "NC_000913.3", "*_chrIV" or "escherichia_coli/*.fna.gz", matched with the
            record's name and with its file.
        validation_records: The same for validation.
        test_fraction: Part of each class's bases, in records drawn by seed, when there are no test_records.
        validation_fraction: The same for validation.
        seed: Chooses the records.

    Raises:
        TooFewData: A pattern matches nothing.
    """
    _check_fractions(test_fraction, validation_fraction)
    test_part = 0.0 if test_records else test_fraction
    validation_part = 0.0 if validation_records else validation_fraction
    patterns: dict[Split, Sequence[str]] = {"test": test_records, "validation": validation_records}
    for pattern in [*test_records, *validation_records]:
        if not any(_matches(record, pattern) for record in records):
            names = ", ".join(record.name for record in records[:5])
            raise TooFewData(f"no record or file matches {pattern!r}; there are {names} ...; give names or patterns")
    intervals: list[Interval] = []
    rest: dict[str, list[GenomeRecord]] = defaultdict(list)
    for record in records:
        named = [split for split, those in patterns.items() if any(_matches(record, pattern) for pattern in those)]
        if not record.length:
            continue
        if named:
            intervals.append(_whole(record, named[0]))
        else:
            rest[record.label].append(record)
    for label, its_records in rest.items():
        rng = np.random.default_rng((seed, zlib.crc32(label.encode())))
        total = sum(record.length for record in its_records)
        intervals += _whole_records(its_records, test_part * total, validation_part * total, rng)
    return Splits(tuple(sorted(intervals)))


def _regions_of(record: GenomeRecord, pieces: list[tuple[int, Split]], rng: np.random.Generator) -> list[Interval]:
    """Place the pieces in random order with random gaps, uniform over all ways; what is left over is for training."""
    free = record.length - sum(size for size, _ in pieces)
    gaps = np.sort(rng.integers(0, free + 1, len(pieces)))
    intervals, at, used = [], 0, 0
    for gap, i in zip(gaps.tolist(), rng.permutation(len(pieces)).tolist(), strict=True):
        size, split = pieces[i]
        start = gap + used
        intervals.append(Interval(record.label, record.file, record.name, start, start + size, split))
        if start > at:
            intervals.append(Interval(record.label, record.file, record.name, at, start, "train"))
        at, used = start + size, used + size
    if at < record.length:
        intervals.append(Interval(record.label, record.file, record.name, at, record.length, "train"))
    return intervals


def _whole_records(
    records: list[GenomeRecord], test: float, validation: float, rng: np.random.Generator
) -> list[Interval]:
    """Draw records for test until they hold `test` bases, then for validation; at least one stays for training."""
    intervals = []
    wanted: list[tuple[Split, float]] = [("test", test), ("validation", validation)]
    order = [records[i] for i in rng.permutation(len(records))]
    for split, bases in wanted:
        while bases > 0 and len(order) > 1:
            record = order.pop()
            bases -= record.length
            intervals.append(_whole(record, split))
    return intervals + [_whole(record, "train") for record in order]


def _whole(record: GenomeRecord, split: Split) -> Interval:
    return Interval(record.label, record.file, record.name, 0, record.length, split)


def _matches(record: GenomeRecord, pattern: str) -> bool:
    return fnmatch.fnmatchcase(record.name, pattern) or fnmatch.fnmatchcase(record.file, pattern)


def _check_fractions(test: float, validation: float) -> None:
    if not (test >= 0 and validation >= 0 and test + validation < 1):
        raise ValueError(
            f"test_fraction {test} and validation_fraction {validation} came; 0 or more, together below 1, expected"
        )
