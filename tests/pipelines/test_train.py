"""Training runs: a saved model at the end, a killed run that goes on as if nothing had been, runs that are refused."""

import csv
import itertools
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

from mamba_seq import ModelError, UnknownModelError, from_pretrained
from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.data_prep.errors import DataError
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.evaluate import Reading
from mamba_seq.pipelines.train import callbacks, finish
from mamba_seq.pipelines.train.baseline import baseline_accuracy, canonical_kmers, kmer_features
from mamba_seq.pipelines.train.callbacks import StopAfter
from mamba_seq.pipelines.train.dna_job import DnaJob
from mamba_seq.pipelines.train.metrics import MetricsFile, read_metrics
from mamba_seq.pipelines.train.module import ClassifierTraining, learning_rate, step_seed
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
DROPOUT = ["--model.dropout=0.3", "--optim.next_token_weight=0.5"]


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


@pytest.fixture(scope="module")
def whole(genomes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(RECIPE.format(root=genomes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mamba_seq.pipelines.train.finish.BASELINE_BASES", 1)
        # as in the tests, or the sums round differently; a fixture of the module comes before that of conftest.py
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        main(str(folder / "tiny.yaml"), folder / "run", DROPOUT)
        torch.set_num_threads(threads)
    return folder / "run"


@pytest.mark.parametrize(("where", "at"), [("training_step", 10), ("training_step", 1), ("validation_step", 8)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, at: int
) -> None:
    step = getattr(ClassifierTraining, where)

    def killed(self: ClassifierTraining, *args: object) -> object:
        if self.global_step == at:
            raise MemoryError("killed")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTraining, where, killed)
        with pytest.raises(MemoryError, match="killed"):
            main(recipe, tmp_path / "parts", DROPOUT)
    assert not (tmp_path / "parts" / "model").exists()
    torch.rand(3)  # what a process draws besides changes nothing
    main(recipe, tmp_path / "parts", DROPOUT)
    assert_same_run(tmp_path / "parts", whole)


@pytest.mark.parametrize("at", [4, 6])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def stop(self: StopAfter, trainer: Trainer, *args: object) -> None:
        trainer.should_stop = trainer.global_step == at

    with monkeypatch.context() as patch:
        patch.setattr(StopAfter, "on_train_batch_end", stop)
        assert main(recipe, tmp_path / "parts", DROPOUT, max_minutes=1e3) == tmp_path / "parts"
    assert torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == at
    main(recipe, tmp_path / "parts", DROPOUT)
    assert_same_run(tmp_path / "parts", whole, validated_at=at - 1)


def assert_same_run(run: Path, whole: Path, validated_at: int | None = None) -> None:
    """Compare logs, weights and evaluation; where a run was stopped it was validated as well."""
    expected_rows = metrics(whole)
    if not any(row["name"].startswith("val_") and row["step"] == str(validated_at) for row in expected_rows):
        extra = [row for row in metrics(run) if row["name"].startswith("val_") and row["step"] == str(validated_at)]
        assert len(extra) == (0 if validated_at is None else 4)
        expected_rows = sorted(expected_rows + extra, key=lambda row: int(row["step"]))
    assert metrics(run) == expected_rows
    expected = from_pretrained(whole / "model").state_dict()
    for name, tensor in from_pretrained(run / "model").state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert json.loads((run / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1) for step in range(100) for rank in (0, 1)}
    assert len(seeds) == 400
    assert max(seeds) < 2**32


def test_minutes_of_all_calls_count(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["Checkpoint"]["minutes"] += 40
    torch.save(checkpoint, path)
    folder = main(recipe, run)
    assert 40 < json.loads((folder / "record.json").read_text())["minutes"] < 45


def test_ctrl_c_is_a_keyboard_interrupt(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: ClassifierTraining, *args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassifierTraining, "training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        main(recipe, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_kill_while_the_checkpoint_is_written_keeps_the_old_one(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()

    def half(self: Trainer, path: Path) -> None:
        path.write_bytes(before[:100])
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", half)
        with pytest.raises(MemoryError):
            main(recipe, run)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert main(recipe, run) == run / "model"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_says_what_to_do(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"last\.ckpt cannot be read as a checkpoint: .*; put a copy of it back, or"):
        main(recipe, run)


@pytest.mark.parametrize("name", ["baseline.json", "evaluation.json", "metrics.csv", "recipe.yaml", "splits.tsv"])
def test_a_kill_while_a_file_is_written_leaves_no_half_of_it(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write = Path.write_bytes

    def killed(self: Path, data: bytes) -> int:
        if name in self.name:
            write(self, data[: len(data) // 2])
            raise MemoryError("killed")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(MemoryError):
            main(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / name).exists()
    assert main(recipe, tmp_path / "run") == tmp_path / "run" / "model"


def test_a_log_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsFile(path, 0)
    for step in range(3):
        log.log_metrics({"loss": 0.5, "epoch": 0.0}, step)
    path.write_text(path.read_text() + "1")
    assert read_metrics(path) == [(0, "loss", 0.5), (1, "loss", 0.5), (2, "loss", 0.5)]
    MetricsFile(path, 2).log_metrics({"loss": 0.25}, 2)
    assert read_metrics(path) == [(0, "loss", 0.5), (1, "loss", 0.5), (2, "loss", 0.25)]


def test_rows_of_the_log_belong_to_their_steps(whole: Path, recipe: str, tmp_path: Path) -> None:
    """Fewer rows are some of all rows, with the same values."""
    main(recipe, tmp_path / "run", [*DROPOUT, "--log_every=5"])
    training = [row for row in metrics(tmp_path / "run") if not row["name"].startswith("val_")]
    steps = {"0", "5", "10"}
    assert training == [r for r in metrics(whole) if r["step"] in steps and not r["name"].startswith("val_")]


def test_max_minutes_stops_with_a_checkpoint(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    assert run == tmp_path / "run"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert main(recipe, run) == run / "model"


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


def test_long_windows_are_trained_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(
        task="sequence-classification",
        backbone=MambaConfig(d_model=8, n_layer=1, d_state=4),
        vocab_size=5,
        labels=["a", "b", "c"],
        context=16,
    )
    training = ClassifierTraining(SequenceClassifier(config), OptimConfig(next_token_weight=0.5), 1, seed=0)
    training.read_in_windows(16, 0.75)
    monkeypatch.setattr(training, "log_row", lambda values: None)
    monkeypatch.setattr(training, "seed_step", lambda: None)
    tokens, labels = torch.randint(0, 4, (2, 48), dtype=torch.uint8), torch.tensor([2, 0])
    tokens[1, 16:32], tokens[1, 40:48] = 4, 4  # N, which does not count
    windows = tokens.view(6, 16).long()
    first, second = training.model(windows).view(2, 3, 3)
    second = (2 * second[0] + second[2]) / 3 * 1.5**0.75  # 24 bases fill one window and a half
    together = torch.stack([first.mean(dim=0) * 3**0.75, second])
    next_tokens = training.next_token(training.model.backbone(training.model.embedding(windows)))[:, :-1]
    expected = F.cross_entropy(together, labels)
    expected = expected + 0.5 * F.cross_entropy(next_tokens.flatten(0, 1), windows[:, 1:].flatten())
    torch.testing.assert_close(training.training_step((tokens, labels), 0), expected)
    whole = F.cross_entropy(training.model(tokens[:, :16].long()), labels)
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(training, "log_dict", lambda values, **_: logged.update(values))
    training.validation_step((tokens, labels), 0)
    training.validation_step((tokens[:, :16], labels), 0)
    torch.testing.assert_close(logged["val_48_loss"], F.cross_entropy(together, labels))
    torch.testing.assert_close(logged["val_16_loss"], whole)


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


def test_force_removes_what_a_run_wrote_and_nothing_else(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    (run / "notes.txt").write_text("lr 0.01 was better")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "last.ckpt").write_text("of another run")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    main(recipe, run, ["--seed=5"], force=True, max_minutes=1e-5)
    assert (run / "notes.txt").read_text() == "lr 0.01 was better"
    assert (tmp_path / "elsewhere" / "last.ckpt").is_file()
    assert not (run / "model").exists()
    assert "seed: 5" in (run / "recipe.yaml").read_text()


@pytest.mark.parametrize("force", [False, True])
def test_a_mistake_in_the_data_writes_and_removes_nothing(recipe: str, tmp_path: Path, force: bool) -> None:
    mistakes = {
        "--data.root=nowhere": (DataError, "nowhere"),
        "--data.lengths=[4000]": (RecipeError, r"the recipe's data section cannot be used: lengths \[4000\]"),
        "--evaluation.lengths=[60, 4000]": (DataError, "no stretch of 4000 bases"),
    }
    if force:
        finished = main(recipe, tmp_path / "run")
    for override, (error, message) in mistakes.items():
        with pytest.raises(error, match=message):
            main(recipe, tmp_path / "run", [override], force=force)
    if force:
        assert (finished / "model.safetensors").is_file()
    else:
        assert not (tmp_path / "run").exists()
    assert main(recipe, tmp_path / "run", force=force) == tmp_path / "run" / "model"


def test_a_run_does_not_go_on_with_other_genomes(recipe: str, genomes: Path, tmp_path: Path) -> None:
    """Another genome moves the held-out regions: what was held out would be trained on."""
    shutil.copytree(genomes, tmp_path / "genomes")
    root = f"--data.root={tmp_path / 'genomes'}"
    run = main(recipe, tmp_path / "run", [root], max_minutes=1e-5)
    with (tmp_path / "genomes" / "low" / "g.fa").open("a") as file:
        file.write("ACGT" * 100 + "\n")
    with pytest.raises(ModelError, match="the genomes have changed since"):
        main(recipe, run, [root])


def test_folders_that_are_no_runs_are_left_alone(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ModelError, match="file is a file, expected the folder of a run"):
        main(recipe, tmp_path / "file")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ModelError, match=r"would write over its metrics\.csv; name another folder"):
        main(recipe, tmp_path / "table")
    saved = main(recipe, tmp_path / "run")
    for force in (False, True):
        with pytest.raises(ModelError, match="model is a saved model, expected the folder of a run"):
            main(recipe, saved, force=force)
    assert (saved / "recipe.yaml").is_file()


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
    told = capsys.readouterr().err
    assert "rate" in told
    assert "--print_config" in told
    assert told.count("\n") < 6


def test_bad_values_are_named(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_recipe(Path(recipe), ["--optim.lr=fast"])
    assert "optim.lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optim.steps=0", "optim.steps is 0, expected at least 1"),
        ("--optim.lr=0", "optim.lr is 0.0, expected above 0"),
        ("--optim.grad_clip=0", "optim.grad_clip is 0.0, expected above 0"),
        ("--optim.beta2=1", "optim.beta2 is 1.0, expected 0 or more, below 1"),
        ("--optim.next_token_weight=-1", "optim.next_token_weight is -1.0, expected 0 or more"),
        ("--evaluation.windows_per_class=[1]", "expected one figure for each length"),
        ("--evaluation={lengths: [], windows_per_class: []}", r"evaluation.lengths is \[\], expected at least one"),
        ("--optim.minutes=0", "optim.minutes is 0.0, expected above 0, or null for a schedule of steps"),
        ("--evaluation.max_windows=-1", "evaluation.max_windows is -1, expected 0 for all, or more"),
        ("--evaluation.baseline_windows=0", "evaluation.baseline_windows is 0, expected at least 1"),
        ("--evidence_growth=1.5", "evidence_growth is 1.5, expected 0 to 1, or null"),
        ("--refit_windows=-1", "refit_windows is -1 and pooling"),
        ("--context=0", "context is 0, expected at least 1"),
        ("--log_every=0", "log_every is 0, expected at least 1"),
        ("--seed=-1", "seed is -1, expected 0 to 4294967295"),
        ("--model.dropout=1", "dropout is 1.0, expected 0 or more, below 1"),
    ],
)
def test_values_out_of_range_are_the_recipes_fault(recipe: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"is no recipe: .*{message}"):
        read_recipe(Path(recipe), [override])


def test_what_is_read_in_windows_is_whole_windows(recipe: str) -> None:
    with pytest.raises(RecipeError, match="a length of data is 100, expected at most context = 96, or a multiple"):
        read_recipe(Path(recipe), ["--evidence_growth=0.5", "--data.lengths=[32, 192, 100]"])


def test_learning_rate_warms_up_and_decays() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, steps=110)
    rates = [learning_rate(step, optim) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_of_a_schedule_of_minutes() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, steps=1000, minutes=8.0)
    assert learning_rate(0, optim, 0.0) == pytest.approx(0.1)
    assert learning_rate(10, optim, 0.0) == pytest.approx(1.0)
    assert learning_rate(500, optim, 4.0) == pytest.approx(0.55)
    assert learning_rate(500, optim, 9.0) == pytest.approx(0.1)


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
