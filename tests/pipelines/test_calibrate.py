"""Fitting a calibration, the calibration error, novel records, and the commands that use them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq import from_pretrained
from mamba_seq.calibration import Calibration
from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines.calibrate import fit_calibration
from mamba_seq.pipelines.evaluate import Predictions, expected_calibration_error

LABELS = ["alpha", "beta", "gamma"]


def predictions(windows: int, length: int, temperature: float, growth: float, seed: int) -> Predictions:
    """Scores of a model whose right probabilities are softmax(logits), that says softmax(logits / sharpness)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (windows, 4))
    right = np.exp(logits)
    right /= right.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in right])
    said = np.exp(logits * temperature / (length / 100) ** growth)
    return Predictions(said / said.sum(axis=1, keepdims=True), truth, np.full(windows, float(length)))


@pytest.mark.parametrize(("temperature", "growth"), [(1.0, 0.0), (2.5, 0.3), (0.6, 0.8)])
def test_fit_finds_what_the_scores_were_made_with(temperature: float, growth: float) -> None:
    made = [predictions(3000, length, temperature, growth, seed) for seed, length in enumerate((6400, 100, 800))]
    found = fit_calibration(made, 100)
    assert found.temperature == pytest.approx(temperature, rel=0.08)
    assert found.growth == pytest.approx(growth, abs=0.05)
    assert (found.bases, found.windows) == ([100, 800, 6400], 9000)
    for each in made:
        before = expected_calibration_error(each.probabilities, each.truth)
        calibrated = each.calibrated(found)
        after = expected_calibration_error(calibrated.probabilities, calibrated.truth)
        assert after < 0.03
        assert after < before + 0.01
        assert (calibrated.probabilities.argmax(axis=1) == each.probabilities.argmax(axis=1)).all()


def test_stated_part_of_known_records_is_novel() -> None:
    made = [predictions(4000, length, 1.5, 0.2, seed) for seed, length in enumerate((100, 900))]
    found = fit_calibration(made, 100)
    assert found.rates == [0.01, 0.02, 0.05, 0.1, 0.2]
    for each in made:
        for rate in found.rates:
            called = float(each.calibrated(found).novel(found, rate).mean())
            assert rate - 0.005 < called <= rate + 1e-9
    fresh = predictions(4000, 300, 1.5, 0.2, 9).calibrated(found)
    assert abs(float(fresh.novel(found, 0.1).mean()) - 0.1) < 0.05


def test_one_length_gives_no_growth_and_few_windows_none_at_all() -> None:
    assert fit_calibration([predictions(500, 100, 2.0, 0.0, 0)], 100).growth == 0
    with pytest.raises(TooFewData, match=r"^20 windows came to calibrate on, at least 50"):
        fit_calibration([predictions(20, 100, 2.0, 0.0, 0)], 100)


def test_a_model_that_is_always_right_or_hopelessly_sure_stays_finite() -> None:
    truth = np.arange(60) % 3
    sure = np.eye(3)[truth]
    for said in (sure, np.roll(sure, 1, axis=0)):
        found = fit_calibration([Predictions(said, truth, np.full(60, 100.0))], 100)
        assert 0.005 < found.temperature < 150


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.35, 0.65]])
    truth = np.array([0, 1, 0, 1])
    # bins of 1/15: 0.9 and 0.9 share one (one of two right), 0.62 and 0.65 another (both right)
    assert expected_calibration_error(probabilities, truth) == pytest.approx((abs(1.8 - 1) + abs(1.27 - 2)) / 4)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


@pytest.fixture
def calibrated(fake: Any) -> Any:
    """The fake model with a calibration: one window as it is, many windows surer."""
    fields = {"temperature": 1.0, "growth": 0.5, "context": 64, "windows": 99}
    thresholds = {"bases": [64, 6400], "novel": {"0.05": [0.55, 0.7], "0.2": [0.6, 0.9]}}
    fake.config.calibration = dataclasses.asdict(Calibration(**fields, **thresholds))  # type: ignore[arg-type]
    return fake


def test_classify_uses_it(run: Any, fake: Any, tmp_path: Path, calibrated: Any) -> None:
    source = tmp_path / "in.fa"
    source.write_text(">short\nACGTAGCATT\n>long\n" + "ACGTAGCATT" * 640 + "\n")
    found = run("classify", source, "--max-windows", "0").rows
    fake.config.calibration = None
    raw = run("classify", source, "--max-windows", "0").rows
    assert found[0] == raw[0]
    assert found[1][2] == raw[1][2]
    p = np.array(list(map(float, raw[1][5:]))) ** 10  # 100 windows
    np.testing.assert_allclose(list(map(float, found[1][5:])), p / p.sum(), atol=3e-3)


