"""Vectors of the records of files, or of windows of them, in input order and constant memory.

Records and windows that fit into one call of the model go through it together, longer ones chunk after chunk. Read on
both strands, a long record waits in a temporary file, a byte a base, to be read from its end.
"""

import collections
import dataclasses
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.compression import input_name
from mamba_seq.data_prep.errors import BadRecord, TooFewData
from mamba_seq.data_prep.records import SequenceRecord
from mamba_seq.data_prep.sequences import read_sequences
from mamba_seq.data_prep.windows import windows_of
from mamba_seq.pipelines.names import RepeatedNames
from mamba_seq.pipelines.progress import Progress
from mamba_seq.pipelines.vectors import VectorReader, Vectors

log = logging.getLogger("mamba_seq.pipelines")

SHORTEST_COST = 64
"""What a stretch costs at least, in tokens: reads of one base must not wait by the million."""


class Embedded(NamedTuple):
    """A vector, and what it is of: bases `start` to `end` (0-based, half-open) of a record."""

    record: str
    start: int
    end: int
    file: str
    status: str
    """ok, or why the vector is NaN: empty, no_bases (nothing but N)."""
    vector: Vectors
    """(d_model,) float32."""


@dataclasses.dataclass
class Summary:
    """What a run did."""

    records: int = 0
    letters: int = 0
    vectors: int = 0
    without: int = 0
    """Of them NaN, for there was no base."""
    done: float | None = None
    """Part of the input, 0 to 1; None when nobody knows how much there is."""

    def __str__(self) -> str:
        nothing = f", {self.without:,} of them NaN, of stretches without a base" if self.without else ""
        return (
            f"{self.vectors:,} vector{'s' * (self.vectors != 1)} of {self.records:,} record{'s' * (self.records != 1)} "
            f"({self.letters:,} letters){nothing}"
        )


class _Waiting(NamedTuple):
    record: str
    start: int
    end: int
    file: str
    codes: Codes | None  # None where there is no base


