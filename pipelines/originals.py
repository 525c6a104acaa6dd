"""The text of records as it was read, kept until their rows have left, to be written on by class.

What is kept is bounded: a long record waits in a temporary file of its own, and when much waits, `crowded` asks for the
model to be run, so that rows leave.
"""

import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from mamba_seq.data_prep.errors import DataError
from mamba_seq.pipelines.rows import Row

PIECE: Final = 1 << 20
LONGEST_IN_MEMORY = 1 << 20
"""Bytes of a record from which on it waits in a temporary file."""
MOST_IN_MEMORY = 1 << 24
MOST_FILES = 64


class Original:
    """The text of one record."""

    __slots__ = ("_file", "_left", "_parts", "format", "size")

    def __init__(self, left: Callable[["Original"], None]) -> None:
        self.format = ""
        self.size = 0
        self._parts: list[bytes] = []
        self._file: BinaryIO | None = None
        self._left = left

    @property
    def in_file(self) -> bool:
        """Whether it waits in a temporary file."""
        return self._file is not None

    def write(self, data: bytes) -> None:
        """Append text."""
        self.size += len(data)
        self._parts.append(data)
        if self.size > LONGEST_IN_MEMORY:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by release
            self._file.write(b"".join(self._parts))
            self._parts.clear()

    def pieces(self) -> Iterator[bytes]:
        """Yield the text, with an end to its last line."""
        last = b""
        if self._file is not None:
            self._file.seek(0)
            while piece := self._file.read(PIECE):
                last = piece
                yield piece
        for last in self._parts:
            yield last
        if not last.endswith(b"\n"):
            yield b"\n"

    def release(self) -> None:
        """Forget the text."""
        self._left(self)
        self._parts.clear()
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


class Originals:
    """Collects the text of the record that is being read, and counts what waits."""

    def __init__(self) -> None:
        self._bytes = 0
        self._files = 0
        self._new = Original(self._leave)

    def write(self, data: bytes) -> None:
        """Append text to the record that is being read."""
        self._new.write(data)

    def cut(self, file_format: str) -> Original:
        """Return the text of the record that was read, and begin the next."""
        done, self._new = self._new, Original(self._leave)
        done.format = file_format
        if done.in_file:
            self._files += 1
        else:
            self._bytes += done.size
        return done

    @property
    def crowded(self) -> bool:
        """Whether rows should leave before more is read."""
        return self._bytes > MOST_IN_MEMORY or self._files > MOST_FILES

    def _leave(self, original: Original) -> None:
        if original.in_file:
            self._files -= 1
        else:
            self._bytes -= original.size


class OriginalsWriter:
    """Writes the records that have a class, or those that have none, as they were read.

    Args:
        option: that asked for it, for messages.
        classified: which of the two.
    """

    def __init__(self, option: str, classified: bool) -> None:
        self._option = option
        self._classified = classified
        self._format = ""

    def head(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()

    def row(self, row: Row) -> Iterator[bytes]:
        """Yield the text of a record that is one of those wanted.

        Raises:
            DataError: when records of different formats would come into one file.
        """
        if (row.status == "ok") != self._classified:
            return
        assert row.original is not None
        self._format = self._format or row.original.format
        if row.original.format != self._format:
            raise DataError(
                f"{self._option} would hold {self._format} and {row.original.format} records, and no program reads "
                "both from one file; classify the files of each format by themselves"
            )
        yield from row.original.pieces()

    def tail(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()
