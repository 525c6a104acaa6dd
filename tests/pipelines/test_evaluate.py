"""Accuracy of a model on windows of known class, and what is written of it."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq.data_prep.errors import DataError
from mamba_seq.pipelines.evaluate import Evaluation, confusion_matrix, evaluate_windows, wilson

CPU = torch.device("cpu")


def genome(label: str, length: int, seed: int) -> str:
    weights = {"alpha": (5, 1, 1, 1), "beta": (1, 5, 1, 1), "gamma": (1, 1, 1, 1)}[label]
    return "".join(random.Random(f"{label}{seed}").choices("ACGT", weights, k=length))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label, lengths in {"alpha": (3000, 1500), "beta": (1200,)}.items():
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        text = "".join(f">{label}_{i}\n{genome(label, length, i)}\n" for i, length in enumerate(lengths))
        (folder / "genomes.fa").write_text(text)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("proportion", "n", "low", "high"),
    [  # from Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
        (1.0, 41, 0.9143, 1.0),
        (0.0, 0, 0.0, 1.0),
    ],
)
def test_wilson(proportion: float, n: int, low: float, high: float) -> None:
    found = wilson(proportion, n)
    assert found == pytest.approx((low, high), abs=5e-5)
    assert found[0] <= proportion <= found[1]


def test_confusion_matrix_has_the_truth_down() -> None:
    counts = confusion_matrix(np.array([0, 0, 2, 1]), np.array([0, 2, 2, 0]), 3)
    assert counts.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    result = Evaluation(counts)
    assert (result.windows, result.correct, result.accuracy) == (4, 2, 0.5)
    assert result.interval() == wilson(0.5, 4)
    assert result.interval(independent=2) == wilson(0.5, 2)
    assert math.isnan(Evaluation(np.zeros((2, 2), dtype=np.int64)).accuracy)


def test_evaluate_windows_reads_them_as_classify_does(fake: Any, tmp_path: Path, run: Any) -> None:
    letters = [genome(label, length, 0) for label in ("alpha", "beta", "gamma") for length in (63, 64, 500, 2049)]
    (tmp_path / "in.fa").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(letters)))
    predicted = [["alpha", "beta", "gamma"].index(row[2]) for row in run("classify", tmp_path / "in.fa").rows]
    truth = [i // 4 for i in range(12)]
    codes = [np.frombuffer(s.translate(str.maketrans("ACGT", "\0\1\2\3")).encode(), dtype=np.uint8) for s in letters]
    result = evaluate_windows(fake, zip(codes, truth, strict=True), 64, device=CPU)
    assert result.confusion.tolist() == confusion_matrix(np.array(truth), np.array(predicted), 3).tolist()
    assert result.correct > 6


def test_windows_without_a_base_or_none_at_all_are_errors(fake: Any) -> None:
    with pytest.raises(DataError, match="window 1 of the evaluation holds nothing but N"):
        evaluate_windows(fake, [(np.zeros(9, np.uint8), 0), (np.full(9, 4, np.uint8), 1)], 64, device=CPU)
    with pytest.raises(DataError, match="no window"):
        evaluate_windows(fake, [], 64, device=CPU)


@pytest.mark.usefixtures("fake")
def test_table(run: Any, data: Path) -> None:
    result = run("evaluate", data, "--lengths", "200,1000", "--per-class", 20, "--seed", 3)
    assert result.code == 0, result.err
    header, *lines = [line.split("\t") for line in result.out.splitlines()]
    assert header == [
        *["length", "class", "windows", "disjoint", "correct", "accuracy", "low", "high"],
        *["ece", "novel", "novel_low", "novel_high"],
        *["n:alpha", "n:beta", "n:gamma"],
    ]
    assert [line[:4] for line in lines] == [
        ["200", "all", "40", "28"],
        ["200", "alpha", "20", "22"],
        ["200", "beta", "20", "6"],
        ["1000", "all", "40", "5"],
        ["1000", "alpha", "20", "4"],
        ["1000", "beta", "20", "1"],
    ]
    for line, independent in zip(lines, (26, 20, 6, 5, 4, 1), strict=True):
        counts = list(map(int, line[12:]))
        assert (line[8] == "NA") == (line[1] != "all")
        assert line[9:12] == ["NA"] * 3
        assert sum(counts) == int(line[2])
        right = int(line[4]) / int(line[2])
        assert list(map(float, line[5:8])) == pytest.approx([right, *wilson(right, independent)], abs=5e-5)
    assert (
        run("evaluate", data, "--lengths", "200,1000", "--per-class", 20, "--seed", 3, "--threads", 1).out == result.out
    )
    assert run("evaluate", data, "--lengths", "200,1000", "--per-class", 20, "--seed", 4).out != result.out


@pytest.mark.usefixtures("fake")
def test_classes_without_a_window_of_a_length_are_left_out_with_a_warning(run: Any, data: Path) -> None:
    (data / "gamma").mkdir()
    (data / "gamma" / "gaps.fa").write_text(f">gaps\n{'ACGT' * 30}{'N' * 1500}\n")
    result = run("evaluate", data, "--lengths", "100,1100,1400", "--per-class", 5)
    assert result.code == 0, result.err
    assert [row[:4] for row in result.rows if row[1] == "all"] == [
        *(["100", "all", "15", "73"], ["1100", "all", "10", "4"], ["1400", "all", "5", "3"]),
    ]
    assert "1,100 bases: class 'gamma' is left out: 100 windows" in result.err
    assert "1,400 bases: class 'beta' is left out: class 'beta' has no stretch of 1400 bases" in result.err
    assert [row[1] for row in result.rows if row[0] == "1400"] == ["all", "alpha"]


def test_json_file_and_default_lengths(run: Any, fake: Any, data: Path, tmp_path: Path) -> None:
    fake.config.max_windows = 7
    target = tmp_path / "accuracy.json"
    result = run("evaluate", data, "-m", "fake", "--format", "json", "-o", target, "--per-class", 5)
    assert (result.code, result.out) == (0, "")
    assert "class 'beta' has no stretch longer than 1200 bases; longer windows are left out" in result.err
    report = json.loads(target.read_text())
    assert (report["model"], report["labels"], report["seed"]) == ("fake", ["alpha", "beta", "gamma"], 0)
    assert report["max_windows"] == 7
    assert [row["length"] for row in report["results"]] == [1000]
    row = report["results"][0]
    assert row["disjoint_by_class"] == [4, 1, 0]
    assert np.trace(row["confusion"]) == row["correct"]
    assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1


@pytest.mark.usefixtures("fake")
def test_splits_confine_the_windows_to_test_regions(run: Any, data: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.tsv"
    rows = [
        *["alpha\talpha/genomes.fa\talpha_0\t0\t2000\ttrain", "alpha\talpha/genomes.fa\talpha_0\t2000\t2500\ttest"],
        *["beta\tbeta/genomes.fa\tbeta_0\t0\t600\ttest", "beta\tbeta/genomes.fa\tbeta_0\t600\t1200\ttrain"],
    ]
    splits.write_text("\n".join(["label\tfile\trecord\tstart\tend\tsplit", *rows]) + "\n")
    result = run("evaluate", data, "--splits", splits, "--lengths", "100", "--per-class", 50)
    assert result.code == 0, result.err
    assert [row[3] for row in result.rows] == ["11", "5", "6"]
    missing = run("evaluate", data, "--splits", tmp_path / "none.tsv")
    assert missing.code == 1
    assert "none.tsv cannot be read" in missing.err


@pytest.mark.usefixtures("fake")
def test_refusals(run: Any, data: Path) -> None:
    result = run("evaluate", data, "--lengths", "5000")
    assert (result.code, result.out) == (1, "")
    assert "has no stretch of 5000 bases" in result.err
    assert run("evaluate", data, "--lengths", "10,x").code == 2
    assert run("evaluate", data / "none").code == 1
    (data / "delta").mkdir()
    (data / "delta" / "a.fa").write_text(">a\n" + "ACGT" * 500 + "\n")
    result = run("evaluate", data)
    assert (result.code, result.out) == (1, "")
    assert "has the class folder 'delta', which the model does not know; it knows alpha, beta, gamma" in result.err
