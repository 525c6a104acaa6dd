"""Score the bases of FASTA files with a language model: log2 of the probability of each, in input order.

Files are packed into a temporary folder (2 bits a base), from which records are read in either direction. Short records
go through the model together, long ones chunk after chunk with the state carried, so memory does not grow with either.
Read on both strands, a long record's values wait in a temporary file, 4 bytes a base, for those of the other strand.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.packed_genomes import PackedFile, packed_file
from mamba_seq.pipelines.likelihood import LikelihoodScorer, Values


class Scored(NamedTuple):
    """Values of some bases of a record: `start` is the place of the first."""

    record: int
    start: int
    log2: Values
    """(n,) float32, NaN for N."""


@dataclasses.dataclass
class Total:
    """What has been scored."""

    records: int = 0
    bases: int = 0
    """Those that are no N."""
    bits: float = 0.0

    def __str__(self) -> str:
        per_base = self.bits / max(1, self.bases)
        return (
            f"{self.bases:,} bases of {self.records:,} record{'s' * (self.records != 1)}: {per_base:.4f} bits per "
            f"base, perplexity {2**per_base:.4f}"
        )


class PackedInputs:
    """The records of several files ("-" is standard input), packed; use it in a with block.

    Attributes:
        names: of all records.
        lengths: of all records, in letters.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.names: list[str] = []
        self.lengths: list[int] = []
        self._place: list[tuple[PackedFile, int]] = []
        self._stack = contextlib.ExitStack()
        try:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mamba_seq.")))
            for path in paths:
                packed = packed_file(self._file(path), self.folder)
                self._place += [(packed, i) for i in range(len(packed.names))]
                self.names += packed.names
                self.lengths += packed.lengths
        except BaseException:
            self._stack.close()
            raise

    def _file(self, path: str) -> Path:
        if path != "-" and os.path.isfile(path):
            return Path(path)
        copy = self.folder / "standard-input"
        with open_input(path) as stream, copy.open("wb") as file:
            shutil.copyfileobj(stream, file)
        return copy

    def fetch(self, record: int, start: int, end: int) -> Codes:
        """Token ids (end - start,) uint8."""
        packed, i = self._place[record]
        return packed.fetch(i, start, end)

    def __enter__(self) -> "PackedInputs":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def score(
    scorer: LikelihoodScorer,
    inputs: PackedInputs,
    context: int | None = None,
    both_strands: bool = False,
    on_progress: Callable[[Total], None] = lambda total: None,
) -> Iterator[Scored]:
    """Yield log2 of the probability of every base, in order, in pieces of any size.

    Args:
        scorer: the model.
        inputs: the records.
        context: the model starts anew every so many bases; None reads every record from its beginning.
        both_strands: average over a base given those before it and its complement given those after it.
        on_progress: called after every piece with the total so far, always the same object.
    """
    total = Total(records=len(inputs.names))
    for piece in _scored(scorer, inputs, context, both_strands):
        total.bases += int(np.count_nonzero(~np.isnan(piece.log2)))
        total.bits -= float(np.nansum(piece.log2, dtype=np.float64))
        on_progress(total)
        yield piece
    on_progress(total)


def _scored(
    scorer: LikelihoodScorer, inputs: PackedInputs, context: int | None, both_strands: bool
) -> Iterator[Scored]:
    waiting: list[tuple[int, int, Codes]] = []
    tokens = 0
    for record, length in enumerate(inputs.lengths):
        for start in range(0, length, context or max(1, length)):
            end = min(length, start + (context or length))
            if end - start > scorer.chunk:
                yield from _together(scorer, waiting, both_strands)
                waiting, tokens = [], 0
                yield from _long(scorer, inputs, record, start, end, both_strands)
                continue
            if tokens + end - start > scorer.chunk:
                yield from _together(scorer, waiting, both_strands)
                waiting, tokens = [], 0
            waiting.append((record, start, inputs.fetch(record, start, end)))
            tokens += end - start
    yield from _together(scorer, waiting, both_strands)


def _together(scorer: LikelihoodScorer, waiting: list[tuple[int, int, Codes]], both_strands: bool) -> Iterator[Scored]:
    if not waiting:
        return
    found = scorer.many([codes for _, _, codes in waiting])
    if both_strands:
        other = scorer.many([DNA.reverse_complement(codes) for _, _, codes in waiting])
        found = [np.float32(0.5) * (a + b[::-1]) for a, b in zip(found, other, strict=True)]
    for (record, start, _), log2 in zip(waiting, found, strict=True):
        yield Scored(record, start, log2)


def _long(
    scorer: LikelihoodScorer, inputs: PackedInputs, record: int, start: int, end: int, both_strands: bool
) -> Iterator[Scored]:
    size = scorer.chunk
    forward = scorer.chunks(inputs.fetch(record, at, min(end, at + size)) for at in range(start, end, size))
    if not both_strands:
        at = start
        for log2 in forward:
            yield Scored(record, at, log2)
            at += len(log2)
        return
    with tempfile.TemporaryFile(dir=inputs.folder) as file:
        for log2 in forward:
            file.write(log2.tobytes())
        other = scorer.chunks(
            DNA.reverse_complement(inputs.fetch(record, max(start, at - size), at)) for at in range(end, start, -size)
        )
        at = end - start
        for log2 in other:
            at -= len(log2)
            file.seek(4 * at)
            mean = (np.frombuffer(file.read(4 * len(log2)), dtype=np.float32) + log2[::-1]) / 2
            file.seek(4 * at)
            file.write(mean.tobytes())
        file.seek(0)
        at = start
        while data := file.read(4 * size):
            values = np.frombuffer(data, dtype=np.float32)
            yield Scored(record, at, values)
            at += len(values)
