"""Classify the sequences of files: records -> windows -> batches -> a row a record, in input order and constant memory.

1. A record is read block by block; the sampler keeps at most `max_windows` evenly spaced windows of it.
2. The windows join a pool that batches windows of many records (`mamba_seq.pipelines.evidence`).
3. A record whose windows have all gone through the model is decided, and its row leaves once every earlier row has.

Nothing is kept of a record after its row but eight bytes for its name, enough to tell that a name came twice.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mamba_seq.calibration import Calibration
from mamba_seq.data_prep.compression import input_name
from mamba_seq.data_prep.records import SequenceRecord
from mamba_seq.data_prep.sequences import read_sequences
from mamba_seq.data_prep.windows import MAX_WINDOWS, WindowSampler
from mamba_seq.pipelines.calls import Calls
from mamba_seq.pipelines.evidence import Evidence, WindowPool, probabilities_of
from mamba_seq.pipelines.inputs import InvalidRecords
from mamba_seq.pipelines.names import RepeatedNames
from mamba_seq.pipelines.originals import Original, Originals
from mamba_seq.pipelines.progress import Progress
from mamba_seq.pipelines.rows import STATUSES, Row, Status, decide

log = logging.getLogger("mamba_seq.pipelines")

# rows that wait for an earlier record; a run of empty records behind a pending window must not pile up. A GPU has two
# pools of windows under way, some 60,000 short reads
MOST_WAITING_ROWS = 10_000
MOST_WAITING_ROWS_ON_GPU = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to classify; the defaults are those of the command line."""

    context: int
    """Bases of a window."""
    stride: int
    """Bases from one window's start to the next."""
    max_windows: int = MAX_WINDOWS
    """Most windows of a record, evenly spaced; 0 takes all."""
    reads_all: bool = False
    """The model is one that should see all windows of a record: say so when it does not."""
    both_strands: bool = True
    """Average over each window and its reverse complement."""
    min_length: int = 1
    """Shorter records are too_short."""
    min_probability: float = 0.0
    """Records whose best class is below it are unclassified."""
    novel: float | None = None
    """The part of known records that may be called novel, so that most unknown ones are; None calls none."""
    strict: bool = False
    """Refuse the file at its first invalid record."""
    batch_tokens: int | None = None
    """Most tokens of a batch; None chooses by device."""
    calls: bool = False
    """Give rows what the model says of every window."""
    originals: bool = False
    """Give rows the text of their records."""


@dataclasses.dataclass
class Summary:
    """What a run did, for the last line of its log."""

    records: int = 0
    letters: int = 0
    windows: int = 0
    bases_seen: int = 0
    seconds: float = 0.0
    done: float | None = None
    """Part of the input whose rows are certain, 0 to 1; None when nobody knows how much input there is."""
    statuses: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(STATUSES, 0))

    def __str__(self) -> str:
        rate = self.letters * 60 / self.seconds if self.seconds else 0.0
        shares = ", ".join(
            f"{status} {count:,} ({100 * count / self.records:.1f} %)"
            for status, count in self.statuses.items()
            if count
        )
        return (
            f"{_counted(self.records, 'record')} ({megabases(self.letters)}) read in {self.seconds:.1f} s "
            f"({megabases(rate)}/min); {_counted(self.bases_seen, 'base')} in {_counted(self.windows, 'window')} "
            f"went through the model; {shares or 'no record'}"
        )


