"""The lines of a block of text, encoded all at once: for files of millions of records with their letters on one line.

What a line holds is found by a few passes over the whole block instead of by calls for every record.
Lines with white space or letters that the alphabet lacks are told apart, not read: `SequenceRecord` does that.
"""

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import Codes
from mamba_seq.data_prep.records import RecordKind

_NEWLINE = ord("\n")
_IGNORED = 254  # an id that white space within a line gets here; letters that the alphabet lacks have a higher one


class CodedLines:
    """The n lines of a text that ends with a line end.

    Attributes:
        text: What the lines are of.
        starts: Where each begins (n,).
        ends: Where each ends (n,), the line end excluded.
        first: The first byte of each (n,); of an empty line its line end.
    """

    def __init__(self, text: bytes, kind: RecordKind) -> None:
        self._kind = kind
        self.text = text
        raw = np.frombuffer(text, np.uint8)
        self.ends: NDArray[np.int64] = np.flatnonzero(raw == _NEWLINE)
        self.starts: NDArray[np.int64] = np.zeros_like(self.ends)
        self.starts[1:] = self.ends[:-1] + 1
        self.first: Codes = raw[self.starts]

    def encode(self) -> tuple[Codes, NDArray[np.bool_], NDArray[np.int32]]:
        """Encode all lines, whether they hold letters or not.

        Returns:
            A token id for every byte of the text, of lines that are clean those of their letters; whether each line
            (n,) is clean; and how many unknown symbols each of those has (n,).
        """
        unknown = self._kind.unknown
        table = bytearray(self._kind.table)
        for byte in self._kind.ignored:
            table[byte] = _IGNORED
        table[_NEWLINE] = 0 if unknown else 1  # so that a line's end is a known symbol
        codes = np.frombuffer(self.text.translate(bytes(table)), np.uint8)
        clean = np.maximum.reduceat(codes, self.starts) < _IGNORED
        return codes, clean, np.add.reduceat(codes == unknown, self.starts, dtype=np.int32)
