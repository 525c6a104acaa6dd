"""Classify the sequences of files: records -> windows -> batches -> a row a record, in input order and constant memory.

1. A record is read block by block; the sampler keeps at most `max_windows` evenly spaced windows of it.
2. The windows join a pool that batches windows of many records (`mamba_seq.pipelines.evidence`).
3. A record whose windows have all gone through the model is decided, and its row leaves once every earlier row has left.

Nothing is kept of a record after its row but eight bytes for its name, which are enough to tell that a name came twice.
"""

import collections
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from mamba_seq.data_prep.compression import input_name, open_input
from mamba_seq.data_prep.errors import DataError, UnreadableFile
from mamba_seq.data_prep.records import SequenceRecord
from mamba_seq.data_prep.sequences import read_sequences
from mamba_seq.data_prep.windows import WindowSampler
from mamba_seq.pipelines.evidence import Evidence, WindowPool
from mamba_seq.pipelines.names import RepeatedNames
from mamba_seq.pipelines.rows import STATUSES, Row, decide

log = logging.getLogger("mamba_seq.pipelines")

# rows that wait for an earlier record; a run of empty records behind a pending window must not pile up
MOST_WAITING_ROWS = 10_000
# warnings about single records; a file of a million bad records gets one line about the rest
MOST_WARNINGS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to classify; the defaults are those of the command line."""

    context: int
    """Bases of a window."""
    stride: int
    """Bases from one window's start to the next."""
    max_windows: int = 32
    """Most windows of a record, evenly spaced; 0 takes all."""
    both_strands: bool = True
    """Average over each window and its reverse complement."""
    min_length: int = 1
    """Shorter records are too_short."""
    min_probability: float = 0.0
    """Records whose best class is below it are unclassified."""
    strict: bool = False
    """Refuse the file at its first invalid record."""
    batch_tokens: int | None = None
    """Most tokens of a batch; None chooses by device."""


@dataclasses.dataclass
class Summary:
    """What a run did, for the last line of its log."""

    records: int = 0
    letters: int = 0
    windows: int = 0
    bases_seen: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(STATUSES, 0))

    def __str__(self) -> str:
        rate = self.letters * 60 / self.seconds if self.seconds else 0.0
        shares = ", ".join(
            f"{status} {count:,} ({100 * count / self.records:.1f} %)" for status, count in self.statuses.items() if count
        )
        return (
            f"{_counted(self.records, 'record')} ({bases(self.letters)}) read in {self.seconds:.1f} s "
            f"({bases(rate)}/min); {_counted(self.bases_seen, 'base')} in {_counted(self.windows, 'window')} "
            f"went through the model; {shares or 'no record'}"
        )


class Classifier:
    """Classifies files with one model.

    Args:
        model: tokens (R, L), mask (R, L) -> logits (R, C).
        labels: the C class names in order.
        device: where the model is.
        options: how.
        on_progress: called now and then with the summary so far.

    After or during `rows`, `summary` says what was done.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str],
        device: torch.device,
        options: Options,
        on_progress: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        self.summary = Summary()
        self._labels = labels
        self._options = options
        self._report = on_progress
        self._names = RepeatedNames()
        self._warned = 0
        self._waiting: collections.deque[_Pending] = collections.deque()
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
        started = time.monotonic()
        for path in paths:
            records = invalid = 0
            first_invalid = ""
            for record in read_sequences(path):
                pending = self._read(record)
                records += 1
                if record.invalid is not None:
                    invalid += 1
                    first_invalid = first_invalid or f"{record.name!r} has {record.invalid}"
                    self._refuse_or_warn(record, path)
                self._waiting.append(pending)
                if len(self._waiting) > MOST_WAITING_ROWS:
                    self._pool.flush()
                yield from self._finished()
            if records == invalid:
                raise DataError(
                    f"{input_name(path)} holds no DNA: each of its {_counted(records, 'record')} has letters that no DNA code "
                    f"has ({first_invalid}); is it a protein file?"
                )
        self._pool.flush()
        yield from self._finished()
        self.summary.seconds = time.monotonic() - started
        self._update()
        self._warn_at_end()

    def _read(self, record: SequenceRecord) -> "_Pending":
        """Read a record to its end, its windows going to the pool."""
        options = self._options
        pending = _Pending(record.name)
        sampler = WindowSampler(options.context, options.stride, options.max_windows)
        for window in sampler.windows(record.blocks()):
            self._pool.add(pending.evidence, window.codes)
        pending.length = record.length
        if record.length == 0:
            pending.status = "empty"
        elif record.invalid is not None:
            pending.status = "invalid"
        elif record.length < options.min_length:
            pending.status = "too_short"
        elif record.bases == 0:
            pending.status = "no_bases"
        self._names.add(record.name)
        self.summary.records += 1
        self.summary.letters += record.length
        return pending

    def _finished(self) -> Iterator[Row]:
        """Yield the rows at the head of the queue that wait for nothing any more."""
        while self._waiting and (self._waiting[0].status or not self._waiting[0].evidence.waiting):
            row = self._row(self._waiting.popleft())
            self.summary.statuses[row.status] += 1
            yield row
        if self.summary.records % 1024 == 0:
            self._update()


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
