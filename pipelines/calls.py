"""What the model says of every window of a record, in the order of the windows and in bounded memory."""

import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from mamba_seq.calibration import Calibration

CALL: Final = np.dtype([("start", "<i8"), ("end", "<i8"), ("label", "<i4"), ("share", "<u2")])
"""A window from start to end (exclusive), the number of its most probable class, and that probability in parts of
SHARES; label NO_BASES for a window of nothing but N."""
NO_BASES: Final = -1
SHARES: Final = 10_000
LOT = 4096
"""Calls that are held as Python objects while some of them wait for the model."""
LOTS_IN_MEMORY = 16
"""More of them, of one record, go to a temporary file."""


class Calls:
    """The calls of one record.

    Args:
        calibration: makes probabilities of the model's scores; None takes these as they are.
    """

    __slots__ = ("_calibration", "_done", "_file", "_first", "_lots", "_waiting", "count")

    def __init__(self, calibration: Calibration | None = None) -> None:
        self.count = 0
        """Windows so far."""
        self._calibration = calibration
        self._lots: list[list[list[int]]] = []  # those with calls that wait, and the one that is being filled
        self._first = 0  # number of the first of them
        self._waiting: list[int] = []
        self._done: list[NDArray[np.void]] = []
        self._file: BinaryIO | None = None

    def reserve(self, start: int, end: int) -> int:
        """Note a window and return its number; until `settle` it has no bases."""
        if self.count % LOT == 0:
            self._lots.append([])
            self._waiting.append(0)
        self._lots[-1].append([start, end, NO_BASES, 0])
        self.count += 1
        return self.count - 1

    def wait(self) -> None:
        """Say that the last window noted will be settled."""
        self._waiting[-1] += 1

    def settle(self, number: int, log_probabilities: NDArray[np.float64], bases: float) -> None:
        """Take in what the model says, log-probabilities (labels,), of a window with so many bases."""
        lot = number // LOT - self._first
        probabilities = np.exp(log_probabilities)
        probabilities /= probabilities.sum()
        if self._calibration is not None:
            probabilities = self._calibration.apply(probabilities, bases)
        # rounded before the best is chosen: what differs in the last bit may not turn a tie around
        shares = np.rint(probabilities * SHARES)
        best = int(shares.argmax())
        self._lots[lot][number % LOT][2:] = [best, int(shares[best])]
        self._waiting[lot] -= 1
        while len(self._lots) > 1 and not self._waiting[0]:
            self._keep(self._lots.pop(0))
            self._waiting.pop(0)
            self._first += 1

    def __iter__(self) -> Iterator[NDArray[np.void]]:
        """Yield the calls as arrays (n,) of CALL, n at most LOT."""
        if self._file is not None:
            self._file.seek(0)
            while piece := self._file.read(LOT * CALL.itemsize):
                yield np.frombuffer(piece, CALL)
        yield from self._done
        for lot in self._lots:
            yield _array(lot)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def _keep(self, lot: list[list[int]]) -> None:
        self._done.append(_array(lot))
        if len(self._done) < LOTS_IN_MEMORY:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the record goes
        self._file.seek(0, 2)
        for done in self._done:
            self._file.write(done.tobytes())
        self._done.clear()


def _array(lot: list[list[int]]) -> NDArray[np.void]:
    return np.array([tuple(call) for call in lot], dtype=CALL)
