"""Every form of labelled data with the traps that people's files have."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_seq.data_prep.errors import BadRecord, DataError, NoRecords, NotText, TooFewData, UnreadableFile
from mamba_seq.data_prep.labelled import Labelled, LabelledConfig, read_labelled
from mamba_seq.data_prep.labelled_inputs import choose_reader
from mamba_seq.data_prep.labelled_missing import decimal_commas
from mamba_seq.data_prep.labelled_targets import infer_task, make_targets


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(tmp_path: Path, rows: list[str], head: str = "sequence,label") -> Labelled:
    return read(write(tmp_path / "t.csv", "\n".join([head, *rows]) + "\n"))


def pairs(data: Labelled) -> list[tuple[str, object, tuple[str, ...] | None]]:
    return [(e.id, e.sequence, e.label) for e in data.examples]


def read(path: Path, **options: object) -> Labelled:
    return read_labelled(path, LabelledConfig(**options))  # type: ignore[arg-type]


def test_tables_with_all_that_people_do_to_them(tmp_path: Path) -> None:
    messy = '\ufeffName, Sequence ,extra,Label\r\na,"acGT, ",1,"x, y"\r\n\r\nb,ACG T,2, z\r\n'
    messy = messy.replace('"acGT, "', '"acGT "')
    assert pairs(read(write(tmp_path / "t.csv", messy))) == [("a", "acGT", ("x, y",)), ("b", "ACGT", ("z",))]
    packed = gzip.compress(b"id\tseq\ty\n1\tAAA\tp\n2\t\tq\n3\tCCC\t\n")
    assert pairs(read(write(tmp_path / "t.tsv.gz", packed))) == [
        ("1", "AAA", ("p",)),
        ("2", "", ("q",)),
        ("3", "CCC", None),
    ]
    headless = read(write(tmp_path / "h.csv", "ACGTACGTAC,1\nCCGTACGTAC,0\n"))
    assert pairs(headless) == [("1", "ACGTACGTAC", ("1",)), ("2", "CCGTACGTAC", ("0",))]
    assert "no line of column names" in headless.warnings[0]
    spreadsheet = '\ufeffsep=;\r\nSequence;Label\r\nAC,GT;x\r\nCC;"y;z"\r\n'
    found = read(write(tmp_path / "s.csv", spreadsheet))
    assert pairs(found) == [("3", "AC,GT", ("x",)), ("4", "CC", ("y;z",))]


def test_missing_numbers_are_no_labels(tmp_path: Path) -> None:
    def labels(text: str, **options: object) -> list[tuple[str, ...] | None]:
        return [e.label for e in read(write(tmp_path / "t.csv", text), **options).examples]

    assert labels("seq,y\nAC,0.5\nAG,NA\nAT,nan\n") == [("0.5",), None, None]
    assert labels("seq,y\nAC,0\nAG,NA\nAT,1\n") == [("0",), None, ("1",)]
    assert labels("seq,y\nAC,EU\nAG,NA\nAT,SA\n") == [("EU",), ("NA",), ("SA",)]  # continents
    assert labels("seq,y,z\nAC,1,2\nAG,1,n/a\n", label=["y", "z"]) == [("1", "2"), None]
    steps = "who,x,label\na,1,p\na,2,\na,3,q\nb,1,q\nb,2,q\nb,3,p\n"
    series = read(write(tmp_path / "s.csv", steps), values=["x"], series="who")
    assert [e.label for e in series.examples] == [("p", "", "q"), ("q", "q", "p")]
    targets = make_targets(series, infer_task(series))
    assert (targets.task, targets.labels, targets.values[0].tolist()) == (
        "token-classification",
        ["p", "q"],
        [0, -100, 1],
    )
    commas = read(write(tmp_path / "c.csv", "seq;y\nAC;0,5\nAG;1,25\nAT;2\n"))
    assert "labels such as '0,5' are names, not numbers" in decimal_commas(commas)[0]
    assert decimal_commas(series) == decimal_commas(table(tmp_path, ["AC,a", "AG,1"])) == []


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("sequence,label\nACGT,x\nACGT,x,y\n", {}, r"line 3: 3 cells came, 2 were expected"),
        ("dna,label\nACGT,x\n", {}, r"the columns 'dna', 'label'; 'sequence' or 'seq' or 'text' was expected"),
        (
            "sequence,label\nACGT,x\n",
            {"label": ["kind"]},
            r"'kind' was expected as label: name the column with --label",
        ),
        ("sequence,label,split\nACGT,x,later\n", {}, r"line 2: split 'later' came; train, validation"),
        ("sequence,label\n", {}, r"column names and no row"),
        ("  \n", {}, r"is empty"),
        (",,\n,\n", {}, r"nothing but empty cells"),
        ("sequence,sequence\nA,b\n", {}, r"the column 'sequence' twice"),
        ('sequence,label\n"ACGT,x\n', {}, r"line 2: .*check the quotes"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "t.csv", text), **options)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(NotText, match="byte 16 is 0xe9"):
        read(write(tmp_path / "t.csv", b"sequence,label\nA\xe9,x\n"))
    with pytest.raises(UnreadableFile, match="no such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(NoRecords, match="of no known form"):
        read(write(tmp_path / "what", "some words"))


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"sequence": ["ACGT", "CC"], "label": [1, None]}), tmp_path / "t.parquet")
    assert pairs(read(tmp_path / "t.parquet")) == [("1", "ACGT", ("1",)), ("2", "CC", None)]

    lists = {"sequence": [[3, 1, 2], [0, 1]], "y": [0.5, float("nan")]}
    parquet.write_table(pyarrow.table(lists), tmp_path / "l.parquet")
    found = read(tmp_path / "l.parquet")
    assert [(np.asarray(e.sequence).tolist(), e.label) for e in found.examples] == [
        ([3, 1, 2], ("0.5",)),
        ([0, 1], None),
    ]
    assert choose_reader(found.examples).vocab_size == 4


def test_fasta_with_labels_in_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ">a x|12\nAC\nGT\n>b|0\n\nCC\n")
    assert pairs(read(path)) == [("a", "ACGT", ("12",)), ("b|0", "CC", ("0",))]
    taxid = write(tmp_path / "b.fa", ">s1|kraken:taxid|562 E. coli\nAC\n")
    assert pairs(read(taxid))[0][2] == ("562",)
    grouped = read(path, label_pattern=r"^(?P<group>\w).*\|(?P<label>\d+)")
    assert [(e.label, e.group) for e in grouped.examples] == [(("12",), "a"), (("0",), "b")]
    with pytest.raises(BadRecord, match=r"a.fa, line 4: header 'b\|0' does not match"):
        read(path, label_pattern=r"x\|(\d+)")
    assert [e.label for e in read(write(tmp_path / "c.fa", ">a\nAC\n")).examples] == [None]
    fastq = write(tmp_path / "d.fq", "@r1 z|k\nACGT\n+\nIIII\n")
    assert pairs(read(fastq)) == [("r1", "ACGT", ("k",))]


def test_fasta_with_a_table_of_labels(tmp_path: Path) -> None:
    fasta = write(tmp_path / "a.fa", ">a one\nAC\n>b\nGT\n>c\nTT\n")
    table = write(tmp_path / "l.tsv", "id\tlabel\tsplit\tgroup\nb\tx\ttrain\tg\na\ty\tdev\t\nz\tx\ttest\t\n")
    found = read(fasta, labels_file=str(table))
    assert [(e.id, e.label, e.split, e.group) for e in found.examples] == [
        ("a", ("y",), "validation", ""),
        ("b", ("x",), "train", "g"),
    ]
    assert "1 sequences have no label" in found.warnings[0]
    assert "'c'" in found.warnings[0]
    assert "1 labels have no sequence" in found.warnings[1]
    headless = write(tmp_path / "h.tsv", "a\t1\nb\t2\nc\t1\n")
    assert [e.label for e in read(fasta, labels_file=str(headless)).examples] == [("1",), ("2",), ("1",)]


@pytest.mark.parametrize(
    ("fasta", "table", "message"),
    [
        (">a\nAC\n>a\nGT\n", "id\tlabel\na\tx\n", r"line 3: id 'a' was there before \(.*line 1\)"),
        (">a\nAC\n", "id\tlabel\na\tx\na\ty\n", r"line 3: id 'a' has another label than in line 2"),
        (">a\nAC\n", "id\tlabel\nq\tx\n", r"no id of .* \('q' and so on\) is one of the 1 sequences \('a'"),
    ],
)
def test_joins_that_are_refused(tmp_path: Path, fasta: str, table: str, message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        read(write(tmp_path / "a.fa", fasta), labels_file=str(write(tmp_path / "l.tsv", table)))


def test_folders(tmp_path: Path) -> None:
    write(tmp_path / "f/rich/a.fa", ">x\nGC\n>y\nGG\n")
    write(tmp_path / "f/poor/b.fna", ">x\nAT\n")
    assert pairs(read(tmp_path / "f")) == [("x", "AT", ("poor",)), ("x", "GC", ("rich",)), ("y", "GG", ("rich",))]
    (tmp_path / "f/none").mkdir()
    with pytest.raises(TooFewData, match="none has no file that is known"):
        read(tmp_path / "f")
    write(tmp_path / "g/train.csv", "sequence,label\nAC,1\n")
    write(tmp_path / "g/dev.csv", "sequence,label\nAG,1\n")
    assert [(e.id, e.split) for e in read(tmp_path / "g").examples] == [
        ("dev.csv:2", "validation"),
        ("train.csv:2", "train"),
    ]
    for label in ("low", "high"):
        (tmp_path / "s" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "s" / label / "a_nohash_0.wav", np.linspace(-1, 1, 80), 8000)
        np.save(write(tmp_path / "n" / label / "a.npy", ""), np.ones((5, 2)))
    sound = read(tmp_path / "s", sample_rate=4000)
    assert (sound.codec, sound.sample_rate) == ("mu-law-8bit-minmax", 4000)
    assert [(e.length, e.group) for e in sound.examples] == [(40, "a"), (40, "a")]
    write(tmp_path / "s/low/b.wav", "no sound")
    write(tmp_path / "s/low/c.flac", "")
    damaged = read(tmp_path / "s", sample_rate=4000)
    assert [e.id for e in damaged.examples] == [e.id for e in sound.examples]
    assert "2 sound files cannot be used and are left out: " in damaged.warnings[0]
    assert "b.wav is not sound" in damaged.warnings[0]
    assert "c.flac is empty" in damaged.warnings[0]
    (tmp_path / "s/low/a_nohash_0.wav").unlink()
    with pytest.raises(TooFewData, match=r"low has no sound file that can be read, the first: .*b\.wav is not sound"):
        read(tmp_path / "s", sample_rate=4000)
    assert [np.shape(e.sequence) for e in read(tmp_path / "n").examples] == [(5, 2), (5, 2)]
    np.save(tmp_path / "n/low/b.npy", np.zeros((4, 2)))
    labels = write(tmp_path / "n.tsv", "id\tlabel\na.npy\tx\nb.npy\ty\n")
    assert [(e.id, e.label) for e in read(tmp_path / "n/low").examples] == [("a.npy", None), ("b.npy", None)]
    assert [e.label for e in read(tmp_path / "n/low", labels_file=str(labels)).examples] == [("x",), ("y",)]
    assert pairs(read(tmp_path / "f/rich")) == [("x", "GC", None), ("y", "GG", None)]
    write(tmp_path / "t/1.csv", "sequence,label\nAC,x\n")
    with pytest.raises(NoRecords, match="neither class folders nor tables named train, dev and test"):
        read(tmp_path / "t")
    write(tmp_path / "c/a/1.csv", "0.5,0.5\n2,1\n")
    write(tmp_path / "c/b/1.csv", "X,y\n3,4\n")
    bare, named = read(tmp_path / "c").examples
    assert np.asarray(bare.sequence).tolist() == [[0.5, 0.5], [2, 1]]
    assert np.asarray(named.sequence).tolist() == [[3, 4]]
    (tmp_path / "c/a/1.csv").unlink()
    write(tmp_path / "c/a/2.csv", "t,x\n0,5\n")
    assert np.asarray(read(tmp_path / "c", values=["x"]).examples[0].sequence).tolist() == [[5]]
    with pytest.raises(BadRecord, match=r"2.csv has the columns 't', 'x'; 'y' was expected as values"):
        read(tmp_path / "c", values=["x", "y"])


def test_bed_takes_strand_flank_and_either_name_of_a_chromosome(tmp_path: Path) -> None:
    reference = write(tmp_path / "r.fa", ">chr1 x\nAACCGGTTTT\n>chrM\nACGT\n")
    bed = write(tmp_path / "a.bed", "track x\n1\t1\t4\tpeak\t0\t-\nchr1\t4\t6\tnone\t0\t+\nMT\t0\t2\tpeak\t0\t.\n")
    found = read(bed, reference=str(reference))
    assert [(e.sequence, e.label, e.group) for e in found.examples] == [
        ("GGT", ("peak",), "chr1"),
        ("GG", ("none",), "chr1"),
        ("AC", ("peak",), "chrM"),
    ]
    assert "with or without 'chr'" in found.warnings[0]
    named = write(tmp_path / "b.bed", "#chrom\tstart\tend\tstrand\tkind\nchr1\t2\t4\t-\tq\n")
    assert pairs(read(named, reference=str(reference), label=["kind"], flank=1))[0][1:] == ("CGGT", ("q",))
    for line, message in (
        ("chr1\t5\t11\tx", r"line 1: chr1 5 to 11 came.*chr1 has 0 to 10"),
        ("chr7\t5\t11\tx", r"line 1: 'chr7' is not in .*which has chr1, chrM"),
        ("chr1\tfive\t11\tx", r"line 1: 'chr1', 'five', '11' came"),
        ("chr1\t5\t5\tx", r"0 <= start < end"),
    ):
        with pytest.raises(BadRecord, match=message):
            read(write(tmp_path / "c.bed", line + "\n"), reference=str(reference))
    many = "".join(f"chr1\t{7 * i % 8}\t{7 * i % 8 + 1 + i % 2}\t{'ab'[i % 2]}\n" for i in range(4))
    alone = read(write(tmp_path / "d.bed", many), reference=str(reference))
    assert [e.group for e in alone.examples] == ["chr1:0", "chr1:75", "chr1:50", "chr1:25"]
    grouped = "#chrom\tstart\tend\tlabel\tgroup\nchr1\t2\t4\tq\tg\nchr1\t5\t6\tr\tg\n"
    assert {e.group for e in read(write(tmp_path / "e.bed", grouped), reference=str(reference)).examples} == {"g"}
    with pytest.raises(DataError, match="name the FASTA file they lie on with --reference"):
        read(bed)


GENBANK = """LOCUS       TEST1                     24 bp    DNA     linear   BCT 01-JAN-2020
DEFINITION  t.
ACCESSION   TEST1
VERSION     TEST1.1
FEATURES             Location/Qualifiers
     source          1..24
                     /organism="x"
     CDS             1..6
                     /product="alpha"
     CDS             complement(join(7..9,13..15))
                     /product="beta"
     CDS             16..18
