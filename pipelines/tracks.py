"""Likelihood tracks as files: bedGraph, bigWig, or a table with a row a record.

Values are log2 of the probability of a base: 0 is certain, -2 a guess among four. N has none. Places are 0-based and
half-open, as in BED.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mamba_seq.pipelines.errors import OutputError
from mamba_seq.pipelines.output import STDOUT, check_output, open_output
from mamba_seq.pipelines.score import Scored

TrackFormat = Literal["bedgraph", "bigwig", "tsv"]
SUFFIXES: dict[str, TrackFormat] = {".bw": "bigwig", ".bigwig": "bigwig", ".tsv": "tsv"}
DECIMALS = 4
HEAD = "record\tlength\tbases\tbits_per_base\tperplexity\n"


def format_of(target: str) -> TrackFormat:
    """Return the format that a file's name says; bedgraph if it says none."""
    name = target.lower().removesuffix(".gz")
    return next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), "bedgraph")


def check_track(target: str, form: TrackFormat, inputs: tuple[str, ...] = ()) -> None:
    """Refuse a target or a format that cannot be written, before any work is done.

    Raises:
        OutputError: with what to do about it.
    """
    check_output(target, inputs)
    if form == "bigwig":
        _big_wig()
        if target == STDOUT or target.endswith(".gz") or (os.path.exists(target) and not os.path.isfile(target)):
            raise OutputError(f"a bigWig cannot be written to {target}: name a file with -o that ends in .bw")


def write_track(
    target: str, form: TrackFormat, names: Sequence[str], lengths: Sequence[int], pieces: Iterable[Scored]
) -> None:
    """Write scored pieces, whole or not at all.

    Args:
        target: a path, or "-" for standard output.
        form: the format.
        names: of all records.
        lengths: of all records.
        pieces: in the order of the records.

    Raises:
        OutputError: the target cannot be written; for a bigWig also where two records have one name, or there is none.
    """
    if form == "bigwig":
        _write_big_wig(Path(target), names, lengths, pieces)
        return
    lines = _bed_graph(names, pieces) if form == "bedgraph" else _table(names, lengths, pieces)
    with open_output(target) as sink:
        for text in lines:
            sink.write(text.encode())


def _bed_graph(names: Sequence[str], pieces: Iterable[Scored]) -> Iterator[str]:
    """Give lines of each stretch of one value."""
    for piece in pieces:
        values = np.round(piece.log2.astype(np.float64), DECIMALS) + 0.0  # no -0
        if not len(values):
            continue
        first = np.flatnonzero(np.r_[True, (values[1:] != values[:-1])])
        last = np.r_[first[1:], len(values)]
        known = ~np.isnan(values[first])
        name, at = names[piece.record], piece.start
        rows = zip(first[known].tolist(), last[known].tolist(), values[first[known]].tolist(), strict=True)
        yield "".join(f"{name}\t{at + a}\t{at + b}\t{value:.{DECIMALS}f}\n" for a, b, value in rows)


def _table(names: Sequence[str], lengths: Sequence[int], pieces: Iterable[Scored]) -> Iterator[str]:
    """Give a header and a line a record, NA where a record has no base."""
    yield HEAD
    bits, bases, record = 0.0, 0, 0

    def line(i: int) -> str:
        if i == record and bases:
            return (
                f"{names[i]}\t{lengths[i]}\t{bases}\t{bits / bases:.{DECIMALS}f}\t{2 ** (bits / bases):.{DECIMALS}f}\n"
            )
        return f"{names[i]}\t{lengths[i]}\t0\tNA\tNA\n"

    for piece in pieces:
        while record < piece.record:
            yield line(record)
            bits, bases, record = 0.0, 0, record + 1
        bits -= float(np.nansum(piece.log2, dtype=np.float64))
        bases += int(np.count_nonzero(~np.isnan(piece.log2)))
    while record < len(names):
        yield line(record)
        bits, bases, record = 0.0, 0, record + 1


def _write_big_wig(target: Path, names: Sequence[str], lengths: Sequence[int], pieces: Iterable[Scored]) -> None:
    big_wig = _big_wig()
    sizes = [(name, length) for name, length in zip(names, lengths, strict=True) if length]
    if twice := [name for name, n in Counter(name for name, _ in sizes).items() if n > 1]:
        raise OutputError(
            f"two records are named {twice[0]!r}, and a bigWig tells them apart by name; write a bedGraph"
        )
    if not sizes:
        raise OutputError("no record has a base, and a bigWig needs one; write a bedGraph")
    real = Path(os.path.realpath(target))
    with tempfile.TemporaryDirectory(dir=real.parent, prefix=f".{real.name[:60]}.", suffix=".part") as folder:
        made = Path(folder) / "made.bw"
        file = big_wig.open(str(made), "w")
        try:
            file.addHeader(sizes)
            for piece in pieces:
                known = ~np.isnan(piece.log2)
                edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0))
                for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                    values = piece.log2[a:b].tolist()
                    file.addEntries(names[piece.record], piece.start + a, values=values, span=1, step=1)
        finally:
            file.close()
        made.replace(real)


def _big_wig() -> Any:
    try:
        import pyBigWig
    except ImportError as error:
        raise OutputError(
            "bigWig files are written by pyBigWig, which is not installed; pip install 'mamba-seq[tracks]', or write a "
            "bedGraph"
        ) from error
    return pyBigWig
