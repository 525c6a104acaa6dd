"""The readers of FASTA, FASTQ and GenBank: round trips at every block boundary, oddities, refusals, memory."""

import gzip
import io
import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mamba_seq.data_prep.alphabet import decode
from mamba_seq.data_prep.errors import BadRecord, DataError, EmptyFile, NoRecords, NotText, TruncatedFile
from mamba_seq.data_prep.sequences import Position, parse_sequences, read_sequences

BLOCK_SIZES = (1, 2, 3, 7, 64, 1 << 20)
Read = list[tuple[str, str, str]]


def read(text: bytes | str, block_size: int = 1 << 20) -> Read:
    raw = text.encode() if isinstance(text, str) else text
    records = parse_sequences(io.BytesIO(raw), "test.fa", block_size=block_size)
    return [(record.name, record.description, decode(record.codes())) for record in records]


def wrap(text: str, width: int, end: str) -> str:
    return "".join(text[i : i + width] + end for i in range(0, len(text), width))


@pytest.mark.parametrize("seed", range(40))
def test_fasta_round_trip_at_every_block_boundary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    end = str(rng.choice(["\n", "\r\n", "\r"]))
    expected, text = [], "" if seed % 3 else "\n \n"
    for i in range(int(rng.integers(1, 9))):
        letters = "".join(rng.choice(list("ACGTN"), int(rng.choice([0, 1, 5, 63, 150]))))
        expected.append((f"r{i}", "a >b @c" if i % 2 else "", letters))
        written = "".join(c.lower() if rng.random() < 0.3 else c for c in letters)
        text += f">r{i}" + (" a >b @c" if i % 2 else "") + end
        if rng.random() < 0.3:
            text += ";comment ACGT > @" + end
        text += wrap(written, int(rng.integers(1, 80)), end) + end * int(rng.integers(0, 3))
    if rng.random() < 0.5:
        text = text.rstrip("\r\n")
    for block_size in BLOCK_SIZES:
        assert read(text, block_size) == expected


@pytest.mark.parametrize("seed", range(40))
def test_fastq_round_trip_at_every_block_boundary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    end = str(rng.choice(["\n", "\r\n", "\r"]))
    expected, text = [], ""
    for i in range(int(rng.integers(1, 9))):
        letters = "".join(rng.choice(list("ACGTN"), int(rng.choice([0, 1, 5, 63, 150]))))
        qualities = "".join(rng.choice(list("@+>IA;"), len(letters)))
        expected.append((f"r{i}", "", letters))
        width = int(rng.integers(1, 70)) if rng.random() < 0.4 else 1000
        body = wrap(letters, width, end) or end
        text += f"@r{i}{end}{body}+{'r' if i % 2 else ''}{end}{wrap(qualities, width, end) or end}"
    if rng.random() < 0.5:
        text = text.rstrip("\r\n") if expected[-1][2] else text
    for block_size in BLOCK_SIZES:
        assert read(text, block_size) == expected