ORIGIN
        1 aaacccgggt ttacgtacgt acgt
//
"""


def test_genbank_features(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gb", GENBANK)
    found = read(path, qualifier="product")
    assert [(str(e.sequence).upper(), e.label, e.group) for e in found.examples] == [
        ("AAACCC", ("alpha",), "TEST1.1:0"),
        ("CGTCCC", ("beta",), "TEST1.1:50"),
    ]
    assert "all examples lie on one sequence, so splits part stretches" in found.warnings[0]
    two = read(write(tmp_path / "two.gb", GENBANK + GENBANK.replace("TEST1", "TEST2")), qualifier="product")
    assert [e.group for e in two.examples] == ["TEST1.1", "TEST1.1", "TEST2.1", "TEST2.1"]
    with pytest.raises(NoRecords, match="no gene with the qualifier 'product'"):
        read(path, qualifier="product", feature="gene")
    with pytest.raises(NoRecords, match="those there have organism, product"):
        read(path, qualifier="colour")
    assert [e.label for e in read(path).examples] == [None]
    for damaged, message in (
        (GENBANK[:-20], "cannot be read as GenBank: Premature end of file in sequence data"),
        (GENBANK.replace("tacgt acgt", "tacgt"), "Expected sequence length 24, found 20"),
        (GENBANK.replace("1..6", "20..26"), r"CDS \[19:26\]\(\+\) ends beyond the 24 bases"),
        (GENBANK.partition("ORIGIN")[0] + "CONTIG      join(X:1..24)\n//\n", "without a sequence under ORIGIN"),
    ):
        with pytest.raises(BadRecord, match=message):
            read(write(tmp_path / "bad.gb", damaged), qualifier="product")
    assert pairs(read(write(tmp_path / "bom.gb", "\ufeff" + GENBANK), qualifier="product")) == pairs(found)


def test_series(tmp_path: Path) -> None:
    wide = write(tmp_path / "w.csv", "v0,v1,label\n1,2,a\n3,4,b\n")
    first = read(wide, values=["v0", "v1"]).examples[0]
    assert np.asarray(first.sequence).tolist() == [[1.0], [2.0]]
    with pytest.raises(BadRecord, match=r"line 3, column 'v1': 'x' came, a finite number"):
        read(write(tmp_path / "x.csv", "v0,v1,label\n1,2,a\n3,x,b\n"), values=["v0", "v1"])
    long = write(tmp_path / "l.csv", "who,x,y,label\np,1,0,ok\nq,5,0,ok\np,2,0,bad\n")
    found = read(long, values=["x", "y"], series="who")
    assert found.per_position
    assert [(e.id, np.shape(e.sequence), e.label) for e in found.examples] == [
        ("p", (2, 2), ("ok", "bad")),
        ("q", (1, 2), ("ok",)),
    ]
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "y.npy", np.array([0.5, 1.5, 2.5]))
    array = read(tmp_path / "a.npy", labels_file=str(tmp_path / "y.npy"))
    assert [(np.shape(e.sequence), e.label) for e in array.examples] == [((4, 1), (f"{i}.5",)) for i in range(3)]
    assert infer_task(array) == "sequence-regression"
    np.save(tmp_path / "t.npy", np.array([["a", "b"]]))
    with pytest.raises(BadRecord, match=r"t\.npy is an array of <U1, numbers were expected"):
        read(tmp_path / "t.npy")
