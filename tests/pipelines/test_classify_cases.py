"""Files that classify refuses, records that it handles, and what the answer may not depend on."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq.pipelines import classify as pipeline
from mamba_seq.pipelines import originals
from mamba_seq.pipelines.classify import Classifier, Options
from mamba_seq.pipelines.names import RepeatedNames
from mamba_seq.pipelines.rows import printable

pytestmark = pytest.mark.usefixtures("fake")
GOLDEN = Path(__file__).parent / "golden"
FASTA = b">a\nACGTACGT\n>b\nGGGTTTAA\n"


def write(folder: Path, content: bytes, name: str = "in.fa") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


REFUSED = {
    "empty": (b"", "is empty"),
    "white space": (b"\n \n\n", "is empty"),
    "no record": (b"ACGT\nACGT\n", "holds no sequence record"),
    "binary": (bytes(range(256)) * 20, "not text"),
    "binary after a header": (b">a\n" + bytes(range(256)) * 20, "not text"),
    "binary late": (FASTA + b">long\n" + b"ACGT" * 300_000 + bytes(300), "not text"),
    "truncated gzip": (gzip.compress(FASTA * 1000)[:-20], "truncated"),
    "damaged gzip": (gzip.compress(FASTA)[:-8] + bytes(8), "damaged"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "UTF-16": (FASTA.decode().encode("utf-16"), "iconv"),
    "zip": (b"PK\x03\x04" + bytes(50), "zip archive"),
    "one protein": (b">p1\nMEEPQSDPSV\n", "its only record has letters"),
    "protein": (b">p1\nMEEPQSDPSV\n>p2\nMFLIPLE\n", "is it a protein file?"),
}


@pytest.mark.parametrize(("content", "words"), list(REFUSED.values()), ids=list(REFUSED))
@pytest.mark.parametrize("to", ["stdout", "file"])
def test_refused_file_gives_no_output(run: Any, tmp_path: Path, content: bytes, words: str, to: str) -> None:
    source = write(tmp_path, content)
    output = ["-o", tmp_path / "out.tsv"] if to == "file" else []
    # a good file first: its rows must not get out either
    result = run("classify", write(tmp_path, FASTA, "good.fa"), source, *output)
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert str(source) in result.err
    assert "Traceback" not in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.fa", "in.fa"]


def test_missing_file_and_folder_are_told_before_the_model_is_loaded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("mamba_seq.pipelines.models.load_model", fail)
    good = write(tmp_path, FASTA)
    result = run("classify", good, tmp_path / "missing.fa")
    assert (result.code, result.out) == (1, "")
    assert "missing.fa: no such file" in result.err
    result = run("classify", tmp_path)
    assert result.code == 1
    assert "is a folder" in result.err
    result = run("classify", good, "-o", tmp_path / "no" / "out.tsv")
    assert result.code == 1
    assert "there is no folder" in result.err


def test_unreadable_file(run: Any, tmp_path: Path) -> None:
    source = write(tmp_path, FASTA)
    source.chmod(0)
    if os.access(source, os.R_OK):
        pytest.skip("this user may read every file")
    result = run("classify", source)
    assert result.code == 1
    assert "may not be read" in result.err


def test_output_may_not_be_an_input(run: Any, tmp_path: Path) -> None:
    source = write(tmp_path, FASTA)
    result = run("classify", source, "-o", source)
    assert result.code == 1
    assert "it is also an input" in result.err
    assert source.read_bytes() == FASTA


def test_strict_refuses_the_first_invalid_record(run: Any, tmp_path: Path) -> None:
    source = write(tmp_path, b">good\nACGT\n>bad one\nACG*T\n>worse\nACGE\n")
    assert [row[4] for row in run("classify", source).rows] == ["ok", "invalid", "invalid"]
    result = run("classify", "--strict", source)
    assert (result.code, result.out) == (1, "")
    assert "record 'bad' has '*' at position 4" in result.err
    assert "worse" not in result.err


HANDLED = {
    "only N": (b">a\nNNNNN\n>b\nA\n", [["a", "5", "NA", "NA", "no_bases"], ["b", "1", None, None, "ok"]]),
    "no sequence": (b">a\n>b\n\n", [["a", "0", "NA", "NA", "empty"], ["b", "0", "NA", "NA", "empty"]]),
    "CRLF": (b">a\r\nAC\r\nGT\r\n", [["a", "4", None, None, "ok"]]),
    "lower case": (b">a\nacgtn\n", [["a", "5", None, None, "ok"]]),
    "IUPAC": (b">a\nACGTRYKMSWBDHVN\n", [["a", "15", None, None, "ok"]]),
    "RNA": (b">a\nACGU\n", [["a", "4", None, None, "ok"]]),
    "one base": (b">a\nC", [["a", "1", None, None, "ok"]]),
    "line of 10 MB": (
        b">a\n" + b"ACGTC" * 2_000_000 + b"\n>b\nA\n",
        [["a", "10000000", None, None, "ok"], ["b", "1", None, None, "ok"]],
    ),
    "no name": (b">\nACGT\n>\t\nACGT\n", [["NA", "4", None, None, "ok"], ["NA", "4", None, None, "ok"]]),
    "tab in header": (b">a\tb c\nACGT\n", [["a", "4", None, None, "ok"]]),
    "control characters": (
        b">a\x01b\x1b[31m\x7f\n" + b"ACGT" * 99,
        [["a\\x01b\\x1b[31m\\x7f", "396", None, None, "ok"]],
    ),
    "Latin-1 name": (b">caf\xe9\x85x\nACGT\n", [["caf\u00e9\\x85x", "4", None, None, "ok"]]),
    "byte-order mark": (b"\xef\xbb\xbf>a\nACGT\n", [["a", "4", None, None, "ok"]]),
    "no line end": (b">a\nACGT", [["a", "4", None, None, "ok"]]),
    "blank lines": (b"\n\n>a\n\nAC\n\nGT\n\n", [["a", "4", None, None, "ok"]]),
    "FASTQ": (b"@a\nACGT\n+\n@@@@\n", [["a", "4", None, None, "ok"]]),
}


@pytest.mark.parametrize(("content", "expected"), list(HANDLED.values()), ids=list(HANDLED))
def test_handled(run: Any, tmp_path: Path, content: bytes, expected: list[list[str | None]]) -> None:
    result = run("classify", write(tmp_path, content))
    assert result.code == 0, result.err
    rows = result.rows
    assert len(rows) == len(expected)
    for row, cells in zip(rows, expected, strict=True):
        assert len(row) == 8
        assert [cell for cell, wanted in zip(row, cells, strict=False) if wanted is not None] == [
            wanted for wanted in cells if wanted is not None
        ]
        if row[4] == "ok":
            assert abs(sum(map(float, row[5:])) - 1) < 2e-4
            assert row[3] == max(row[5:])


def test_invalid_record_is_named_with_its_letter(run: Any, tmp_path: Path) -> None:
    result = run("classify", write(tmp_path, b">ok\nACGT\n>odd\nAC\nGE!\n"))
    assert [row[4] for row in result.rows] == ["ok", "invalid"]
    assert "record 'odd' has 'E' at position 4 and 1 more" in result.err


def test_many_invalid_records_get_ten_warnings(run: Any, tmp_path: Path) -> None:
    result = run("classify", write(tmp_path, b">ok\nACGT\n" + b">odd\nACGE\n" * 25))
    assert result.err.count("'E' at position 4") == 10
    assert "15 more records are invalid" in result.err


def test_repeated_names_are_kept_and_told(run: Any, tmp_path: Path) -> None:
    result = run("classify", write(tmp_path, b">a\nACGT\n>b\nACGT\n>a\nGGGG\n>a\nTTTT\n"))
    assert [row[0] for row in result.rows] == ["a", "b", "a", "a"]
    assert "2 records with a name that an earlier record has, such as 'a'" in result.err


def test_repeated_names_over_many_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamba_seq.pipelines.names.LOT", 7)
    names = [f"r{i}" for i in range(200)] + ["r3", "r150", "r3"] + [f"s{i}" for i in range(50)] + ["s1"]
    repeated = RepeatedNames()
    for name in names:
        repeated.add(name)
    assert repeated.result() == (4, "r3")


def test_windows_that_miss_every_base(run: Any, tmp_path: Path) -> None:
    source = write(tmp_path, b">gap\n" + b"N" * 500 + b"ACGT" * 20 + b"N" * 500 + b"\n")
    result = run("classify", source, "--max-windows", "2")
    assert result.rows[0][:5] == ["gap", "1080", "NA", "NA", "no_bases"]
    assert "--max-windows 0 takes all" in result.err
    assert run("classify", source, "--max-windows", "0").rows[0][4] == "ok"


def test_stdin_by_name_and_by_default(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["-"], []):
        packed = io.BytesIO(gzip.compress((GOLDEN / "mixed.fa").read_bytes()))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(packed))
        assert run("classify", *arguments).out == (GOLDEN / "mixed.tsv").read_text()


def test_stdin_of_a_process(start: Any) -> None:
    process = start("classify", stdin=subprocess.PIPE, text=False)
    out, err = process.communicate((GOLDEN / "mixed.fa").read_bytes(), timeout=60)
    assert process.returncode == 0, err
    assert out == (GOLDEN / "mixed.tsv").read_bytes()
    assert b"\x1b" not in err  # no progress bar where there is no terminal


def test_usage_errors(run: Any, tmp_path: Path) -> None:
    source = write(tmp_path, FASTA)
    for arguments, words in [
        (["-", "-"], "can be read once"),
        ([source, "--min-probability", "1.5"], "is not in the range"),
        ([source, "--context", "0"], "is not in the range"),
        ([source, "--format", "xml"], "'tsv', 'jsonl'"),
        ([source, "--min-probabilty", "1"], "--min-probability"),
        ([source, "--device", "tpu"], "is not a device"),
    ]:
        result = run("classify", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


def test_no_file_on_a_terminal_is_wrong_usage(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with open(follower) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        result = run("classify")
    os.close(leader)
    assert (result.code, result.out) == (2, "")
    assert "name a file, or pipe sequences in" in result.err


def test_summary_line(run: Any, tmp_path: Path) -> None:
    result = run("classify", write(tmp_path, b">a\n" + b"ACGT" * 300 + b"\n>b\n>c\nAC\n"), "--min-probability", "1")
    last = result.err.splitlines()[-1]
    assert last.startswith("mamba-seq: 3 records (1.2 kb) read in ")
    assert last.endswith(
        "/min); 1,218 bases in 20 windows went through the model; unclassified 2 (66.7 %), empty 1 (33.3 %)"
    )
    quiet = run("classify", "-q", tmp_path / "in.fa")
    assert quiet.err == ""


def test_records_that_were_read_in_part_are_pointed_out(run: Any, fake: Any, tmp_path: Path) -> None:
    source = write(tmp_path, b">a\n" + b"ACGT" * 300 + b"\n>b\nACGT\n")
    words = "1 record longer than 4 windows of 64 bases: the rest was not read; --max-windows 0 reads all of it"
    assert words in run("classify", source, "--max-windows", "4").err
    for every in ("0", "19"):
        assert "was not read" not in run("classify", source, "--max-windows", every).err
    for of_model, windows in ((None, "20 windows"), (4, "5 windows"), (0, "20 windows")):  # b's is one of them
        fake.config.max_windows = of_model
        assert windows in run("classify", source).err
    told = run("classify", source, "--max-windows", "4").err
    assert "5 windows" in told
    assert "warning: 1 record longer than 4 windows of 64 bases" in told


def test_json_lines_have_the_fields_of_the_table(run: Any) -> None:
    table = run("classify", GOLDEN / "mixed.fa")
    header = table.out.splitlines()[0].split("\t")
    objects = [json.loads(line) for line in run("classify", GOLDEN / "mixed.fa", "--format", "jsonl").out.splitlines()]
    assert len(objects) == len(table.rows)
    for cells, fields in zip(table.rows, objects, strict=True):
        probabilities = fields.pop("probabilities") or dict.fromkeys(["alpha", "beta", "gamma"])
        flat = {**fields, **{f"p:{label}": p for label, p in probabilities.items()}}
        text = [
            "NA" if flat[name] is None else f"{flat[name]:.4f}" if isinstance(flat[name], float) else str(flat[name])
            for name in header
        ]
        assert text == cells


def classified(fake: Any, path: Path, **options: Any) -> dict[str, np.ndarray]:
    settings = Options(**{"context": 64, "stride": 64, **options})
    classifier = Classifier(fake, fake.config.labels, torch.device("cpu"), settings)
    return {row.record: np.array(row.probabilities) for row in classifier.rows([str(path)])}


def test_answer_does_not_depend_on_the_other_records(fake: Any, tmp_path: Path) -> None:
    rng = random.Random(3)
    records = {
        f"r{i}": "".join(rng.choices("ACGTN", k=rng.choice([1, 63, 64, 65, 1000, 2049]))) + "A" for i in range(40)
    }
    together = write(tmp_path, "".join(f">{name}\n{s}\n" for name, s in records.items()).encode())
    all_of_them = classified(fake, together)
    assert list(all_of_them) == list(records)
    for name, letters in list(records.items())[::5]:
        alone = classified(fake, write(tmp_path, f">{name}\n{letters}\n".encode(), "alone.fa"), batch_tokens=1)
        np.testing.assert_allclose(alone[name], all_of_them[name], atol=1e-4)


def test_evidence_is_the_weighted_mean_of_log_probabilities_over_windows_and_strands(fake: Any, tmp_path: Path) -> None:
    letters = "ACGTTGCA" * 8 + "GGNNNNNN" * 8 + "ATTA"
    path = write(tmp_path, f">a\n{letters}\n".encode())
    total, weight = np.zeros(3), 0
    for start in (0, 64, len(letters) - 64):
        window = letters[start : start + 64]
        other = window[::-1].translate(str.maketrans("ACGT", "TGCA"))
        tokens = torch.tensor([["ACGTN".index(c) for c in strand] for strand in (window, other)])
        known = 64 - window.count("N")
        total += known * torch.log_softmax(fake(tokens).double(), -1).mean(0).numpy()
        weight += known
    expected = np.exp(total / weight) / np.exp(total / weight).sum()
    np.testing.assert_allclose(classified(fake, path)["a"], expected, atol=1e-4)


def test_both_strands_make_the_answer_the_same_for_the_reverse_complement(fake: Any, tmp_path: Path) -> None:
    letters = "ACCGTTTTACG" * 20
    other = letters[::-1].translate(str.maketrans("ACGT", "TGCA"))
    path = write(tmp_path, f">here\n{letters}\n>there\n{other}\n".encode())
    both = classified(fake, path, max_windows=0, stride=1)
    np.testing.assert_allclose(both["here"], both["there"], atol=1e-4)
    forward = classified(fake, path, max_windows=0, stride=1, both_strands=False)
    assert np.abs(forward["here"] - forward["there"]).max() > 0.01


def test_batches_are_filled_by_bases_and_hold_similar_lengths(fake: Any, tmp_path: Path) -> None:
    lines = [f">{i}\n{'ACGT' * (2 if i % 2 else 16)}\n" for i in range(600)]
    classified(fake, write(tmp_path, "".join(lines).encode()), batch_tokens=4096)
    assert all(rows * length <= 4096 for rows, length in fake.shapes)
    assert {length for _, length in fake.shapes} == {8, 64}
    assert len(fake.shapes) < 40


def test_rows_leave_while_records_are_still_read(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MOST_WAITING_ROWS", 50)
    path = write(tmp_path, b">first\nACGT\n" + b">none\n" * 500)
    classifier = Classifier(fake, fake.config.labels, torch.device("cpu"), Options(context=64, stride=64))
    most = 0
    for _ in classifier.rows([str(path)]):
        most = max(most, len(classifier._waiting))
    assert most <= 51
    assert classifier.summary.records == 501


@pytest.mark.parametrize(
    ("line", "count", "options"),
    [
        (b"ACGTC" * 6_000_000, 1, {}),
        (b"ACGTC" * 50_000, 100, {"max_windows": 1}),
        (b"ACGTC" * 20, 30_000, {"min_length": 200}),
        (b"ACGTC" * 200_000, 2, {"max_windows": 0, "context": 4096, "stride": 4096}),
        (b"ACGTC" * 6_000_000, 1, {"calls": True, "originals": True}),
        (b"ACGTC" * 50_000, 100, {"max_windows": 1, "originals": True}),
        (b"ACGTC" * 20, 20_000, {"calls": True, "originals": True, "context": 1000, "batch_tokens": 8192}),
    ],
    ids=["one long line", "long records", "reads", "all windows", "long line kept", "long records kept", "reads kept"],
)
def test_memory_does_not_grow_with_the_file(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, count: int, options: dict[str, int]
) -> None:
    monkeypatch.setattr(originals, "MOST_IN_MEMORY", 1 << 21)
    path = tmp_path / "in.fa"
    with path.open("wb") as file:
        for i in range(count):
            file.write(b">record_%d\n%b\n" % (i, line))
    settings = Options(**{"context": 64, "stride": 64, "batch_tokens": 4096, **options})
    classifier = Classifier(fake, fake.config.labels, torch.device("cpu"), settings)
    tracemalloc.start()
    rows = 0
    for row in classifier.rows([str(path)]):
        rows += 1
        if row.original is not None:
            row.original.release()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == count
    assert peak < 12e6


def test_memory_does_not_grow_with_a_pipe(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(b">r\n")
            for _ in range(30):
                pipe.write(b"ACGTC" * 200_000)

    settings = Options(context=64, stride=64, batch_tokens=4096)
    classifier = Classifier(fake, fake.config.labels, torch.device("cpu"), settings)
    thread = threading.Thread(target=feed)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        tracemalloc.start()
        thread.start()
        rows = list(classifier.rows(["-"]))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    thread.join()
    assert [(row.record, row.length) for row in rows] == [("r", 30_000_000)]
    assert classifier.summary.done is None  # nobody knows how much a pipe holds
    assert peak < 12e6


def test_a_thousand_files(run: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{i:04}.fa" for i in range(1000)]
    for i, file in enumerate(files):
        file.write_text(f">r{i}\n{'ACGTC' * (1 + i % 30)}\n")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    result = run("classify", *files)
    assert result.code == 0, result.err
    assert [(row[0], int(row[1])) for row in result.rows] == [(f"r{i}", 5 * (1 + i % 30)) for i in range(1000)]
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 5


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain|name", "plain|name"), ("a\tb", "a\\tb"), ("a\u2028b", "a\\u2028b"), ("\u00e9", "\u00e9")],
)
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_nan_from_a_model_is_an_error(run: Callable[..., Any], fake: Any, tmp_path: Path) -> None:
    fake.weight.fill_(float("nan"))
    result = run("classify", write(tmp_path, FASTA))
    assert (result.code, result.out) == (1, "")
    assert "not a number" in result.err