GENBANK = """LOCUS       SCU49845                  21 bp    DNA     linear   PLN 21-JUN-1999
DEFINITION  Saccharomyces cerevisiae TCP1-beta
            gene, partial cds.
VERSION     U49845.1
FEATURES             Location/Qualifiers
     source          1..21
                     /organism="Saccharomyces cerevisiae"
ORIGIN
        1 gatcctccat atacaacggt
       21 n
//

LOCUS       EMPTY 0 bp
//
"""


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_genbank(block_size: int, end: str) -> None:
    assert read(GENBANK.replace("\n", end), block_size) == [
        ("U49845.1", "Saccharomyces cerevisiae TCP1-beta gene, partial cds.", "GATCCTCCATATACAACGGTN"),
        ("EMPTY", "", ""),
    ]


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (">one\nA", [("one", "", "A")]),
        (">", [("", "", "")]),
        (">a\n>b\n>c\n", [("a", "", ""), ("b", "", ""), ("c", "", "")]),
        (">a\n>b\nAC\n>a\nGT", [("a", "", ""), ("b", "", "AC"), ("a", "", "GT")]),
        ("\n\n >a\nAC\n", [("a", "", "AC")]),
        ("\ufeff>a\nAC\n", [("a", "", "AC")]),
        (";old style\n;two\n>a x\nAC\n;in the middle\nGT;\n".replace(";\n", "\n"), [("a", "x", "ACGT")]),
        (">a\tb c\nA C\tG T\n", [("a", "b c", "ACGT")]),
        (">a\nacgtuACGTUryKMswBDhvN-.\n", [("a", "", "ACGTTACGTTNNNNNNNNNNNNN")]),
        (">Köln straße\nAC", [("Köln", "straße", "AC")]),
        (b">K\xf6ln\nAC", [("Köln", "", "AC")]),
        ("@r x\nACGT\n+\nIIII\n\n@s\nAC\n+s\n+@\n\n", [("r", "x", "ACGT"), ("s", "", "AC")]),
        ("@r\nAC\nGT\n+\n@@\n@@\n@s\nA\n+\n@", [("r", "", "ACGT"), ("s", "", "A")]),
    ],
)
def test_oddities(text: str, expected: Read, block_size: int) -> None:
    assert read(text, block_size) == expected


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_invalid_letters_are_reported_with_their_place_and_read_as_n(block_size: int) -> None:
    text = io.BytesIO(b">a\nAC GT\nAXc!\n>b\nACGT\n>c\n\xe9\n")
    found = []
    for record in parse_sequences(text, "x.fa", block_size=block_size):
        letters = decode(record.codes())
        found.append((letters, record.length, record.bases, str(record.invalid)))
    assert found == [
        ("ACGTANCN", 8, 6, "'X' at position 6 and 1 more"),
        ("ACGT", 4, 4, "None"),
        ("N", 1, 0, r"'\xe9' at position 1"),
    ]


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(
    "text", [b">a\nACGT\nACGT\n>b\nGG\n>c\nTT", b"@a\nACGT\n+\nIIII\n@b\nGG\n+\nII\n@c\nTT\n+\nII\n"]
)
def test_a_consumer_may_stop_within_a_record_or_skip_it(text: bytes, block_size: int) -> None:
    names = []
    for record in parse_sequences(io.BytesIO(text), "x", block_size=block_size):
        names.append(record.name)
        if record.name == "a":
            next(record.blocks())
        if record.name == "c":
            assert decode(record.codes()) == "TT"
    assert names == ["a", "b", "c"]


def test_a_record_that_was_passed_says_so() -> None:
    records = parse_sequences(io.BytesIO(b">a\nACGT\nACGT\n>b\nGG\n"), "x", block_size=4)
    first = next(records)
    next(records)
    with pytest.raises(RuntimeError, match="'a' was read before"):
        first.codes()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", EmptyFile, "0 bytes"),
        (b" \n\n\t", EmptyFile, "white space"),
        (b"ACGTACGT\n", NoRecords, "starts with 'ACGTACGT'"),
        (b"sequence,label\nACGT,1\n", NoRecords, "'>' \\(FASTA\\)"),
        (b"<!DOCTYPE html>\n<html>", NoRecords, "DOCTYPE"),
        (b";only a comment\n", NoRecords, "comments"),
        (b">a\nAC\0GT\n", NotText, "NUL byte at byte 6"),
        (bytes(range(1, 200)) * 3, NotText, "control characters"),
        (">a\nACGT\n".encode("utf-16"), NotText, "iconv -f UTF-16"),
        (">a\nACGT\n".encode("utf-16-be"), NotText, "UTF-16BE"),
        (">a\nACGT\n".encode("utf-32"), NotText, "UTF-32"),
        (b"\x7fELF" + bytes(1000), NotText, "NUL byte at byte 5"),
        (gzip.compress(b"BAM\1" + bytes(100), mtime=0), NotText, "BAM file.*samtools fasta"),
        (b"CRAM\3\0" + bytes(100), NotText, "CRAM file.*samtools fasta"),
        (b"@HD\tVN:1.6\n@SQ\tSN:chr1\tLN:1000\n", NotText, "SAM file.*samtools fasta"),
        (gzip.compress(gzip.compress(b">a\nACGT\n", mtime=0), mtime=0), NotText, "compressed twice"),
        (b"@r\nACGT\n+\nIII\n@s\nA\n+\nI\n", BadRecord, "'r' has 4 bases and 3 qualities"),
        (b"@r\nACGT\n+\nIIIII\n", BadRecord, "'r' has 4 bases and more than 4 qualities"),
        (b"@r\nACGT\n+\nIIII\nACGT\n", BadRecord, "after record 'r'.*'ACGT' came"),
        (b"@r\nACGT\n+\nIIII\n@s\nACGT\n+\nII", TruncatedFile, "'s' stops in its qualities, 2 of 4"),
        (b"@r\nACGT\n+\nIIII\n@s\nACGT\n", TruncatedFile, "'s' stops in its sequence"),
        (b"@r\nACGT\n+\nIIII\n@s", TruncatedFile, "'s' stops"),
        (b"LOCUS       A 4 bp\nORIGIN\n        1 acgt\n", TruncatedFile, "no // line"),
        (b"LOCUS       A 4 bp\nORIGIN\n        1 acgt\n//\nnonsense", BadRecord, "'nonsense' came"),
    ],
)
def test_refusals_say_what_came(tmp_path: Path, content: bytes, error: type[DataError], message: str) -> None:
    path = tmp_path / "bad.fa"
    path.write_bytes(content)
    for block_size in (5, 1 << 20):
        with pytest.raises(error, match=message) as caught:
            [record.codes() for record in read_sequences(path, block_size=block_size)]
        assert str(path) in str(caught.value)


