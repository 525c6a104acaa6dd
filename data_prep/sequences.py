"""Read sequence records from a file or standard input: FASTA, FASTQ or GenBank, plain or compressed.

    for record in read_sequences("genomes.fa.gz"):
        for codes in record.blocks():
            ...
        print(record.name, record.length)

Memory is a few blocks of 1 MiB, whatever the size of the file, of a record or of a line.
"""

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mamba_seq.data_prep.alphabet import DNA, Alphabet
from mamba_seq.data_prep.compression import input_name, open_input
from mamba_seq.data_prep.errors import NoRecords
from mamba_seq.data_prep.fasta import FastaParser
from mamba_seq.data_prep.fastq import FastqParser
from mamba_seq.data_prep.genbank import GenbankParser
from mamba_seq.data_prep.records import SequenceRecord
from mamba_seq.data_prep.text import BLOCK_SIZE, TextSource, shown


class Position:
    """How far the reading of a file has come."""

    def __init__(self) -> None:
        self._compressed = 0
        self._source: TextSource | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the file up to the end of what was handed out of its records.

        For a compressed file an estimate of its compressed bytes, exact at the end.
        """
        source = self._source
        if source is None or not source.read:
            return 0
        return (self._compressed or source.offset) * source.used // source.read

    def advance(self, n: int) -> None:
        """Note that `n` compressed bytes were read."""
        self._compressed += n

    def follow(self, source: TextSource) -> None:
        """Take the records from `source`."""
        self._source = source


def read_sequences(
    path: str | os.PathLike[str],
    *,
    alphabet: Alphabet = DNA,
    block_size: int = BLOCK_SIZE,
    copy: Callable[[bytes], object] | None = None,
    position: Position | None = None,
) -> Iterator[SequenceRecord]:
    """Records of a file, or of standard input for "-", in their order; at least one, or an error.

    A record is used before the next one is asked for; what is left of it is skipped then.

    Args:
        path: File of FASTA, FASTQ or GenBank, plain or compressed with gzip, bgzip, bzip2, xz or zstd, or "-".
        alphabet: What the letters mean.
        block_size: Bytes read at a time.
        copy: Takes the text of each record, header and qualities included and line ends as LF, before the next record
            is handed out; the last line may lack its end.
        position: Told how far the reading has come.

    Raises:
        DataError: The file is missing, empty, truncated, binary, or holds no record; raised when the first record
            is asked for, or later where the fault is met later.
    """
    stream = open_input(path, None if position is None else position.advance)
    try:
        name = input_name(path)
        yield from parse_sequences(stream, name, alphabet=alphabet, block_size=block_size, copy=copy, position=position)
    finally:
        stream.close()


def parse_sequences(
    stream: BinaryIO,
    name: str,
    *,
    alphabet: Alphabet = DNA,
    block_size: int = BLOCK_SIZE,
    copy: Callable[[bytes], object] | None = None,
    position: Position | None = None,
) -> Iterator[SequenceRecord]:
    """Records of an open stream of uncompressed text, which messages call `name`; see read_sequences."""
    source = TextSource(stream, name, block_size, copy)
    if position is not None:
        position.follow(source)
    if not source.skip_blank():
        raise source.empty()
    first = source.data[source.pos : source.pos + 1]
    while first == b";":  # comments before the first FASTA header
        source.line()
        first = source.data[source.pos : source.pos + 1] if source.skip_blank() else b""
        if first not in (b";", b">"):
            raise _no_records(source)
    if first == b">":
        return FastaParser(source, alphabet).records()
    if first == b"@":
        return FastqParser(source, alphabet).records()
    while len(source.data) - source.pos < 200 and source.fill():
        pass
    if source.data.startswith(b"LOCUS ", source.pos):
        return GenbankParser(source, alphabet).records()
    raise _no_records(source)


def _no_records(source: TextSource) -> NoRecords:
    start = source.data[source.pos : source.pos + 200]
    came = f"it starts with {shown(start)}" if start else "it holds nothing but comments"
    return NoRecords(
        f"{source.name} holds no sequence record: {came}; '>' (FASTA), '@' (FASTQ) or LOCUS (GenBank) was expected; "
        "check that this is the file you meant"
    )
