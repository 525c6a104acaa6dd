"""Variants of a VCF file, line by line and with the line's text, so that it can be written on as it was read.

Of a line the first eight columns are read: CHROM, POS (1-based), REF and ALT are used, INFO can be added to (The
Variant Call Format Specification, VCFv4.3, sections 1.4 and 1.6.1). The file may be compressed, as in `sequences`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mamba_seq.data_prep.compression import input_name, open_input
from mamba_seq.data_prep.errors import BadRecord, NoRecords, NotText

FIRST = b"##fileformat=VCF"
COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
INFO = 7
LETTERS = frozenset("ACGTUNRYKMSWBDHV")

AltKind = Literal["bases", "symbolic", "overlapping", "missing"]


@dataclass(frozen=True)
class VcfLine:
    """A line of variants at one place.

    Attributes:
        number: Of the line in the file, from 1.
        text: The line without its end.
        end: What ended it: a line feed, a carriage return with one, or nothing.
        record: CHROM.
        position: POS, 1 for the first base of the record.
        ref: In capitals.
        alts: As they stand there.
    """

    number: int
    text: bytes
    end: bytes
    record: str
    position: int
    ref: str
    alts: tuple[str, ...]

    def with_info(self, entry: str) -> bytes:
        """Return the line, its end included, with another entry in INFO."""
        columns = self.text.split(b"\t")
        columns[INFO] = entry.encode() if columns[INFO] in (b".", b"") else columns[INFO] + b";" + entry.encode()
        return b"\t".join(columns) + self.end


class VcfFile:
    """A VCF file ("-" is standard input): its header is read at once, its lines when they are asked for.

    Attributes:
        header: Its lines, ends included; the last begins with #CHROM.
        read: Compressed bytes read so far; of a plain file those of the lines handed out.

    Raises:
        DataError: The file cannot be read, or is no VCF.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = input_name(path)
        self.read = 0
        self.header: list[bytes] = []
        self._compressed = False
        self._stream = open_input(path, self._note)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def declares(self, info: str) -> bool:
        """Whether the header has an INFO field of this name."""
        return any(line.startswith(f"##INFO=<ID={info},".encode()) for line in self.header)

    def lines(self) -> Iterator[VcfLine]:
        """Yield the lines of variants in the order of the file; blank ones are left out.

        Raises:
            DataError: A line is none of VCF, with its number.
        """
        for number, raw in enumerate(self._stream, len(self.header) + 1):
            if not self._compressed:
                self.read += len(raw)
            text = raw.rstrip(b"\r\n")
            if text:
                yield self._parsed(number, text, raw[len(text) :])

    def where(self, number: int) -> str:
        """Name the file and a line, for messages."""
        return f"{self.name}, line {number}"

    def _note(self, n: int) -> None:
        self._compressed = True
        self.read += n

    def _read_header(self) -> None:
        first = self._stream.read(len(FIRST))
        if first.startswith(b"BCF"):
            raise NotText(f"{self.name} is BCF, the binary form; convert it to VCF (bcftools view)")
        if first != FIRST:
            raise NotText(
                f"{self.name} is no VCF: it begins with {first.decode('ascii', 'backslashreplace')!r}, expected "
                f"{FIRST.decode()!r}"
            )
        line = first + self._stream.readline()
        while line.startswith(b"##"):
            self.header.append(line)
            line = self._stream.readline()
        if not line.startswith(COLUMNS):
            raise BadRecord(
                f"{self.where(len(self.header) + 1)}: the line of column names was expected, "
                f"{COLUMNS.decode().split()} with tabs between them"
            )
        self.header.append(line)
        if not self._compressed:
            self.read = sum(map(len, self.header))

    def _parsed(self, number: int, text: bytes, end: bytes) -> VcfLine:
        columns = text.split(b"\t", INFO + 1)
        if len(columns) <= INFO:
            raise BadRecord(
                f"{self.where(number)}: {len(columns)} columns came, expected {INFO + 1} or more with tabs between them"
            )
        record, position, _, ref, alt = (column.decode("utf-8", "backslashreplace") for column in columns[:5])
        if not position.isdecimal():
            raise BadRecord(f"{self.where(number)}: POS is {position!r}, expected a whole number")
        if not ref or not LETTERS.issuperset(ref.upper()):
            raise BadRecord(f"{self.where(number)}: REF is {ref!r}, expected bases")
        alts = tuple(alt.split(","))
        if wrong := [each for each in alts if not each]:
            raise BadRecord(
                f"{self.where(number)}: ALT is {alt!r}, with an empty one among {len(wrong) + len(alts) - 1}"
            )
        return VcfLine(number, text, end, record, int(position), ref.upper(), alts)


def kind_of(alt: str) -> AltKind:
    """Say what an alternative is: bases, none ("."), a deletion of another line ("*"), or a symbol or breakend."""
    if alt == ".":
        return "missing"
    if alt == "*":
        return "overlapping"
    return "bases" if LETTERS.issuperset(alt.upper()) else "symbolic"


def no_variants(name: str) -> NoRecords:
    """Return the error for a file without a line of variants."""
    return NoRecords(f"{name} holds no variant: lines were expected behind its header")
