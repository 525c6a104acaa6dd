"""One sequence record of a stream: its name, and its letters as blocks of token ids that are read only once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import DNA, INVALID, Alphabet, Codes
from mamba_seq.data_prep.errors import NotText
from mamba_seq.data_prep.text import mostly_control

WHITE_SPACE = b"\n\r\t\v\f "

_UINT8 = np.dtype(np.uint8)  # np.frombuffer is slow to make one from the type


@dataclass
class InvalidLetters:
    """The letters of a record that the alphabet lacks.

    Args:
        letter: The first of them; bytes that are no printable ASCII as `\\xNN`.
        position: Where it stands in the sequence, 1 for the first letter, white space not counted.
        count: How many there are.
    """

    letter: str
    position: int
    count: int

    def __str__(self) -> str:
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return f"'{self.letter}' at position {self.position}{more}"


class RecordKind:
    """What the records of one file have in common."""

    def __init__(
        self, file_format: str, source_name: str, alphabet: Alphabet = DNA, ignored: bytes = WHITE_SPACE
    ) -> None:
        self.format = file_format
        self.source_name = source_name
        self.ignored = ignored
        self.table = alphabet.table
        self.unknown = alphabet.unknown_code


class SequenceRecord:
    """A record of a file that is being read: iterate over `blocks` or take `codes`, once, before the next record.

    Letters that the alphabet lacks arrive as the unknown symbol, and `invalid` says which and where. `length`,
    `bases` and `invalid` describe what has been read so far, so the whole record once `blocks` has ended.

    Attributes:
        length: Letters, white space not counted.
        bases: Letters that are neither the unknown symbol nor invalid.
        invalid: None, or the letters that the alphabet lacks.
    """

    __slots__ = ("_header", "_kind", "_next_chunk", "_whole", "bases", "invalid", "length")

    def __init__(
        self,
        header: bytes,
        kind: RecordKind,
        whole: bytes | None = None,
        next_chunk: Callable[[], bytes] | None = None,
    ) -> None:
        """Text comes whole, or chunk after chunk from `next_chunk` until it returns nothing."""
        self.length = 0
        self.bases = 0
        self.invalid: InvalidLetters | None = None
        self._header = header
        self._kind = kind
        self._whole = whole
        self._next_chunk = next_chunk

    @property
    def name(self) -> str:
        """The header up to its first white space; may be empty."""
        return _name(self._header)

    @property
    def description(self) -> str:
        """The rest of the header."""
        return _description(self._header)

    @property
    def format(self) -> str:
        """The file's format: "fasta", "fastq" or "genbank"."""
        return self._kind.format

    def blocks(self) -> Iterator[Codes]:
        """Token ids in order, as read-only arrays (n,) uint8 of at most about 1 Mi each; none for an empty record."""
        if self._whole is None:
            return self._streamed()
        # no generator: a file may hold millions of records of one block
        whole, self._whole = self._whole, None
        codes = self._encode(whole)
        return iter((codes,) if codes.size else ())

    def _streamed(self) -> Iterator[Codes]:
        if self._next_chunk is None:
            raise RuntimeError(
                f"record {self.name!r} was read before, or the next record was asked for: "
                "use its blocks once, and first; keep record.codes() to use them again"
            )
        while self._next_chunk is not None and (chunk := self._next_chunk()):
            codes = self._encode(chunk)
            if codes.size:
                yield codes
        self._next_chunk = None

    def codes(self) -> Codes:
        """All token ids (length,) uint8 at once, for records known to be small."""
        parts = list(self.blocks())
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)

    def skip(self) -> None:
        """Move the file past what is left of this record without decoding it."""
        if self._next_chunk is not None:
            while self._next_chunk():
                pass
            self._next_chunk = None

    def _encode(self, chunk: bytes) -> Codes:
        kind = self._kind
        coded = chunk.translate(kind.table, kind.ignored)
        if INVALID in coded:
            coded = self._note_invalid(chunk, coded)
        codes = np.frombuffer(coded, _UINT8)
        n = len(coded)
        self.length += n
        # bytes.count is the quicker of the two for short texts, and slow on long ones full of N
        self.bases += n - coded.count(kind.unknown) if n < 4096 else int(np.count_nonzero(codes != kind.unknown))
        return codes

    def _note_invalid(self, chunk: bytes, coded: bytes) -> bytes:
        """The ids with the unknown symbol for invalid letters. `bases` counts the letters of which this is none."""
        kind = self._kind
        if mostly_control(chunk):
            raise NotText(
                f"{kind.source_name} is not text: control characters came in record {self.name!r}, letters were "
                "expected; check that the file is whole and not binary"
            )
        where = np.flatnonzero(np.frombuffer(coded, _UINT8) == INVALID)
        if self.invalid is None:
            letter = chunk.translate(None, kind.ignored)[where[0] : where[0] + 1]
            shown = letter.decode("ascii", "backslashreplace")
            self.invalid = InvalidLetters(shown, self.length + int(where[0]) + 1, len(where))
        else:
            self.invalid.count += len(where)
        return coded.replace(bytes([INVALID]), bytes([kind.unknown]))