class Classifier:
    """Classifies files with one model.

    Args:
        model: tokens (R, L), mask (R, L) -> logits (R, labels).
        labels: the class names in order.
        device: where the model is.
        options: how.
        on_progress: called now and then with the summary so far.
        calibration: makes probabilities of the model's scores; None takes these as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str],
        device: torch.device,
        options: Options,
        on_progress: Callable[[Summary], None] = lambda summary: None,
        calibration: Calibration | None = None,
    ) -> None:
        self.summary = Summary()
        """What has been done so far."""
        self._labels = labels
        self._options = options
        self._on_progress = on_progress
        self._calibration = calibration
        self._originals = Originals() if options.originals else None
        self._progress = Progress(())
        self._started = time.monotonic()
        self._names = RepeatedNames()
        self._in_part = 0  # records longer than the windows that are read of one
        self._waiting: collections.deque[_Pending] = collections.deque()
        self._most_waiting = MOST_WAITING_ROWS_ON_GPU if device.type == "cuda" else MOST_WAITING_ROWS
        self._sampler = WindowSampler(options.context, options.stride, options.max_windows)
        self._pool = WindowPool(
            model,
            device=device,
            batch_tokens=options.batch_tokens,
            both_strands=options.both_strands,
            on_batch=self._update,
        )

    def rows(self, paths: Sequence[str]) -> Iterator[Row]:
        """Yield a row a record, in the order of the files ("-" is standard input) and of their records.

        Raises:
            DataError: for a file that is missing, empty, truncated or no text, that holds no record or nothing but
                invalid records, and with `strict` for one invalid record. Rows given before then are void.
        """
        self._started = time.monotonic()
        self._progress = Progress(paths)
        originals = self._originals
        for number, path in enumerate(paths):
            invalid = InvalidRecords(input_name(path), self._options.strict)
            position = self._progress.open(number)
            copy = None if originals is None else originals.write
            for record in read_sequences(path, copy=copy, position=position):
                self._waiting.append(self._read(record, number))
                invalid.note(record)
                if len(self._waiting) > self._most_waiting or (originals is not None and originals.crowded):
                    self._pool.flush()
                yield from self._finished()
            invalid.judge()
        self._pool.flush()
        yield from self._finished()
        self._progress.end()
        self._update()
        repeats, example = self._names.result()
        if repeats:
            log.warning(
                "%s with a name that an earlier record has, such as %r; only the order of the rows tells them apart",
                _counted(repeats, "record"),
                example,
            )
        if self._in_part:
            options = self._options
            parts = (
                _counted(self._in_part, "record"),
                _counted(options.max_windows, "window"),
                _counted(options.context, "base"),
            )
            if options.reads_all:
                log.warning(
                    "%s longer than %s of %s: the rest was not read, on which the model's answer rests too; it reads "
                    "all of it without --max-windows",
                    *parts,
                )
            else:
                log.info("%s longer than %s of %s: the rest was not read; --max-windows 0 reads all of it", *parts)

    def _read(self, record: SequenceRecord, source: int) -> "_Pending":
        """Read a record to its end, its windows going to the pool."""
        options = self._options
        evidence = Evidence(Calls(self._calibration) if options.calls else None)
        # with a limit, windows come when the record has ended, so that a short one need not go through the model
        ended = options.max_windows > 0
        for window in self._sampler.windows(record.blocks()):
            if record.invalid is None and not (ended and record.length < options.min_length):
                self._progress.cut(window.end, record.length)
                self._pool.add(evidence, window.codes, window.start)
        name = record.name
        self._names.add(name)
        self.summary.records += 1
        self.summary.letters += record.length
        if record.invalid is None:
            self._in_part += 0 < options.max_windows * options.context < record.length
        if self.summary.records % 1024 == 0:
            self._update()
        original = None if self._originals is None else self._originals.cut(record.format)
        place = self._progress.end_record()
        return _Pending(name, record.length, self._status(record), evidence, source, place, original)

    def _status(self, record: SequenceRecord) -> Status | None:
        """Say why a record that was read is not for the model, or None."""
        if record.invalid is not None:
            return "invalid"
        if record.length == 0:
            return "empty"
        if record.length < self._options.min_length:
            return "too_short"
        return None if record.bases else "no_bases"

    def _finished(self) -> Iterator[Row]:
        """Yield the rows at the head of the queue that wait for nothing any more."""
        ready = []
        while self._waiting and (self._waiting[0].status or not self._waiting[0].evidence.waiting):
            ready.append(self._waiting.popleft())
        seen = [pending.evidence for pending in ready if pending.status is None and pending.evidence.weight]
        probabilities = iter(probabilities_of(seen))
        for pending in ready:
            known = next(probabilities) if pending.status is None and pending.evidence.weight else None
            row = self._row(pending, known)
            self.summary.statuses[row.status] += 1
            self._progress.finish(pending.place, pending.evidence.windows)
            yield row

    def _row(self, pending: "_Pending", probabilities: NDArray[np.float64] | None) -> Row:
        """Make the row of a record, whose probabilities (labels,) are not calibrated and None when it has none."""
        record, length, source, original = pending.record, pending.length, pending.source, pending.original
        if pending.status is not None:
            return Row(record, length, pending.status, source=source, original=original)
        calls = pending.evidence.calls
        if probabilities is None:
            log.warning(
                "record %r: the windows that were taken of it hold nothing but N, though it has bases elsewhere; "
                "--max-windows 0 takes all of them",
                record,
            )
            return Row(record, length, "no_bases", source=source, calls=calls, original=original)
        novel_below = 0.0
        if self._calibration is not None:
            # windows may overlap: a base counts once
            bases = min(pending.evidence.weight, length)
            probabilities = self._calibration.apply(probabilities, bases)
            if self._options.novel is not None:
                novel_below = self._calibration.threshold(self._options.novel, bases)
        least = self._options.min_probability
        verdict = decide(probabilities.tolist(), self._labels, least, novel_below)
        return Row(record, length, *verdict, source, calls, original)

    def _update(self) -> None:
        self.summary.done = self._progress.done(self._pool.windows, self._pool.added)
        self.summary.windows, self.summary.bases_seen = self._pool.windows, self._pool.bases
        self.summary.seconds = time.monotonic() - self._started
        self._on_progress(self.summary)


@dataclasses.dataclass(slots=True)
class _Pending:
    """A record that was read and whose row has not left."""

    record: str
    length: int
    status: Status | None
    evidence: Evidence
    source: int
    place: int
    original: Original | None


def megabases(n: float) -> str:
    """Write a number of bases for a person: 512 b, 5.4 Mb, 3.1 Gb."""
    for size, unit in ((1e9, "Gb"), (1e6, "Mb"), (1e3, "kb")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} b"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
