"""Which windows of a record a classifier sees, found while the record streams by.

Definition. With context c and stride s, the candidates of a record of length n > c are the windows of length c that
start at 0, s, 2 s, ... as far as they fit, and the one that ends where the record ends. A record of 1 to c letters
is one window of its own length. With at most M windows wanted and more candidates than that, M of them are taken as
evenly as they lie: the one nearest to i (n - c) / (M - 1) for i = 0 .. M - 1, so the first and the last are among
them; M = 1 takes the first.

The length is known at the end only, so candidates are kept as they come, and when more than 8 M are kept the spacing
doubles and every second one is dropped. Candidates of a very long record are therefore 2^k s apart, for the smallest
k with at most 8 M of them, and what is taken lies within 1/8 of the even spacing. Memory is at most (8 M + 3) c
letters. Which windows are taken depends on n, c, s and M alone: `window_starts` is the definition.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mamba_seq.data_prep.alphabet import DNA, Codes

MAX_WINDOWS = 32
KEPT_PER_WINDOW = 8


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a record.

    Args:
        start: Where it begins in the record, 0 for the first letter.
        codes: Its token ids (length,) uint8; may be read-only.
    """

    start: int
    codes: Codes

    @property
    def end(self) -> int:
        """Where it ends in the record, exclusive."""
        return self.start + len(self.codes)

    @property
    def bases(self) -> int:
        """Letters that are not N; 0 marks a window that says nothing."""
        return int(np.count_nonzero(self.codes != DNA.unknown_code))


def windows_of(
    blocks: Iterable[Codes], context: int, stride: int | None = None, max_windows: int = MAX_WINDOWS
) -> Iterator[Window]:
    """The windows of one record, in order; with max_windows 0 as they come, otherwise at the record's end.

    Args:
        blocks: The record's token ids, such as `record.blocks()`.
        context: Length of a window.
        stride: From one candidate's start to the next; by default the context.
        max_windows: The most windows, evenly spaced; 0 for all.
    """
    yield from WindowSampler(context, stride, max_windows).windows(blocks)


def window_starts(length: int, context: int, stride: int | None = None, max_windows: int = MAX_WINDOWS) -> list[int]:
    """Where the windows of a record of `length` letters begin; see the head of this module."""
    stride = _checked(context, stride, max_windows)
    if length <= context:
        return [0] if length else []
    last = length - context
    candidates = last // stride + 1
    step = stride
    while max_windows and -(-candidates // (step // stride)) > KEPT_PER_WINDOW * max_windows:
        step *= 2
    starts = list(range(0, last + 1, step))
    if starts[-1] != last:
        starts.append(last)
    if not max_windows or len(starts) <= max_windows:
        return starts
    if max_windows == 1:
        return [0]
    gaps = max_windows - 1
    return [starts[(2 * i * last + gaps * step) // (2 * gaps * step)] for i in range(gaps)] + [last]


class WindowSampler:
    """Takes the windows of one record after another, fed in blocks of any size; see the head of this module.

    Args:
        context: Length of a window.
        stride: From one candidate's start to the next; by default the context.
        max_windows: The most windows a record; 0 for all, which `feed` then returns as they are complete.
    """

    def __init__(self, context: int, stride: int | None = None, max_windows: int = MAX_WINDOWS) -> None:
        self.context = context
        self.stride = _checked(context, stride, max_windows)
        self.max_windows = max_windows
        self._buffer: Codes | None = None
        self._start_record()

    def _start_record(self) -> None:
        self.length = 0
        self._first: Codes | None = None  # a record of one block needs no buffer
        self._filled = 0
        self._step = self.stride
        self._next = 0
        self._last_start = -1
        self._kept: list[Window] = []

    def windows(self, blocks: Iterable[Codes]) -> Iterator[Window]:
        """The windows of one record given as blocks of token ids; the sampler may be used again for the next."""
        for block in blocks:
            yield from self.feed(block)
        yield from self.finish()

    def feed(self, codes: Codes) -> list[Window]:
        """Take the next token ids (n,) of the record. Returns the windows that are complete, if all are wanted.

        The first block is kept, not copied: do not write over it.
        """
        ready: list[Window] = []
        if self._first is None and not self.length:
            self._first = codes
            self.length = len(codes)
            return ready
        if self._first is not None:
            first, self._first, self.length = self._first, None, 0
            ready += self._take(first)
        return ready + self._take(codes)

    def finish(self) -> list[Window]:
        """End the record. Returns its windows, or the last of them if all were wanted; the next record may follow."""
        try:
            if self._first is not None:
                return self._of_one_block(self._first)
            if not self.length:
                return []
            last = max(self.length - self.context, 0)
            tail = Window(last, self._copy(last))
            if not self.max_windows:
                return [] if self._last_start == last else [tail]
            kept = {window.start: window for window in [*self._kept, tail]}
            return [kept[start] for start in window_starts(self.length, self.context, self.stride, self.max_windows)]
        finally:
            self._start_record()

    def _of_one_block(self, codes: Codes) -> list[Window]:
        if len(codes) <= self.context:  # as reads are, of which a file has millions
            return [Window(0, codes)] if len(codes) else []
        starts = window_starts(len(codes), self.context, self.stride, self.max_windows)
        return [Window(start, codes[start : start + self.context]) for start in starts]

    def _take(self, codes: Codes) -> list[Window]:
        """Copy into the buffer piece by piece, and out of it every candidate that has become complete."""
        if self._buffer is None:
            self._buffer = np.zeros(2 * self.context + 65536, dtype=np.uint8)
        buffer, ready, used = self._buffer, [], 0
        while used < len(codes):
            if self._filled == len(buffer):
                # candidates not yet complete begin within the last `context` letters
                buffer[: self.context] = buffer[len(buffer) - self.context :]
                self._filled = self.context
            n = min(len(codes) - used, len(buffer) - self._filled)
            buffer[self._filled : self._filled + n] = codes[used : used + n]
            self._filled += n
            used += n
            self.length += n
            while self._next + self.context <= self.length:
                window = Window(self._next, self._copy(self._next))
                self._last_start = self._next
                self._next += self._step
                if not self.max_windows:
                    ready.append(window)
                    continue
                self._kept.append(window)
                if len(self._kept) > KEPT_PER_WINDOW * self.max_windows:
                    self._kept = self._kept[::2]
                    self._step *= 2
                    self._next = self._kept[-1].start + self._step
        return ready

    def _copy(self, start: int) -> Codes:
        assert self._buffer is not None
        at = self._filled - (self.length - start)
        return self._buffer[at : min(at + self.context, self._filled)].copy()


def _checked(context: int, stride: int | None, max_windows: int) -> int:
    """The stride, after checking the three numbers."""
    if context < 1:
        raise ValueError(f"context is {context}, a length of at least 1 was expected")
    if stride is not None and stride < 1:
        raise ValueError(f"stride is {stride}, at least 1 was expected")
    if max_windows < 0:
        raise ValueError(f"max_windows is {max_windows}, 0 (all) or more was expected")
    return context if stride is None else stride
