"""What classify writes beside its table: golden files, the records themselves, all or nothing."""

import bz2
import gzip
import json
import lzma
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from mamba_seq.pipelines import originals
from mamba_seq.pipelines.multiqc import samples

pytestmark = pytest.mark.usefixtures("fake")
GOLDEN = Path(__file__).parent / "golden"
ALL = ["--max-windows", "0"]
SIDE = {
    "mixed.windows.bed": ["--windows"],
    "mixed.few_windows.bed": ["--max-windows", "3", "--windows"],
    "mixed.stride.bed": ["--context", "50", "--stride", "17", *ALL, "--windows"],
    "mixed.kreport": ["--kreport"],
    "mixed.threshold.kreport": ["--min-probability", "0.6", "--kreport"],
    "mixed_mqc.json": ["--multiqc"],
}
HOW = [[], ["--threads", "1"], ["--batch-tokens", "1"], ["--batch-tokens", "700"]]


@pytest.mark.parametrize("how", HOW, ids=" ".join)
@pytest.mark.parametrize("name", SIDE)
def test_golden_side_files(
    golden: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: list[str]
) -> None:
    target = "-"
    if name.endswith("_mqc.json"):  # the option wants a name
        target = str(tmp_path / "stdout_mqc.json")
        (tmp_path / "stdout_mqc.json").symlink_to("/dev/stdout")
    golden(name, "classify", GOLDEN / "mixed.fa", *how, "-o", tmp_path / "out.tsv", *SIDE[name], target)
    assert (tmp_path / "out.tsv").is_file()


@pytest.mark.parametrize("how", HOW, ids=" ".join)
@pytest.mark.parametrize("options", [[], ["--min-probability", "0.6", *ALL]], ids=["plain", "threshold"])
def test_golden_kraken(golden: Callable[..., None], options: list[str], how: list[str]) -> None:
    name = "mixed.threshold.kraken" if options else "mixed.kraken"
    golden(name, "classify", GOLDEN / "mixed.fa", "--format", "kraken", *options, *how)


