"""Training runs: a saved model at the end, a killed run that goes on as if nothing had been, runs that are refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mamba_seq import ModelError, UnknownModelError, from_pretrained
from mamba_seq.pipelines.train.baseline import baseline_accuracy, canonical_kmers, kmer_features
from mamba_seq.pipelines.train.module import learning_rate
from mamba_seq.pipelines.train.recipe import OptimConfig, read_recipe
from mamba_seq.pipelines.train.run import main

RECIPE = """
name: mamba-dna.tiny
summary: Tells three made-up species apart.
data_source: Drawn by a seed.
data_licence: None needed.
limits: Useless for anything but tests.
model: {{d_model: 8, n_layer: 2, d_state: 4}}
context: 96
data: {{root: {root}, lengths: [32, 64], batch_tokens: 512, validation_windows: 4}}
optim: {{lr: 0.01, warmup_steps: 2, steps: 12}}
evaluation: {{lengths: [60, 200], windows_per_class: [10, 4]}}
val_every: 4
log_every: 1
"""


@pytest.fixture(scope="module")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("genomes")
    for label, gc in (("low", 0.2), ("middle", 0.5), ("rich", 0.8)):
        (root / label).mkdir()
        chances = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
        (root / label / "g.fa").write_text(">r\n" + "".join(rng.choice(list("ACGT"), 5000, p=chances)) + "\n")
    return root


@pytest.fixture(autouse=True)
def _small_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamba_seq.pipelines.train.finish.BASELINE_BASES", 1)  # at least 60 windows all the same


@pytest.fixture
def recipe(genomes: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(root=genomes))
    return str(path)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_ends_in_a_saved_model(recipe: str, tmp_path: Path) -> None:
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
    card = (folder / "README.md").read_text()
    assert "Tells three made-up species apart." in card
    assert f"{record['results'][0]['accuracy']:.4f}" in card
    logged = {row["name"] for row in metrics(tmp_path / "run")}
    assert {"loss", "accuracy", "lr", "val_32_accuracy", "val_64_loss"} <= logged


def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(recipe, tmp_path / "whole")

    from mamba_seq.pipelines.train.module import ClassifierTraining

    step = ClassifierTraining.training_step

    def killed(self: ClassifierTraining, batch: object, batch_idx: int) -> torch.Tensor:
        if self.global_step == 10:  # two steps after the second checkpoint
            raise MemoryError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTraining, "training_step", killed)
        with pytest.raises(MemoryError, match="killed"):
            main(recipe, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model").exists()
    folder = main(recipe, tmp_path / "parts")

    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    whole = from_pretrained(tmp_path / "whole" / "model").state_dict()
    for name, tensor in from_pretrained(folder).state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_max_minutes_stops_with_a_checkpoint(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    assert run == tmp_path / "run"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert main(recipe, run) == run / "model"


def test_a_finished_run_is_left_alone_unless_forced(recipe: str, tmp_path: Path) -> None:
    folder = main(recipe, tmp_path / "run")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ModelError, match="holds a finished run"):
        main(recipe, tmp_path / "run")
    assert (folder / "model.safetensors").read_bytes() == before
    main(recipe, tmp_path / "run", ["--seed=5"], force=True)
    assert (folder / "model.safetensors").read_bytes() != before


def test_a_run_of_another_recipe_is_left_alone(recipe: str, tmp_path: Path) -> None:
    main(recipe, tmp_path / "run", max_minutes=1e-5)
    with pytest.raises(ModelError, match="was begun with another recipe"):
        main(recipe, tmp_path / "run", ["--optim.lr=0.5"])


def test_force_removes_nothing_that_is_no_run(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="is no run"):
        main(recipe, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.txt").is_file()


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(UnknownModelError, match="no recipe is named 'soup'"):
        main("soup", "nowhere")


def test_overrides_and_misspelt_fields(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields, text = read_recipe(Path(recipe), ["--optim.lr=0.125", "--model.n_layer", "3"])
    assert fields.optim.lr == 0.125
    assert fields.model.n_layer == 3
    assert "lr: 0.125" in text
    with pytest.raises(SystemExit) as stop:
        read_recipe(Path(recipe), ["--optim.rate=1"])
    assert stop.value.code == 2
    assert "rate" in capsys.readouterr().err


def test_bad_values_are_named(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_recipe(Path(recipe), ["--optim.lr=fast"])
    assert "optim.lr" in capsys.readouterr().err


def test_learning_rate_warms_up_and_decays() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, steps=110)
    rates = [learning_rate(step, optim) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


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
