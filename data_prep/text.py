"""Text in blocks for the sequence parsers: one kind of line end, no byte-order mark, refused when it is not text."""

from collections.abc import Callable
from typing import BinaryIO

from mamba_seq.data_prep.errors import EmptyFile, NotText

BLOCK_SIZE = 1 << 20
LONGEST_LINE = 64 * 1024  # of a header; sequence lines may have any length

_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"
_SAM = (b"HD", b"SQ", b"RG", b"PG", b"CO")
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32LE"),
    (b"\x00\x00\xfe\xff", "UTF-32BE"),
    (b"\xff\xfe", "UTF-16LE"),
    (b"\xfe\xff", "UTF-16BE"),
)
# what people give in good faith: where it says so, its bytes, its name, what to do
_CONTAINERS = (
    (0, b"BAM\1", "a BAM file", "write its reads as FASTA first (samtools fasta)"),
    (0, b"CRAM", "a CRAM file", "write its reads as FASTA first (samtools fasta)"),
    *((0, b"@" + kind + b"\t", "a SAM file", "write its reads as FASTA first (samtools fasta)") for kind in _SAM),
    (257, b"ustar", "a tar archive", "unpack it first (tar -xf)"),
    (0, b"\x1f\x8b", "compressed twice", "unpack it once first (gzip -dc)"),
)


class TextSource:
    """A cursor over a stream: `data[pos:]` is what was read and not yet used; `fill` reads on.

    CR LF and lone CR arrive as LF. Memory is about two blocks, whatever the length of a line.

    Attributes:
        copy: Takes the text of every record as it is used, for those who write records on; None when nobody does.
        read: Bytes of text that came, line ends as LF.
        offset: The same as they came.
        ahead: Bytes before the cursor that belong to records which have not been handed out.
    """

    def __init__(
        self, stream: BinaryIO, name: str, block_size: int = BLOCK_SIZE, copy: Callable[[bytes], object] | None = None
    ) -> None:
        self.name = name
        self.data = b""
        self.pos = 0
        self.copy = copy
        self.read = 0
        self.ahead = 0
        self._copied: int | None = None  # up to where the record's text in `data` was copied; None between records
        self._stream = stream
        self._block_size = block_size
        self._first = True
        self._held = b""  # a CR at the end of a block: the next block may start with its LF
        self.offset = 0

    @property
    def used(self) -> int:
        """Bytes of text up to the end of what was handed out."""
        return self.read - (len(self.data) - self.pos) - self.ahead

    def begin_record(self) -> None:
        """Copy what is used from the cursor on, if somebody wants copies."""
        if self.copy is not None:
            self._copied = self.pos

    def end_record(self) -> None:
        """Copy what was used up to the cursor, and no more."""
        if self.copy is not None and self._copied is not None:
            self.copy(self.data[self._copied : self.pos])
            self._copied = None

    def fill(self) -> bool:
        """Drop what was used and append the next block. False at the end of the stream."""
        block = self._next_block()
        if not block:
            return False
        if self._copied is not None:
            self.end_record()
            self._copied = 0
        self.read += len(block)
        self.data = self.data[self.pos :] + block if self.pos < len(self.data) else block
        self.pos = 0
        return True

    def line(self, limit: int = LONGEST_LINE) -> bytes:
        """The rest of the line at the cursor without its end; what exceeds `limit` bytes is dropped."""
        end = self.data.find(b"\n", self.pos)
        if end >= 0:
            line = self.data[self.pos : min(end, self.pos + limit)]
            self.pos = end + 1
            return line
        kept = bytearray()
        while True:
            end = self.data.find(b"\n", self.pos)
            kept += self.data[self.pos : end if end >= 0 else len(self.data)][: limit - len(kept)]
            self.pos = end + 1 if end >= 0 else len(self.data)
            if end >= 0 or not self.fill():
                return bytes(kept)

    def at_end(self) -> bool:
        """Whether nothing is left, after reading on if need be."""
        return self.pos >= len(self.data) and not self.fill()

    def skip_blank(self) -> bool:
        """Move to the next byte that is not white space. False when there is none."""
        while not self.at_end():
            rest = self.data[self.pos : self.pos + 4096]
            stripped = rest.lstrip()
            self.pos += len(rest) - len(stripped)
            if stripped:
                return True
        return False

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def _next_block(self) -> bytes:
        while True:
            block = self._stream.read(max(self._block_size, 4) if self._first else self._block_size)
            if self._first:
                self._first = False
                self.offset = len(block)
                block = self._checked_first(block)
            else:
                if b"\0" in block:
                    raise self.not_text(f"a NUL byte at byte {self.offset + block.index(0) + 1}")
                self.offset += len(block)
            if not block:
                block, self._held = self._held, b""
                return block.replace(b"\r", b"\n")
            if self._held or b"\r" in block:
                block = self._held + block
                self._held = b"\r" if block.endswith(b"\r") else b""
                block = block[: len(block) - len(self._held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if block:
                return block

    def _checked_first(self, block: bytes) -> bytes:
        for place, magic, what, advice in _CONTAINERS:
            if block.startswith(magic, place):
                raise NotText(f"{self.name} is {what}, which is not read here; {advice}")
        for mark, encoding in _BYTE_ORDER_MARKS:
            if block.startswith(mark):
                raise self._wide(encoding)
        if b"\0" in block:
            sample = block[:2000]
            even, odd = sample[0::2].count(0), sample[1::2].count(0)
            if max(even, odd) > 0.4 * len(sample) and min(even, odd) < 0.05 * len(sample):
                raise self._wide("UTF-16LE" if odd > even else "UTF-16BE")
            raise self.not_text(f"a NUL byte at byte {block.index(0) + 1}")
        if mostly_control(block):
            raise self.not_text("many control characters")
        return block.removeprefix(b"\xef\xbb\xbf")

    def _wide(self, encoding: str) -> NotText:
        return NotText(
            f"{self.name} is {encoding} text, ASCII or UTF-8 was expected; "
            f"convert it: iconv -f {encoding.removesuffix('LE').removesuffix('BE')} -t UTF-8"
        )

    def not_text(self, found: str) -> NotText:
        """The error for content that is no text, saying what was found."""
        return NotText(
            f"{self.name} is not text: it has {found}; FASTA or FASTQ was expected, "
            "plain or compressed with gzip, bgzip, bzip2, xz or zstd"
        )

    def empty(self) -> EmptyFile:
        """The error for a file without content."""
        return EmptyFile(f"{self.name} is empty: nothing but white space came, sequence records were expected")


def mostly_control(text: bytes) -> bool:
    """Whether more than 1 % of the bytes are control characters, which no text has."""
    return len(text) - len(text.translate(None, _CONTROL)) > 0.01 * len(text)


def shown(text: bytes, limit: int = 40) -> str:
    """The start of a text as a message quotes it."""
    line = text.splitlines()[0] if text else b""
    return repr(line[:limit].decode("utf-8", "replace")) + (" ..." if len(line) > limit else "")