def test_kraken_columns_agree_with_the_table(run: Any) -> None:
    table = run("classify", GOLDEN / "mixed.fa", *ALL).rows
    taxids = {"alpha": "101", "beta": "102", "gamma": "103", "NA": "0"}
    lines = [
        line.split("\t") for line in run("classify", GOLDEN / "mixed.fa", *ALL, "--format", "kraken").out.splitlines()
    ]
    assert [line[1:4] for line in lines] == [[row[0], taxids[row[2]], row[1]] for row in table]
    for letter, _, taxid, length, windows in lines:
        assert letter == ("U" if taxid == "0" else "C")
        counts = [pair.rsplit(":", 1) for pair in windows.split(" ")]
        assert all(name in {*taxids.values(), "A"} and count.isdecimal() for name, count in counts)
        if taxid != "0":
            assert sum(int(count) for _, count in counts) == -(-int(length) // 64)


def test_windows_of_nothing_but_n_are_ambiguous_and_not_in_the_bed(run: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.fa"
    source.write_text(">a\n" + "ACGT" * 32 + "N" * 192 + "AAAA" * 16 + "\n")
    bed = tmp_path / "w.bed"
    result = run("classify", source, "--format", "kraken", "--windows", bed, *ALL)
    assert result.out.rstrip("\n").split("\t")[4] == "103:2 A:3 101:1"
    assert [line.split("\t")[1:3] for line in bed.read_text().splitlines()] == [
        ["0", "64"],
        ["64", "128"],
        ["320", "384"],
    ]


def test_report_counts_are_those_of_the_table(run: Any, tmp_path: Path) -> None:
    report = tmp_path / "k"
    rows = run("classify", GOLDEN / "mixed.fa", "--kreport", report).rows
    lines = [line.split("\t") for line in report.read_text().splitlines()]
    direct = {line[5].strip(): int(line[2]) for line in lines}
    counts = Counter(row[2] for row in rows)
    assert direct["unclassified"] == counts["NA"]
    assert direct["Alphabeta alpha"] == counts["alpha"]
    assert sum(direct.values()) == len(rows)
    clade = {line[5].strip(): int(line[1]) for line in lines}
    assert clade["Bacteria"] == clade["Alphabeta"] == counts["alpha"] + counts["beta"]
    assert clade["root"] + clade["unclassified"] == len(rows)
    assert abs(sum(float(line[0]) for line in lines if line[3] in "UR") - 100) < 0.02
    assert [len(line[5]) - len(line[5].lstrip()) for line in lines if line[3] == "S"].count(6) == 2


@pytest.mark.skipif(shutil.which("bedtools") is None, reason="bedtools is not installed")
def test_bedtools_reads_the_windows(run: Any, tmp_path: Path) -> None:
    source, bed = tmp_path / "in.fa", tmp_path / "w.bed"
    source.write_text("".join(f">r{i}\n{'ACGTTGCAAC' * (i * i)}\n" for i in range(1, 12)))
    assert run("classify", source, "--windows", bed, "--context", "50", "--stride", "20", *ALL).code == 0
    lines = bed.read_text().splitlines()
    merged = subprocess.run(["bedtools", "merge", "-i", str(bed)], capture_output=True, text=True, check=True)
    assert merged.stdout.splitlines() == [f"r{i}\t0\t{10 * i * i}" for i in range(1, 12)]
    assert merged.stderr == ""
    (tmp_path / "sizes").write_text("".join(f"r{i}\t{10 * i * i}\n" for i in range(1, 12)))
    checked = subprocess.run(
        ["bedtools", "sort", "-i", str(bed), "-g", str(tmp_path / "sizes")], capture_output=True, text=True, check=True
    )
    assert checked.stdout.splitlines() == lines


FASTA = [b">a first\nACGTAC\nGTAC\n", b">n\nNNNN\n", b">b\r\nTTTTTTTTTTTT\r\n", b">e\n", b">c\nGGGG"]
FASTQ = [b"@a x\nACGT\n+a\n@@II\n", b"@b\nNN\n+\nII\n", b"@c\nAC\nGT\n+\nII\nII\n"]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().stream_reader(data).read(),
}


@pytest.mark.parametrize("suffix", PACKED)
def test_records_by_class_as_they_were_read(run: Any, tmp_path: Path, suffix: str) -> None:
    for records, ending, none in ((FASTA, "fa", (1, 3)), (FASTQ, "fq", (1,))):
        source = tmp_path / f"in.{ending}"
        source.write_bytes(b"".join(records))
        yes, no = tmp_path / f"yes.{ending}{suffix}", tmp_path / f"no.{ending}{suffix}"
        table = tmp_path / f"table.tsv{suffix}"
        result = run("classify", source, "--classified-out", yes, "--unclassified-out", no, "-o", table)
        assert result.code == 0, result.err
        kept = [record.replace(b"\r\n", b"\n").removesuffix(b"\n") + b"\n" for record in records]
        unpack = PACKED[suffix]
        assert unpack(yes.read_bytes()) == b"".join(r for i, r in enumerate(kept) if i not in none)
        assert unpack(no.read_bytes()) == b"".join(kept[i] for i in none)
        assert unpack(table.read_bytes()).decode() == run("classify", source).out


def test_same_bytes_twice(run: Any, tmp_path: Path) -> None:
    names = ["t.tsv.xz", "w.bed.gz", "k.bz2", "r.html.zst", "x_mqc.json", "yes.fa.gz", "no.fa.xz"]
    made = []
    for again in ("one", "two"):
        (tmp_path / again).mkdir()
        paths = [tmp_path / again / name for name in names]
        options = ["-o", "--windows", "--kreport", "--report", "--multiqc", "--classified-out", "--unclassified-out"]
        batches = [] if again == "one" else ["--batch-tokens", "300", "--threads", "2"]
        pairs = [word for pair in zip(options, paths, strict=True) for word in pair]
        assert run("classify", GOLDEN / "mixed.fa", *pairs, *batches).code == 0
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]


