"""Read sequence records from a file or standard input: FASTA, FASTQ or GenBank, plain or compressed.

    for record in read_sequences("genomes.fa.gz"):
        for codes in record.blocks():
            ...
        print(record.name, record.length)

Memory is a few blocks of 1 MiB, whatever the size of the file, of a record or of a line.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

from mamba_seq.data_prep.alphabet import DNA, Alphabet
from mamba_seq.data_prep.compression import input_name, open_input
from mamba_seq.data_prep.errors import NoRecords
from mamba_seq.data_prep.fasta import FastaParser
from mamba_seq.data_prep.fastq import FastqParser
from mamba_seq.data_prep.genbank import GenbankParser
from mamba_seq.data_prep.records import SequenceRecord
from mamba_seq.data_prep.text import BLOCK_SIZE, TextSource, shown


def read_sequences(
    path: str | os.PathLike[str], *, alphabet: Alphabet = DNA, block_size: int = BLOCK_SIZE
) -> Iterator[SequenceRecord]:
    """Records of a file, or of standard input for "-", in their order; at least one, or an error.

    A record is used before the next one is asked for; what is left of it is skipped then.

    Args:
        path: File of FASTA, FASTQ or GenBank, plain or compressed with gzip, bgzip, bzip2, xz or zstd, or "-".
        alphabet: What the letters mean.
        block_size: Bytes read at a time.

    Raises:
        DataError: The file is missing, empty, truncated, binary, or holds no record; raised when the first record
            is asked for, or later where the fault is met later.
    """
    stream = open_input(path)
    try:
        yield from parse_sequences(stream, input_name(path), alphabet=alphabet, block_size=block_size)
    finally:
        stream.close()


def parse_sequences(
    stream: BinaryIO, name: str, *, alphabet: Alphabet = DNA, block_size: int = BLOCK_SIZE
) -> Iterator[SequenceRecord]:
    """Records of an open stream of uncompressed text, which messages call `name`; see read_sequences."""
    source = TextSource(stream, name, block_size)
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
