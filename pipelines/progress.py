"""How much of the input is done, for a progress bar that tells the truth.

Done is what has a certain row, measured in bytes of the files as they are. Bytes that were read and whose windows wait
for the model count by the part of these windows that went through it: a chromosome is not done when it is read, and a
record that is still being read counts as far as its windows have gone through. The figure never falls.
"""

import os
import stat
from collections.abc import Sequence

from mamba_seq.data_prep.sequences import Position


class Progress:
    """Counts bytes over files.

    Args:
        paths: the files in order; with standard input or a pipe among them, how much there is remains unknown.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._sizes = [_size(path) for path in paths]
        self._all = None if None in self._sizes else sum(size or 0 for size in self._sizes)
        self._before = 0  # bytes of the files before this one
        self._start = 0  # where the record that is being read begins
        self._part = 0.0  # how much of what was read of it has been cut into windows
        self._finished = 0  # up to the last record whose row is certain
        self._windows = 0  # of the records before it
        self._done = 0.0
        self._position = Position()

    def open(self, number: int) -> Position:
        """Begin the file of this number; what is returned is to be told how far its reading has come."""
        self._before = self._start = sum(size or 0 for size in self._sizes[:number])
        self._position = Position()
        return self._position

    def cut(self, letters: int, read: int) -> None:
        """Note that of the letters that were read of this record so many have been cut into windows."""
        self._part = letters / read

    def end_record(self) -> int:
        """Note that the record was read to its end, and return where that is, the bytes of earlier files included."""
        self._start, self._part = self._before + self._position.bytes, 0.0
        return self._start

    @property
    def place(self) -> float:
        """Up to where, in bytes, the input has been cut into windows."""
        return self._start + max(0, self._before + self._position.bytes - self._start) * self._part

    def finish(self, place: int, windows: int) -> None:
        """Note that the next record in order is done, which ends at `place` and had so many windows."""
        self._finished = place
        self._windows += windows

    def end(self) -> None:
        """Note that everything is done."""
        self._done = 1.0

    def done(self, windows: int, added: int) -> float | None:
        """Return the part that is done, 0 to 1, or None when nobody knows how much there is.

        Args:
            windows: that went through the model, of all records.
            added: that went or will go through it.
        """
        if not self._all:
            return None
        waiting, through = added - self._windows, windows - self._windows
        if waiting > 0 and through > 0:
            bytes_done = self._finished + (self.place - self._finished) * through / waiting
        else:
            bytes_done = self._finished
        self._done = max(self._done, min(1.0, bytes_done / self._all))
        return self._done


def _size(path: str) -> int | None:
    """Return the size of a regular file, or None."""
    try:
        status = os.stat(path) if path != "-" else None
    except OSError:
        return None
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None