@pytest.mark.parametrize("limit", ["LONGEST_IN_MEMORY", "MOST_IN_MEMORY", "MOST_FILES"])
def test_originals_that_wait_on_the_disk_or_ask_for_room(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(originals, "LONGEST_IN_MEMORY", 100)
    monkeypatch.setattr(originals, limit, 3)
    text = b"".join(b">r%d\n%b\n" % (i, b"ACGTTGCA" * (1 + i % 37)) for i in range(200))
    source, yes = tmp_path / "in.fa", tmp_path / "yes.fa"
    source.write_bytes(text)
    assert run("classify", source, "--classified-out", yes, "-q").code == 0
    assert yes.read_bytes() == text


def test_a_late_failure_leaves_no_file(run: Any, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.fa", tmp_path / "bad.fa"
    good.write_bytes(b"".join(FASTA))
    bad.write_bytes(gzip.compress(b"".join(FASTA) * 100)[:-9])
    out = tmp_path / "out"
    out.mkdir()
    targets = {"-o": "t", "--windows": "w", "--kreport": "k", "--report": "r", "--multiqc": "x_mqc.json"}
    targets |= {"--classified-out": "yes.gz", "--unclassified-out": "no"}
    pairs = [word for option, name in targets.items() for word in (option, out / name)]
    result = run("classify", good, bad, *pairs)
    assert result.code == 1
    assert "truncated" in result.err
    assert not list(out.iterdir())


def test_outputs_that_cannot_be(run: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.fa"
    source.write_bytes(b"".join(FASTA))
    (tmp_path / "reads.fq").write_bytes(b"".join(FASTQ))
    for arguments, code, words in [
        (["--windows", "-"], 1, "two outputs are to go to standard output"),
        (["--windows", tmp_path / "x", "--kreport", tmp_path / "x"], 1, "two outputs are to go to"),
        (["--classified-out", source], 1, "it is also an input"),
        (["--multiqc", tmp_path / "x.json"], 2, "end in _mqc.json only"),
        ([tmp_path / "reads.fq", "--classified-out", tmp_path / "x"], 1, "would hold fasta and fastq records"),
    ]:
        result = run("classify", source, *arguments)
        assert (result.code, result.out) == (code, "")
        assert words in result.err
        assert source.read_bytes() == b"".join(FASTA)
        assert not (tmp_path / "x").exists()


def test_multiqc_has_a_sample_for_each_file(run: Any, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "reads.fq").write_bytes(b"".join(FASTQ))
    (tmp_path / "genome.fa").write_bytes(b"".join(FASTA))
    files = [tmp_path / name for name in ("one/reads.fq", "genome.fa", "two/reads.fq")]
    target = tmp_path / "x_mqc.json"
    assert run("classify", *files, "--multiqc", target).code == 0
    content = json.loads(target.read_text())
    assert list(content["data"]) == [str(files[0]), "genome", str(files[2])]
    assert [sum(counts.values()) for counts in content["data"].values()] == [3, 5, 3]
    assert content["plot_type"] == "bargraph"
    assert set(content["categories"]) == set(content["data"]["genome"])


def test_sample_names() -> None:
    paths = ["a/x.fasta.gz", "b/y.fq", "-", "z.tar", "c/x.fa", ".fa", "b/y.fq"]
    assert samples(paths) == ["a/x.fasta.gz", "b/y.fq", "standard input", "z.tar", "c/x.fa", ".fa", "b/y.fq (2)"]


@pytest.mark.skipif(shutil.which("multiqc") is None, reason="MultiQC is not installed")
def test_multiqc_reads_summary_and_report(run: Any, tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    summary, kreport = found / "x_mqc.json", found / "sample.kreport.txt"
    rows = run("classify", GOLDEN / "mixed.fa", GOLDEN / "reads.fq", "--multiqc", summary, "--kreport", kreport).rows
    command = ["multiqc", "--outdir", str(tmp_path / "out"), "--no-version-check", str(found)]
    subprocess.run(command, capture_output=True, check=True, timeout=100)
    tables = tmp_path / "out" / "multiqc_data"
    head, *lines = (tables / "multiqc_mamba_seq_classify_plot.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["mixed", "reads"]
    counts = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    assert sum(int(float(each["class gamma"])) for each in counts) == sum(row[2] == "gamma" for row in rows)
    assert "Alphabeta alpha" in (tables / "multiqc_kraken.txt").read_text()
