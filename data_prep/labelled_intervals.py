"""BED intervals with labels, and the FASTA file of the sequences that they lie on.

A BED line is chromosome, start (0-based), end (exclusive), label, score, strand. The label may stand elsewhere: a first
line that begins with `#` names the columns.
"""

import dataclasses
from pathlib import Path

import numpy as np

from mamba_seq.data_prep.alphabet import DNA, INVALID
from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import BadRecord, DataError, NoRecords
from mamba_seq.data_prep.labelled import Example, Labelled, LabelledConfig, split_named
from mamba_seq.data_prep.labelled_fasta import fasta_records

STRETCHES = 100
"""Of one sequence that are split like groups: a tenth of them is enough for an interval by groups."""
COLUMNS = ("chrom", "start", "end", "label", "score", "strand")


def read_bed(path: Path, config: LabelledConfig) -> Labelled:
    """Read the stretches of the reference that a BED file names; those on strand "-" are reverse-complemented.

    "chr1" and "1" are the same chromosome where the reference has only one of them. The chromosome is the group of an
    example, unless a column says otherwise; of a single one, see `by_stretches`.

    Raises:
        DataError: There is no reference, or an interval does not lie within it; with the line.
    """
    if config.reference is None:
        raise DataError(
            f"{path} is BED, which holds places and no sequence: name the FASTA file they lie on with --reference"
        )
    sequences = {
        header.split(None, 1)[0] if header else "": letters
        for header, letters, _ in fasta_records(Path(config.reference))
    }
    with open_input(path) as file:
        lines = file.read().decode("utf-8-sig", "replace").splitlines()
    names = list(COLUMNS)
    examples: list[Example] = []
    places: list[int] = []
    renamed = 0
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") and not examples:
            head = line.lstrip("#").strip().split("\t")
            names = [*COLUMNS[:3], *head[3:]] if len(head) > 3 else names
            continue
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        where = f"{path}, line {number}"
        cells = [cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())]
        row = dict(zip(names, cells, strict=False))
        chromosome, start, end = _place(row, where)
        known = next((c for c in _spellings(chromosome) if c in sequences), None)
        if known is None:
            raise BadRecord(
                f"{where}: {chromosome!r} is not in {config.reference}, which has "
                f"{', '.join(list(sequences)[:4])}; use the "
                "reference that the intervals were made on"
            )
        renamed += known != chromosome
        start, end = start - config.flank, end + config.flank
        whole = sequences[known]
        if start < 0 or end > len(whole):
            raise BadRecord(
                f"{where}: {chromosome} {start} to {end} came, with a flank of {config.flank}; {known} has 0 to "
                f"{len(whole)}"
            )
        strand = row.get("strand", ".")
        if strand not in ("+", "-", ".", ""):
            raise BadRecord(f"{where}: strand {strand!r} came; +, - or . was expected")
        letters = whole[start:end]
        places.append(start)
        label = tuple(row.get(name, "") for name in config.label or ["label"])
        examples.append(
            Example(
                id=f"{chromosome}:{start}-{end}({strand or '.'})",
                sequence=other_strand(letters, where) if strand == "-" else letters,
                label=label if all(label) and label != (".",) else None,
                split=split_named(row.get(config.split or "split", ""), where),
                group=row.get(config.group or "group", known),
                where=where,
            )
        )
    if not examples:
        raise NoRecords(f"{path} holds no interval; chromosome, start and end with tabs between them were expected")
    found = Labelled("BED intervals", examples, list(config.label or ["label"]))
    if (config.group or "group") not in names:
        by_stretches(found, places)
    if renamed:
        found.warnings.append(f"{renamed} intervals name chromosomes with or without 'chr', unlike {config.reference}")
    return found


def by_stretches(found: Labelled, places: list[int]) -> None:
    """Make groups of neighbours where all examples lie on one sequence, whose only group could not be split.

    Args:
        found: the examples; changed.
        places: where each starts.
    """
    if len({e.group for e in found.examples}) != 1:
        return
    order = sorted(range(len(places)), key=places.__getitem__)
    number = {i: rank * STRETCHES // len(order) for rank, i in enumerate(order)}
    found.examples = [dataclasses.replace(e, group=f"{e.group}:{number[i]}") for i, e in enumerate(found.examples)]
    stretches = len(set(number.values()))
    found.warnings.append(
        f"all examples lie on one sequence, so splits part stretches of neighbours ({stretches} of them): what "
        "overlaps at their ends may stand in two splits"
    )


def other_strand(letters: str, where: str) -> str:
    """Return the reverse complement of letters of DNA."""
    codes = DNA.encode(letters)
    if (codes == INVALID).any():
        at = int(np.argmax(codes == INVALID))
        raise BadRecord(f"{where}: {letters[at]!r} at position {at + 1} is no DNA code, so there is no other strand")
    return DNA.decode(DNA.reverse_complement(codes))


def _place(row: dict[str, str], where: str) -> tuple[str, int, int]:
    try:
        chromosome, start, end = row["chrom"], int(row["start"]), int(row["end"])
    except (KeyError, ValueError):
        came = ", ".join(map(repr, list(row.values())[:3]))
        raise BadRecord(f"{where}: {came} came; chromosome, start and end as whole numbers were expected") from None
    if not 0 <= start < end:
        raise BadRecord(f"{where}: start {start} and end {end} came; 0 <= start < end was expected")
    return chromosome, start, end


def _spellings(chromosome: str) -> tuple[str, ...]:
    bare = chromosome.removeprefix("chr")
    return (chromosome, bare, f"chr{bare}", *(("chrM", "MT") if bare in ("M", "MT") else ()))