def test_novel_records(run: Any, tmp_path: Path, calibrated: Any) -> None:
    source = tmp_path / "in.fa"
    source.write_text(">known\nAAAAAAAAAAAAAAAAAA\n>new\nGGGACCCGATTGGGACCCAT\n")
    options = ["--unclassified-out", tmp_path / "new.fa", "--min-probability", "0.99", "--strand", "forward"]
    rows = run("classify", source, "--novel", "0.05", *options).rows
    assert [row[4] for row in rows] == ["ok", "novel"]
    assert rows[1][2] == "NA"
    assert float(rows[1][3]) < 0.55
    assert (tmp_path / "new.fa").read_text() == ">new\nGGGACCCGATTGGGACCCAT\n"
    assert [row[4] for row in run("classify", source, *options).rows] == ["ok", "unclassified"]


def test_rates_that_were_not_measured(run: Any, fake: Any, tmp_path: Path, calibrated: Any) -> None:
    source = tmp_path / "in.fa"
    source.write_text(">a\nACGT\n")
    result = run("classify", source, "--novel", "0.3")
    assert (result.code, result.out) == (1, "")
    assert "no threshold for --novel 0.3; it has those for 0.05, 0.2" in result.err
    fake.config.calibration = None
    result = run("classify", source, "--novel", "0.05")
    assert result.code == 1
    assert "is not calibrated, which --novel needs" in result.err
    assert "mamba-seq calibrate" in result.err
    assert run("classify", source, "--novel", "1").code == 2


@pytest.fixture
def genomes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = {"alpha": (5, 1, 1, 1), "beta": (1, 5, 1, 1), "gamma": (1, 1, 1, 3), "other/delta": (1, 1, 6, 1)}
    for label, weight in weights.items():
        folder = tmp_path / ("genomes" if "/" not in label else "") / label
        folder.mkdir(parents=True)
        p = np.array(weight) / sum(weight)
        (folder / "g.fa").write_text(f">{folder.name}\n" + "".join(rng.choice(list("ACGT"), 4000, p=p)) + "\n")
    return tmp_path / "genomes"


def test_calibrate_and_evaluate_commands(run: Any, genomes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(
        ModelConfig(
            task="sequence-classification",
            backbone=MambaConfig(d_model=8, n_layer=1, d_state=4),
            vocab_size=5,
            alphabet="dna",
            labels=LABELS,
            context=64,
        )
    )
    plain, better = model.save_pretrained(tmp_path / "plain", card="# card"), tmp_path / "better"
    options = ["--lengths", "64,640", "--per-class", 40]
    result = run("calibrate", genomes, "-m", plain, "-o", better, *options)
    assert result.code == 0, result.err
    assert result.out == f"{better}\n"
    assert "on 240 windows" in result.err
    loaded = from_pretrained(better)
    assert loaded.config.calibration is not None
    assert loaded.config.calibration["bases"] == [64, 640]
    assert (better / "README.md").read_text() == "# card"
    assert from_pretrained(plain).config.calibration is None
    for name, tensor in from_pretrained(plain).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name

    again = run("calibrate", genomes, "-m", plain, "-o", better)
    assert again.code == 1
    assert "it is not empty" in again.err

    unknown = ["--unknown", tmp_path / "other"]
    table = run("evaluate", genomes, "-m", better, *options, *unknown, "--seed", 1)
    assert table.code == 0, table.err
    everything = [row for row in table.rows if row[1] == "all"]
    assert all(0 <= float(row[8]) < 0.2 for row in everything)
    assert all(0 <= float(row[10]) <= float(row[9]) <= float(row[11]) <= 1 for row in everything)
    strangers = [row for row in table.rows if row[1].startswith("unknown:")]
    assert [row[:4] for row in strangers] == [["64", "unknown:delta", "40", "62"], ["640", "unknown:delta", "40", "6"]]
    assert all(row[4:9] == ["NA"] * 5 and sum(map(int, row[12:])) == 40 for row in strangers)
    report = json.loads(run("evaluate", genomes, "-m", better, *options, *unknown, "--seed", 1, "--format", "json").out)
    assert [each["novel"] / 40 for each in report["unknown"]] == [float(row[9]) for row in strangers]
    assert report["novel"] == 0.05
    raw = run("evaluate", genomes, "-m", plain, *options, "--seed", 1).rows
    assert [row[4] for row in raw] == [row[4] for row in table.rows if not row[1].startswith("unknown")]

    (tmp_path / "other" / "beta").mkdir()
    (tmp_path / "other" / "beta" / "g.fa").write_text(">b\n" + "ACGT" * 500 + "\n")
    result = run("evaluate", genomes, "-m", better, *options, *unknown)
    assert result.code == 1
    assert "has a folder of the model's class 'beta'" in result.err
