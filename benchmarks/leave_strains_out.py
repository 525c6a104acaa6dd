"""Splits that hold whole strains out of training genomes, to choose a recipe by without touching its test strains.

    python benchmarks/leave_strains_out.py ROOT strains.tsv
    mamba-seq train RECIPE -o RUN --data.root ROOT --data.test_root null --data.splits_file strains.tsv

Of every class with two files or more the last is for the test, whole. A class with one file has no strain to spare: its
test is a region, so look at the accuracy of the others. Validation is a region of every class. The split is a table as
`splits.tsv` of a run; intervals are printed by class.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from mamba_seq.data_prep.genomes import GenomeRecord, Genomes
from mamba_seq.data_prep.splits import Interval, Splits

REGION = 300_000
"""Bases of the regions, of the longest record of a class; a fifth of it if it is short."""


def leave_strains_out(records: list[GenomeRecord]) -> Splits:
    """Return the splits of the records."""
    by_label: dict[str, dict[str, list[GenomeRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.length:
            by_label[record.label][record.file].append(record)
    intervals: list[Interval] = []
    for files in by_label.values():
        names = sorted(files)
        held_out = names.pop() if len(names) > 1 else None
        if held_out is not None:
            intervals += [Interval(r.label, r.file, r.name, 0, r.length, "test") for r in files[held_out]]
        kept = [record for name in names for record in files[name]]
        longest = max(kept, key=lambda record: record.length)
        intervals += [Interval(r.label, r.file, r.name, 0, r.length, "train") for r in kept if r is not longest]
        intervals += _with_regions(longest, test=held_out is None)
    return Splits(tuple(sorted(intervals)))


def _with_regions(record: GenomeRecord, test: bool) -> list[Interval]:
    """Cut regions for validation, and for the test if wanted, out of the middle of a record."""
    size = min(REGION, record.length // 5)
    middle = record.length // 2
    ends = [0, middle - size, middle, middle + size if test else middle, record.length]
    kinds = ("train", "validation", "test", "train")
    return [
        Interval(record.label, record.file, record.name, start, end, kind)
        for start, end, kind in zip(ends, ends[1:], kinds, strict=False)
        if start < end
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder with a folder of FASTA files for each class")
    parser.add_argument("output", type=Path, help="table to write")
    options = parser.parse_args()
    splits = leave_strains_out(Genomes(options.root).records)
    options.output.write_text(splits.to_tsv(), encoding="utf-8")
    bases: dict[tuple[str, str], int] = defaultdict(int)
    for interval in splits.intervals:
        bases[interval.label, interval.split] += interval.length
    for (label, split), n in sorted(bases.items()):
        print(f"{label}\t{split}\t{n}")


if __name__ == "__main__":
    main()