class EncodedBlock:
    """The letters of many records, encoded together, and where those of each and its header stand.

    Args:
        kind: What the records have in common.
        text: What they were read from.
        codes: The token id of every byte of it (n,).
        headers: Where the header of each record begins and ends in the text, two arrays (records,).
        letters: The same of its letters.
        known: How many letters of each are not the unknown symbol (records,).
    """

    __slots__ = ("_headers", "_names", "codes", "first", "kind", "known", "last", "text")

    def __init__(
        self,
        kind: RecordKind,
        text: bytes,
        codes: Codes,
        headers: tuple[NDArray[np.int64], NDArray[np.int64]],
        letters: tuple[NDArray[np.int64], NDArray[np.int64]],
        known: list[int],
    ) -> None:
        self.kind = kind
        self.text = text
        self.codes = codes
        self.first: list[int] = letters[0].tolist()
        self.last: list[int] = letters[1].tolist()
        self.known = known
        self._headers = headers
        self._names: tuple[list[int], list[int]] | None = None

    def header(self, index: int) -> bytes:
        """The header of a record."""
        if self._names is None:
            self._names = self._headers[0].tolist(), self._headers[1].tolist()
        return self.text[self._names[0][index] : self._names[1][index]]


class EncodedRecord(SequenceRecord):
    """A record of a block that has been encoded, with at least one letter and none of them invalid."""

    __slots__ = ("_block", "_index")

    invalid = None
    _whole = None
    _next_chunk = None

    # by hand and not through the base: a file may hold millions of these
    def __init__(self, block: EncodedBlock, index: int) -> None:
        self._block = block
        self._index = index
        self.length = self.bases = 0

    @property
    def name(self) -> str:
        """The header up to its first white space; may be empty."""
        return _name(self._block.header(self._index))

    @property
    def description(self) -> str:
        """The rest of the header."""
        return _description(self._block.header(self._index))

    @property
    def format(self) -> str:
        """The file's format: "fasta" or "fastq"."""
        return self._block.kind.format

    def blocks(self) -> Iterator[Codes]:
        """The token ids as one read-only array (n,) uint8, a view of those of the whole block."""
        if self.length:
            return super()._streamed()
        block, index = self._block, self._index
        first, last = block.first[index], block.last[index]
        self.length = last - first
        self.bases = block.known[index]
        return iter((block.codes[first:last],))

    def codes(self) -> Codes:
        """All token ids (length,) uint8, copied: the view would keep those of all records of its block."""
        return super().codes().copy()


def _name(header: bytes) -> str:
    words = header.split(None, 1)
    return _decoded(words[0]) if words else ""


def _description(header: bytes) -> str:
    words = header.split(None, 1)
    return _decoded(words[1].rstrip()) if len(words) == 2 else ""


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
