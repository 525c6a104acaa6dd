"""Training runs from a recipe to a saved model: what is in its folder, what the recipe changes of it, its baselines."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mamba_seq import ModelError, from_pretrained
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.evaluate import Reading
from mamba_seq.pipelines.train import callbacks, finish
from mamba_seq.pipelines.train.baseline import K, baseline_accuracy, canonical_kmers, kmer_features
from mamba_seq.pipelines.train.dna_job import DnaJob
from mamba_seq.pipelines.train.run import main
from tests.pipelines.tiny_run import metrics


def test_a_run_ends_in_a_saved_model(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "K", K)  # for once all 2,080 features
    folder = main(recipe, tmp_path / "run")
    assert folder == tmp_path / "run" / "model"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "record.json",
        "recipe.yaml",
        "splits.tsv",
        "confusion.png",
        "curves.png",
    }
    model = from_pretrained(folder)
    assert model.config.labels == ["low", "middle", "rich"]
    assert (model.config.alphabet, model.config.context) == ("dna", 96)
    record = json.loads((folder / "record.json").read_text())
    assert [row["length"] for row in record["results"]] == [60, 200]
    assert [row["windows"] for row in record["results"]] == [30, 12]
    assert all(np.sum(record["confusion"][str(row["length"])]) == row["windows"] for row in record["results"])
    assert 0 <= record["results"][0]["baseline"] <= 1
    assert record["results"][1]["composition"] == 1.0  # which is all that these species differ in
    card = (folder / "README.md").read_text()
    low = record["confusion"]["60"][0]
    assert f"| *low* | {low[0] / sum(low):.3f} |" in card
    assert "Tells three made-up species apart." in card
    assert f"{record['results'][0]['accuracy']:.4f}" in card
    assert model.config.calibration == record["calibration"]
    calibration = record["calibration"]
    assert (calibration["bases"], calibration["context"], calibration["windows"]) == ([60, 200], 96, 600)
    assert calibration["ece"] == pytest.approx(np.mean([row["ece"] for row in record["results"]]), abs=1e-4)
    assert all(0 <= row["novel"]["0.05"] <= row["novel"]["0.1"] <= 1 for row in record["results"])
    assert f"temperature {calibration['temperature']}" in card
    assert f"{record['results'][1]['ece']:.4f}" in card
    logged = {row["name"] for row in metrics(tmp_path / "run")}
    assert {"loss", "accuracy", "lr", "val_32_accuracy", "val_64_loss"} <= logged


def test_a_run_starts_from_saved_weights(recipe: str, whole: Path, tmp_path: Path) -> None:
    start = ["--model.dropout=0.1", f"--start_from={whole / 'model'}", "--optim.lr=1e-30", "--optim.min_lr=0"]
    folder = main(recipe, tmp_path / "run", start)
    expected = from_pretrained(whole / "model").state_dict()
    for name, tensor in from_pretrained(folder).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert "an earlier run's weights" in (folder / "README.md").read_text()


def test_weights_of_another_model_start_nothing(recipe: str, whole: Path, tmp_path: Path) -> None:
    start = f"--start_from={whole / 'model'}"
    with pytest.raises(ModelError, match="is another model than the recipe's: pooling mean instead of max"):
        main(recipe, tmp_path / "run", [start, "--pooling=max"])
    with pytest.raises(ModelError, match=r"another model than the recipe's: n_layer 2 instead of 3;"):
        main(recipe, tmp_path / "run", [start, "--model.n_layer=3"])
    assert not (tmp_path / "run").exists()


def test_a_model_without_room_to_calibrate_says_so(
    recipe: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["--evaluation.lengths=[300]", "--evaluation.windows_per_class=[4]", "--optim.steps=2"]
    folder = main(recipe, tmp_path / "run", settings)
    assert "the model is not calibrated" in caplog.text
    assert from_pretrained(folder).config.calibration is None
    assert "Calibrated" not in (folder / "README.md").read_text()


def test_lineages_go_into_the_model_or_are_refused_before_the_run(recipe: str, tmp_path: Path) -> None:
    lineages = {"low": "2:D:Bacteria;5:S:Low", "middle": "6:S:Middle", "rich": "7:S:Rich"}
    text = Path(recipe).read_text()
    Path(recipe).write_text(text + "taxonomy:\n" + "".join(f'  {k}: "{v}"\n' for k, v in lineages.items()))
    folder = main(recipe, tmp_path / "run", ["--optim.steps=2"])
    assert from_pretrained(folder).config.taxonomy == lineages
    Path(recipe).write_text(text + 'taxonomy: {low: "5:S:Low", other: "6:S:Other"}\n')
    with pytest.raises(RecipeError, match=r"taxonomy and the class folders differ in 'middle'"):
        main(recipe, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_test_windows_are_read_in_as_many_windows_as_the_recipe_says(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    measure = finish.predict_windows

    def watched(model: object, windows: object, reading: Reading) -> object:
        told.append(reading.max_windows)
        return measure(model, windows, reading)

    monkeypatch.setattr(finish, "predict_windows", watched)
    folder = main(
        recipe, tmp_path / "run", ["--evaluation.max_windows=0", "--optim.steps=2", "--evaluation.baseline_windows=2"]
    )
    assert told == [0, 0, 0, 0]  # validation windows, then test windows, of two lengths
    assert "all of them (`--max-windows`)" in (folder / "README.md").read_text()
    assert from_pretrained(folder).config.max_windows == 0  # so that classify does as well


def test_a_schedule_of_minutes_ends_the_run_when_they_are_over(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()  # a second passes whenever it is looked at
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    timed = ["--optim.steps=100000", "--optim.minutes=1", "--optim.warmup_steps=1"]
    run = main(recipe, tmp_path / "run", timed, max_minutes=1e-5)
    assert run == tmp_path / "run"  # stopped before its minute was over
    folder = main(recipe, run, timed)
    record = json.loads((folder / "record.json").read_text())
    rates = [float(row["value"]) for row in metrics(run) if row["name"] == "lr"]
    assert record["steps"] == len(rates) < 60
    assert f"| {record['steps']} of" in (folder / "README.md").read_text()
    assert rates[0] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.001
    assert 1 <= record["minutes"] < 1.2
    # killed before the model's folder was there: no step more, for evaluation.json is of these weights
    folder.rename(run / "model.partial")
    monkeypatch.setattr(DnaJob, "finish", lambda self, model, run, steps, minutes: steps)
    assert main(recipe, run, timed) == record["steps"]


def test_kmer_features_count_both_strands_alike() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 4, 300).astype(np.uint8)
    codes[50] = 4
    other_strand = np.where(codes < 4, 3 - codes, 4)[::-1].astype(np.uint8)
    features = kmer_features([codes, other_strand], k=3)
    np.testing.assert_array_equal(features[0], features[1])
    assert canonical_kmers(3)[1] == 32
    assert canonical_kmers(6)[1] == 2080
    counts: dict[str, int] = {}
    text = "".join("ACGTN"[c] for c in codes)
    for i in range(len(text) - 2):
        word = text[i : i + 3]
        if "N" not in word:
            pair = min(word, word[::-1].translate(str.maketrans("ACGT", "TGCA")))
            counts[pair] = counts.get(pair, 0) + 1
    frequencies = sorted(np.log((np.array([*counts.values()] + [0] * (32 - len(counts))) + 0.5) / (295 + 16)))
    np.testing.assert_allclose(sorted(features[0]), frequencies)


def test_baseline_tells_compositions_apart() -> None:
    rng = np.random.default_rng(2)

    def draw(n: int) -> tuple[list[np.ndarray], list[int]]:
        labels = [i % 2 for i in range(n)]
        chances = ([0.4, 0.1, 0.1, 0.4], [0.1, 0.4, 0.4, 0.1])
        return [rng.choice(4, 200, p=chances[label]).astype(np.uint8) for label in labels], labels

    assert baseline_accuracy(draw(30), draw(20)) == 1.0
    assert baseline_accuracy(draw(30), draw(20), k=1) == 1.0
