"""The benchmarks that train many small models: processes end at the deadline, settings are chosen by validation."""

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import matthews_corrcoef

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of the benchmarks, which import each other by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in ("gue", "synthetic_seeds", "side_by_side", "plot_synthetic", "plot_scan"):
        sys.modules.pop(name, None)


def test_commands_end_at_the_deadline_with_what_they_started(load: Any, tmp_path: Path) -> None:
    script: ModuleType = load("side_by_side")
    jobs = [
        script.Job("good", ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]),
        script.Job("bad", ["sh", "-c", "exit 3"]),
        script.Job("long", ["sh", "-c", "sleep 60; echo never"]),
        script.Job("late", ["echo", "late"]),
    ]
    status = script.run_jobs(jobs, tmp_path, time.monotonic() + 0.4, 1, ["7"])
    assert status == {"good": 0, "bad": 3, "long": None, "late": None}
    assert (tmp_path / "good.log").read_text() == "7\n"
    assert not (tmp_path / "late.log").exists()


def test_the_setting_of_the_least_validation_loss_runs_the_other_seeds(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script: ModuleType = load("gue")
    asked = []

    def train(jobs: Any, *_: Any) -> None:
        for job in jobs:
            asked.append(job.name)
            run = tmp_path / "runs" / job.name
            _, start, rate, *_ = job.name.split("--")
            assert f"--optim.lr={rate}" in job.command
            assert ("-m" in job.command) == (start == "pretrained")
            (run / "model").mkdir(parents=True)
            # the best loss is at the second validation, where MCC is not the best
            loss = {("scratch", "1e-3"): 0.4, ("pretrained", "3e-4"): 0.3}.get((start, rate), 0.5)
            rows = [(9, "val_loss", 0.9), (9, "val_mcc", 0.8), (19, "val_loss", loss), (19, "val_mcc", 0.7)]
            (run / "metrics.csv").write_text(
                "\n".join(["step,name,value", *(",".join(map(str, r)) for r in rows)]) + "\n"
            )
            said = "1100" if start == "pretrained" else "1010"
            table = [f"{truth}\t{prediction}" for truth, prediction in zip("1100", said, strict=True)]
            (run / "model" / "predictions.tsv").write_text("\n".join(["truth\tprediction", *table]) + "\n")
            mcc = 1.0 if start == "pretrained" else 0.0
            whole = dict.fromkeys(("tests", "parameters", "hardware", "precision", "versions", "date"), 1)
            record = {**whole, "steps": 20, "minutes": 1.0, "results": {"mcc": {"value": mcc}}}
            (run / "model" / "record.json").write_text(json.dumps(record))

    monkeypatch.setattr(script, "run_jobs", train)
    monkeypatch.setattr(script, "RESAMPLES", 20)
    rest = ["-o", str(tmp_path), "--tasks", "tf_0", "--seeds", "0", "1", "--rates", "3e-4", "1e-3"]
    assert script.main([str(tmp_path / "GUE"), *rest]) == 0
    assert asked[4:] == ["tf_0--scratch--1e-3--1--1", "tf_0--pretrained--3e-4--1--1"]
    assert (
        "| tf_0 | 0.00 ± 0.00 (2) | 1e-3 | 100.00 ± 0.00 (2) | 3e-4 x 1 | +100.00 |"
        in (tmp_path / "rows.md").read_text()
    )
    assert len((tmp_path / "gue.csv").read_text().splitlines()) == 7
    # nothing is run twice
    assert script.main([str(tmp_path / "GUE"), *rest]) == 0
    assert len(asked) == 6


def test_a_seed_draws_examples_of_its_own(load: Any, tmp_path: Path) -> None:
    script: ModuleType = load("gue")
    (tmp_path / "GUE" / "tf_0").mkdir(parents=True)
    for split, rows in (("train", 30), ("dev", 3), ("test", 20)):
        table = pd.DataFrame({"sequence": [f"{split}{i}" for i in range(rows)], "label": range(rows)})
        table.to_csv(tmp_path / "GUE" / "tf_0" / f"{split}.csv.gz", index=False)
    asked = script.parse([str(tmp_path / "GUE"), "-o", str(tmp_path), "--examples", "10"])
    drawn = [pd.read_csv(script.data_of(asked, "tf_0", seed) / "train.csv") for seed in (0, 1, 0)]
    assert [len(each) for each in drawn] == [10, 10, 10]
    assert drawn[0].equals(drawn[2])
    assert not drawn[0].equals(drawn[1])
    assert (drawn[0]["sequence"] == "train" + drawn[0]["label"].astype(str)).all()
    sizes = {split: len(pd.read_csv(tmp_path / "data" / "1" / "tf_0" / f"{split}.csv")) for split in ("dev", "test")}
    assert sizes == {"dev": 3, "test": 20}
    assert script.data_of(script.parse(["GUE", "-o", "x"]), "tf_0", 0) == Path("GUE/tf_0")


def test_correlation_of_any_number_of_classes(load: Any) -> None:
    script: ModuleType = load("gue")
    for classes in (2, 5):
        rng = np.random.default_rng(classes)
        truth = rng.integers(classes, size=200)
        said = np.where(rng.random((3, 200)) < 0.6, truth, rng.integers(classes, size=(3, 200)))
        expected = np.mean([matthews_corrcoef(truth, run) for run in said])
        assert script.mean_mcc(truth, said) == pytest.approx(expected)
        assert script.mean_mcc(truth, np.zeros_like(said)) == 0


def test_accuracy_by_length_of_every_seed(load: Any, tmp_path: Path) -> None:
    script: ModuleType = load("synthetic_seeds")
    record = {
        **{"seed": 1, "context": 16, "batch_size": 8, "optim": {"lr": 0.01}, "model": {"dt_min": 1e-6, "dt_max": 0.1}},
        **{"label_smoothing": 0.1, "stages": [{"length": 8, "steps": 5}], "steps": 1200, "minutes": 2.04},
        **dict.fromkeys(("hardware", "precision", "versions", "date"), ""),
        "results": [{"length": 1024, "accuracy": 0.5}, {"length": 64, "accuracy": 1.0}],
    }
    assert script.summary([record]) == [
        "| seed | steps | minutes | 64 | 1,024 |",
        "|---:|---:|---:|---:|---:|",
        "| 1 | 1,200 | 2.0 | 100.00 | 50.00 |",
    ]
    rows = script.gather([record])
    assert [row["stages"] for row in rows] == ["8:5", "8:5"]
    assert {"run", "seed", "trained_at", "lr", "dt_min"} <= set(rows[0])  # what plot_synthetic.py reads


def test_every_run_is_a_line_of_the_figure(load: Any) -> None:
    script: ModuleType = load("plot_synthetic")
    rows = {task: script.read(ROOT / "benchmarks" / "results" / f"{task}_h200.csv") for task in script.TASKS}
    figure = script.draw(rows, script.STYLES["light"])
    drawn = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert [len(each) for each in drawn] == [4, 2]
    assert "seed 1, rate 0.01, dt from 1e-06" in drawn[0]
    assert (ROOT / "docs" / "figures" / "synthetic_h200.light.png").is_file()