class Embedder:
    """Makes the vectors of files.

    Args:
        reader: makes those of stretches.
        window: bases of a window; None takes records whole.
        stride: from one window's start to the next; by default the window.
        longest: most bases of a stretch that the model can read; None for any.
        on_progress: called now and then with the summary so far, always the same object.
    """

    def __init__(
        self,
        reader: VectorReader,
        window: int | None = None,
        stride: int | None = None,
        longest: int | None = None,
        on_progress: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        self.summary = Summary()
        self._reader = reader
        self._window = window
        self._stride = stride or window
        self._longest = longest
        self._on_progress = on_progress
        self._waiting: list[_Waiting] = []
        self._cost = 0
        self._nothing = np.full(reader.width, np.nan, dtype=np.float32)
        self._strands = 2 if reader.both_strands else 1
        # what is counted for the progress: stretches, or chunks of long ones
        self._added = self._through = 0
        self._ended: collections.deque[tuple[int, int]] = collections.deque()
        self._progress = Progress(())

    def rows(self, paths: Sequence[str]) -> Iterator[Embedded]:
        """Yield the vectors of files ("-" is standard input) in the order of their records and windows.

        Raises:
            DataError: for a file that is missing, empty, truncated or no text, or that holds no record; for a record
                with letters that no DNA code has, or longer than the model can read. Rows given before then are void.
        """
        self._progress = Progress(paths)
        names = RepeatedNames()
        for number, path in enumerate(paths):
            position = self._progress.open(number)
            for record in read_sequences(path, position=position):
                before = self._added
                yield from self._whole(record, path) if self._window is None else self._windows(record, path)
                self._check(record, path)
                names.add(record.name)
                self.summary.records += 1
                self.summary.letters += record.length
                self._ended.append((self._progress.end_record(), self._added - before))
        yield from self._flush()
        self._progress.end()
        self._tell()
        repeats, example = names.result()
        if repeats:
            log.warning("%d records have a name that an earlier one has, such as %r", repeats, example)

    def _windows(self, record: SequenceRecord, path: str) -> Iterator[Embedded]:
        assert self._window is not None
        for window in windows_of(record.blocks(), self._window, self._stride, max_windows=0):
            self._check(record, path)
            self._progress.cut(window.end, record.length)
            yield from self._add(record.name, path, window.start, window.codes)
        if not record.length:
            yield from self._add(record.name, path, 0, np.empty(0, np.uint8))

    def _whole(self, record: SequenceRecord, path: str) -> Iterator[Embedded]:
        held: list[Codes] = []
        blocks = record.blocks()
        for block in blocks:
            held.append(block)
            if record.length > self._reader.chunk:
                yield from self._flush()
                yield self._long(record, path, itertools.chain(held, blocks))
                return
        self._progress.cut(1, 1)
        yield from self._add(record.name, path, 0, np.concatenate(held) if held else np.empty(0, np.uint8))

    def _add(self, name: str, path: str, start: int, codes: Codes) -> Iterator[Embedded]:
        """Take a stretch, and yield what has become ready."""
        self._check_length(name, path, len(codes))
        known = bool((codes < DNA.unknown_code).any())
        end = start + len(codes)
        if known and len(codes) > self._reader.chunk:
            yield from self._flush()
            self._added += self._strands
            other = [[DNA.reverse_complement(codes)]] if self._reader.both_strands else []
            vector = self._reader.long([[codes], *other])
            self._through += self._strands
            yield self._row(name, start, end, path, vector)
            return
        cost = max(len(codes), SHORTEST_COST)
        if self._cost + cost > self._reader.chunk:
            yield from self._flush()
        # a copy: a window may be a view that keeps a whole record alive
        self._waiting.append(_Waiting(name, start, end, path, codes.copy() if known else None))
        self._cost += cost
        self._added += 1

    def _flush(self) -> Iterator[Embedded]:
        waiting, self._waiting, self._cost = self._waiting, [], 0
        codes = [each.codes for each in waiting if each.codes is not None]
        vectors = iter(self._reader.together(codes) if codes else ())
        for each in waiting:
            vector = None if each.codes is None else next(vectors)
            yield self._row(each.record, each.start, each.end, each.file, vector)
        self._through += len(waiting)
        while self._ended:
            self._progress.finish(*self._ended.popleft())
        self._tell()

    def _long(self, record: SequenceRecord, path: str, blocks: Iterator[Codes]) -> Embedded:
        """Read a record that is longer than a chunk to its end, and, on both strands, back to its beginning."""
        with tempfile.TemporaryFile() as file:
            vector = self._reader.long(self._both(record, path, blocks, file))
        return self._row(record.name, 0, record.length, path, vector if record.bases else None)

    def _both(
        self, record: SequenceRecord, path: str, blocks: Iterator[Codes], file: BinaryIO
    ) -> Iterator[Iterator[Codes]]:
        size = self._reader.chunk

        def forward() -> Iterator[Codes]:
            for block in blocks:
                self._check(record, path)
                self._check_length(record.name, path, record.length)
                if self._reader.both_strands:
                    file.write(block.tobytes())
                for at in range(0, len(block), size):
                    self._added += self._strands
                    yield block[at : at + size]
                    self._through += 1
                    self._progress.cut(1, 1)
                    self._tell()

        def backward() -> Iterator[Codes]:
            end = record.length
            left = self._added - self._through
            chunks = -(-end // size)
            for done, at in enumerate(range(end, 0, -size), 1):
                start = max(0, at - size)
                file.seek(start)
                yield DNA.reverse_complement(np.frombuffer(file.read(at - start), dtype=np.uint8))
                self._through += left * done // chunks - left * (done - 1) // chunks
                self._tell()

        yield forward()
        if self._reader.both_strands:
            yield backward()

    def _row(self, name: str, start: int, end: int, path: str, vector: Vectors | None) -> Embedded:
        self.summary.vectors += 1
        self.summary.without += vector is None
        status = "ok" if vector is not None else "no_bases" if end > start else "empty"
        return Embedded(name, start, end, path, status, self._nothing if vector is None else vector)

    def _check(self, record: SequenceRecord, path: str) -> None:
        if record.invalid is not None:
            raise BadRecord(
                f"{input_name(path)}: record {record.name!r} has {record.invalid}, which is no DNA code; mend the "
                "record, or leave it out"
            )

    def _check_length(self, name: str, path: str, length: int) -> None:
        if self._longest is not None and length > self._longest:
            raise TooFewData(
                f"{input_name(path)}: {length:,} bases of record {name!r} came, and the model knows {self._longest:,} "
                f"positions; say --window {self._longest}"
            )

    def _tell(self) -> None:
        self.summary.done = self._progress.done(self._through, self._added)
        self._on_progress(self.summary)
