"""Records with their letters on one line are encoded many at a time: nothing may differ from reading each by itself."""

import io
from typing import Any

import numpy as np
import pytest

from mamba_seq.data_prep.alphabet import DNA, PROTEIN, Alphabet
from mamba_seq.data_prep.fasta import FastaParser
from mamba_seq.data_prep.records import EncodedRecord
from mamba_seq.data_prep.sequences import Position, parse_sequences

FIRST_UNKNOWN = Alphabet(name="odd", symbols="NACGT", unknown="N", ambiguous="R")
LINES = [
    "ACGT",
    "acgtn",
    "A",
    "NNNN",
    "AC GT",
    "AC\tG",
    "ACGU",
    "AXGZ",
    "RYK-.",
    "",
    "A" * 2049,
    "AC\x0bGT",
    "É",
    ";AC",
]


def everything(text: bytes, alphabet: Alphabet, block_size: int) -> list[Any]:
    """All that can be known of every record, the text that was copied and how far the reading had come."""
    parts: list[bytes] = []
    position, found = Position(), []
    for record in parse_sequences(
        io.BytesIO(text), "x", alphabet=alphabet, block_size=block_size, copy=parts.append, position=position
    ):
        before = (record.length, record.bases, record.invalid)
        codes = b"".join(block.tobytes() for block in record.blocks())
        after = (record.length, record.bases, record.invalid)
        found.append([record.name, record.description, record.format, before, codes, after, parts.copy()])
        parts.clear()
    return found


def fasta(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    text = ""
    for i in range(200):
        text += f">r{i} {'x' * int(rng.choice([0, 3, 70_000], p=[0.6, 0.39, 0.01]))}\n"
        odd = LINES if seed % 2 else LINES[:-1]  # a comment leaves the whole block to the other way
        for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.1, 0.7, 0.1, 0.1]))):
            text += str(rng.choice(odd if rng.random() < 0.3 else LINES[:2])) + "\n"
    return text.encode()


def fastq(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    text = ""
    for i in range(200):
        line = str(rng.choice(LINES[:4] + LINES[6:11] if rng.random() < 0.3 else LINES[:2]))
        text += f"@r{i} {'x' * int(rng.choice([0, 3]))}\n{line}\n+\n{'@' * len(line)}\n"
        if seed % 2 and i == 100:
            text += "@wrapped\nAC\nGT\n+\n+@\n@@\n\n\n"
    return text.encode()


@pytest.mark.parametrize("alphabet", [DNA, PROTEIN, FIRST_UNKNOWN], ids=lambda alphabet: alphabet.name)
@pytest.mark.parametrize("seed", range(6))
def test_fasta_reads_as_record_by_record(monkeypatch: pytest.MonkeyPatch, seed: int, alphabet: Alphabet) -> None:
    text = fasta(seed)
    found = {block_size: everything(text, alphabet, block_size) for block_size in (1 << 20, 1 << 12)}
    monkeypatch.setattr(FastaParser, "_short_records", lambda self, text: None)
    assert len(found[1 << 20]) == 200
    for block_size, records in found.items():
        expected = everything(text, alphabet, block_size)
        assert [record[:-1] for record in records] == [record[:-1] for record in expected]
        assert [b"".join(record[-1]) for record in records] == [b"".join(record[-1]) for record in expected]


@pytest.mark.parametrize("alphabet", [DNA, FIRST_UNKNOWN], ids=lambda alphabet: alphabet.name)
@pytest.mark.parametrize("seed", range(2))
def test_fastq_reads_as_record_by_record(seed: int, alphabet: Alphabet) -> None:
    text = fastq(seed)
    expected = everything(text, alphabet, 1)  # nothing is whole in a block of one byte
    assert len(expected) == 200 + seed % 2
    for block_size in (1 << 20, 1 << 12):
        found = everything(text, alphabet, block_size)
        assert [record[:-1] for record in found] == [record[:-1] for record in expected]
        assert [b"".join(record[-1]) for record in found] == [b"".join(record[-1]) for record in expected]


@pytest.mark.parametrize("text", [b">a\nACGN\n" * 3, b"@a\nACGN\n+\nIIII\n" * 3], ids=["fasta", "fastq"])
def test_codes_do_not_keep_the_block_and_are_there_once(text: bytes) -> None:
    records = parse_sequences(io.BytesIO(text), "x")
    record = next(records)
    assert isinstance(record, EncodedRecord)
    assert (record.length, record.bases) == (0, 0)
    codes = record.codes()
    assert codes.base is None
    assert (codes.tolist(), record.length, record.bases, record.invalid) == ([0, 1, 2, 4], 4, 3, None)
    with pytest.raises(RuntimeError, match="'a' was read before"):
        list(record.blocks())
    record = next(records)
    record.skip()
    (block,) = next(records).blocks()
    with pytest.raises(ValueError, match="read-only"):
        block[0] = 1


def test_blocks_of_long_records_are_left_to_the_other_way() -> None:
    text = b"".join(b">r%d\n%b" % (i, b"ACGT" * 20 + b"\n") * 1 + b"ACGT\n" * 9 for i in range(5))
    kinds = [type(record) for record in parse_sequences(io.BytesIO(text), "x")]
    assert EncodedRecord not in kinds