def test_tar_archive_is_known_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "genomes.tar.gz"
    path.write_bytes(gzip.compress(b"genomes/a.fa".ljust(257, b"\0") + b"ustar\0" + bytes(249)))
    with pytest.raises(NotText, match=r"genomes\.tar\.gz is a tar archive.*tar -xf"):
        next(read_sequences(path))


def test_control_characters_late_in_a_file_are_no_letters() -> None:
    text = b">a\n" + b"ACGT" * 1000 + b"\n>b\n" + bytes([1, 2, 3]) * 100
    with pytest.raises(NotText, match="record 'b'"):
        [record.codes() for record in parse_sequences(io.BytesIO(text), "x", block_size=1024)]


class Endless(io.RawIOBase):
    """A header and then `size` bytes of sequence, made as they are read."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self.parts = parts
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.rest = self.rest or next(self.parts, b"")
        n = min(len(buffer), len(self.rest))
        buffer[:n] = self.rest[:n]
        self.rest = self.rest[n:]
        return n


@pytest.mark.parametrize("form", ["one line", "lines", "fastq", "long header"])
def test_memory_is_bounded_whatever_the_record(form: str) -> None:
    megabyte = b"ACGTTGCAAC" * 100_000
    lines = wrap(megabyte.decode(), 80, "\n").encode()
    parts = {
        "one line": [b">a\n", *[megabyte] * 200],
        "lines": [b">a\n", *[lines] * 200],
        "fastq": [b"@a\n", *[megabyte] * 200, b"\n+\n", *[b"I" * 1_000_000] * 200, b"\n"],
        "long header": [b">a ", *[b"word " * 1_000_000] * 40, b"\n", *[megabyte] * 200],
    }[form]
    tracemalloc.start()
    try:
        stream = io.BufferedReader(Endless(itertools.chain(parts)))
        (length,) = [sum(map(len, record.blocks())) for record in parse_sequences(stream, "x")]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == 200_000_000
    assert peak < 20e6


def copies(text: bytes, block_size: int) -> list[tuple[str, bytes]]:
    """The text of each record as `copy` gets it."""
    parts: list[bytes] = []
    found = []
    for record in parse_sequences(io.BytesIO(text), "x", block_size=block_size, copy=parts.append):
        for _ in record.blocks():
            pass
        found.append((record.name, b"".join(parts)))
        parts.clear()
    assert not parts
    return found


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(
    "records",
    [
        [b">a first\nACGT\nAC\n", b">b\n", b">c x\n;comment\nac gt\n", b">d\nNN"],
        [b"@a x\nACGT\n+a\n@+II\n", b"@b\n\n+\n\n", b"@c\nAC\nGT\n+\n>@\n+I\n", b"@d\nA\n+\nI"],
        [GENBANK.split("\n\nLOCUS")[0].encode() + b"\n", b"LOCUS       TWO 2 bp\nORIGIN\n        1 ac\n//\n"],
    ],
    ids=["fasta", "fastq", "genbank"],
)
def test_copies_are_the_records_as_they_were_read(records: list[bytes], block_size: int) -> None:
    found = copies(b"".join(records), block_size)
    assert [text for _, text in found] == records
    assert [text for _, text in copies(b"\n \n" + b"".join(records), block_size)] == records
    crlf = copies(b"".join(records).replace(b"\n", b"\r\n"), block_size)
    assert [text for _, text in crlf] == records


def test_blank_lines_between_records_are_not_copied_into_the_next() -> None:
    for block_size in BLOCK_SIZES:
        found = copies(b"@a\nAC\n+\nII\n\n\n@b\nA\n+\nI\n", block_size)
        assert [text for _, text in found] == [b"@a\nAC\n+\nII\n", b"@b\nA\n+\nI\n"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["fasta", "fastq"])
def test_position_tells_no_more_than_was_handed_out(tmp_path: Path, pack: Callable[..., bytes], form: str) -> None:
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(5000)]
    if form == "fasta":
        records = [f">r{i}\n{s}\n".encode() for i, s in enumerate(letters)]
    else:
        records = [f"@r{i}\n{s}\n+\n{s}\n".encode() for i, s in enumerate(letters)]
    text = b"".join(records)
    path = tmp_path / "in"
    path.write_bytes(pack(text))
    size = path.stat().st_size
    position, handed_out = Position(), 0
    for record, raw in zip(read_sequences(path, position=position, block_size=1 << 19), records, strict=True):
        record.codes()
        handed_out += len(raw)
        if pack is bytes:
            assert position.bytes in (handed_out, handed_out - 1)
        else:  # some blocks are read ahead of the text
            assert abs(position.bytes / size - handed_out / len(text)) < 0.2
    assert position.bytes == size


def test_genbank_that_names_its_parts_instead_of_its_sequence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chromosome.gb"
    contig = "LOCUS       CM1 99 bp\nVERSION     CM1.2\n"
    contig += "CONTIG      join(A.1:1..50,\n            gap(9),B.1:1..40)\n//\n"
    path.write_text(GENBANK.split("\n\nLOCUS")[0] + "\n" + contig)
    with pytest.raises(BadRecord, match=r"'CM1\.2' has no sequence: a CONTIG line.*rettype=gbwithparts"):
        list(read_sequences(path))
    # NCBI writes CONTIG before ORIGIN in a full record
    path.write_text(contig.replace("//\n", "ORIGIN\n        1 acgt\n//\n"))
    assert [decode(record.codes()) for record in read_sequences(path)] == ["ACGT"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_genbank_reads_as_biopython_reads_it(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqFeature import FeatureLocation, SeqFeature
    from Bio.SeqRecord import SeqRecord

    rng = np.random.default_rng(1)
    written = []
    for i, length in enumerate((1, 59, 60, 61, 1000, 2049)):
        letters = "".join(rng.choice(list("ACGTNRY"), length, p=[0.24, 0.24, 0.24, 0.24, 0.02, 0.01, 0.01]))
        record = SeqRecord(Seq(letters), id=f"NC_{i:06}.{i + 1}", name=f"NC_{i:06}", description="word " * i * 9 + "x")
        record.annotations.update(molecule_type="DNA", organism="Test", comment="LOCUS ORIGIN\n//\n>x\n1 acgt" * 3)
        record.features = [
            SeqFeature(FeatureLocation(0, length), "source", qualifiers={"note": ["ORIGIN " * 30, "// CONTIG"]})
        ]
        written.append(record)
    text = io.StringIO()
    SeqIO.write(written, text, "genbank")
    path = tmp_path / "many.gb"
    path.write_bytes(pack(text.getvalue().encode()))
    theirs = [
        (record.id, record.description.removesuffix("."), str(record.seq))
        for record in SeqIO.parse(io.StringIO(text.getvalue()), "genbank")
    ]
    for block_size in (7, 64, 1 << 20):
        ours = [
            (record.name, record.description.removesuffix("."), decode(record.codes()))
            for record in read_sequences(path, block_size=block_size)
        ]
        assert [(a, " ".join(b.split()), c.replace("R", "N").replace("Y", "N")) for a, b, c in theirs] == ours
