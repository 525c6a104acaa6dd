"""Training on synthetic tasks: a short one is solved, killed runs go on, chunks give what the whole gives."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_seq import LanguageModel, MambaConfig, ModelConfig, ModelError, from_pretrained
from mamba_seq.data_prep.synthetic import SelectiveCopying
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train import synthetic_step
from mamba_seq.pipelines.train.folder import OWN
from mamba_seq.pipelines.train.recipe import SyntheticRecipe, read_recipe
from mamba_seq.pipelines.train.run import main
from mamba_seq.pipelines.train.synthetic_module import SyntheticTraining, measure

RECIPE = """
kind: synthetic
name: induction-heads.tiny
summary: Remembers a token.
data_source: Drawn by a seed.
data_licence: None needed.
limits: Useless for anything but tests.
model: {d_model: 32, n_layer: 2, d_state: 8}
data: {task: induction-heads, length: 16, vocab_size: 6, batch_size: 32}
validation: {lengths: [8, 16, 32], samples: 64}
evaluation: {lengths: [8, 16, 33, 63], samples: 128, positions: 4032, fewest: 10}
solved: {validations: 2}
label_smoothing: 0.1
optim: {lr: 0.01, min_lr: 0.0, warmup_steps: 20, steps: 600, weight_decay: 0.0, eps: 1.0e-12}
val_every: 40
log_every: 1
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main(str(folder / "tiny.yaml"), folder / "run")
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_short_task_is_solved_and_the_run_stops(whole: Path) -> None:
    assert {path.name for path in (whole / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "record.json",
        "recipe.yaml",
        "splits.tsv",
        "metrics.csv",
        "curves.png",
        "accuracy.png",
        "accuracy.tsv",
    }
    record = json.loads((whole / "model" / "record.json").read_text())
    assert record["steps"] < 600
    found = [row for row in metrics(whole) if row["name"].startswith("val_")]
    assert [float(row["value"]) for row in found[-6:]] == [1.0] * 6
    assert float(found[0]["value"]) < 0.6
    rows = {row["length"]: row for row in record["results"]}
    assert {n: row["samples"] for n, row in rows.items()} == {8: 128, 16: 128, 33: 122, 63: 64}
    assert rows[8]["accuracy"] == rows[16]["accuracy"] == 1
    assert rows[16]["low"] == pytest.approx(0.97086, abs=1e-4)
    with (whole / "model" / "accuracy.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [int(row["right"]) for row in table] == [row["right"] for row in record["results"]]
    assert "| 16 | 128 | 128 | 128 | 1.0000 | 0.9709 to 1.0000 |" in (whole / "model" / "README.md").read_text()
    assert "validation\t0\t32\t64" in (whole / "splits.tsv").read_text()


def test_the_saved_model_answers(whole: Path) -> None:
    model = from_pretrained(whole / "model")
    with torch.no_grad():
        for answer in range(5):
            tokens = torch.tensor([[0, 1, 2, 5, answer, 3, 4, 0, 1, 2, 3, 5]])
            assert int(model(tokens)[0, -1].argmax()) == answer


def test_chunks_count_what_the_whole_counts(whole: Path) -> None:
    model = from_pretrained(whole / "model")
    fields, _ = read_recipe(whole / "recipe.yaml")
    for task, length in ((fields.data.make(), 200), (SelectiveCopying(6, 3), 61)):
        samples = task.samples("test", torch.arange(100), length)
        tokens = task.tokens(samples, "test", 0, task.positions(length))
        with torch.no_grad():
            logits = model(tokens)[:, -task.memorise :]
        right = int((logits.argmax(dim=-1) == samples.answers).sum())
        assert 0 < right < 100 * task.memorise
        for chunk_tokens in (7, 63, 1000, 1 << 16):
            if chunk_tokens == 7:
                samples_right = int((logits[:5].argmax(dim=-1) == samples.answers[:5]).sum())
                assert measure(model, task, "test", length, 5, 7) == (samples_right, 5 * task.memorise)
            else:
                assert measure(model, task, "test", length, 100, chunk_tokens) == (right, 100 * task.memorise)


@pytest.mark.parametrize(("where", "at"), [("training_step", 50), ("validation_step", 80)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, at: int
) -> None:
    step = getattr(SyntheticTraining, where)

    def killed(self: SyntheticTraining, *args: object) -> object:
        if self.global_step == at:
            raise MemoryError("killed")
        return step(self, *args)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with monkeypatch.context() as patch:
        patch.setattr(SyntheticTraining, where, killed)
        with pytest.raises(MemoryError, match="killed"):
            main(recipe, tmp_path / "run")
    main(recipe, tmp_path / "run")
    torch.set_num_threads(threads)
    assert metrics(tmp_path / "run") == metrics(whole)
    assert (tmp_path / "run" / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()
    expected = from_pretrained(whole / "model").state_dict()
    for name, tensor in from_pretrained(tmp_path / "run" / "model").state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_solved_run_that_was_killed_does_no_further_step(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "splits.tsv", "metrics.csv", "checkpoints/last.ckpt"):
        (tmp_path / "run" / name).write_bytes((whole / name).read_bytes())

    def never(*args: object) -> None:
        raise AssertionError("a step")

    monkeypatch.setattr(SyntheticTraining, "training_step", never)
    main(recipe, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(whole)
    with pytest.raises(ModelError, match="finished run"):
        main(recipe, tmp_path / "run")


def test_stages_are_trained_one_after_the_other_and_go_on_where_they_were_killed(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = "{length: %d, steps: %d, warmup_steps: 1, val_every: 2, validations: 1, accuracy: %s}"
    asked = [
        f"--stages=[{stages % (5, 4, 1.0)}, {stages % (8, 6, 1e-9)}]",
        "--optim.steps=3",
        "--optim.warmup_steps=1",
        "--evaluation.lengths=[8]",
        "--val_every=3",
    ]
    main(recipe, tmp_path / "whole", asked)
    record = json.loads((tmp_path / "whole" / "model" / "record.json").read_text())
    # the first is not solved and takes all of its steps, the second ends at its first validation
    assert [(s["length"], s["steps"], s["planned_steps"]) for s in record["stages"]] == [(5, 4, 4), (8, 2, 6)]
    assert (record["steps"], record["context"]) == (3, 16)
    assert "Trained at length 16, before that at 5 and 8." in (tmp_path / "whole" / "model" / "README.md").read_text()
    step = SyntheticTraining.training_step

    deadly = [(16, 2), (8, 1)]

    def killed(self: SyntheticTraining, *args: Any) -> torch.Tensor:
        if (self.recipe.data.length, self.global_step) == deadly[-1]:
            deadly.pop()
            raise MemoryError("killed")
        return step(self, *args)

    monkeypatch.setattr(SyntheticTraining, "training_step", killed)
    for _ in range(2):
        with pytest.raises(MemoryError, match="killed"):
            main(recipe, tmp_path / "run", asked)
    deadly.append((0, 0))
    main(recipe, tmp_path / "run", asked)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    expected = from_pretrained(tmp_path / "whole" / "model").state_dict()
    for name, tensor in from_pretrained(tmp_path / "run" / "model").state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert "stages" in OWN  # what --force removes


def test_gradients_that_are_not_finite_change_nothing_and_are_told(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loss = synthetic_step.cross_entropy
    calls = []

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(args)
        found = loss(*args, **options)
        return found * float("nan") if len(calls) == 3 else found

    monkeypatch.setattr(synthetic_step, "cross_entropy", broken)
    main(recipe, tmp_path / "run", ["--optim.steps=20", "--val_every=10"])
    assert "step 10: 1 gradients since the last validation were not finite" in caplog.text
    assert caplog.text.count("not finite") == 1
    for tensor in from_pretrained(tmp_path / "run" / "model").state_dict().values():
        assert tensor.isfinite().all()


@pytest.mark.parametrize("fault", ["none", "refused", "wrong"])
def test_a_step_that_cannot_be_replayed_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    backbone = MambaConfig(d_model=8, n_layer=1, d_state=2)
    config = ModelConfig(task="language-model", backbone=backbone, vocab_size=6, tie_embeddings=False)
    step = synthetic_step.AnswerLoss(LanguageModel(config), SelectiveCopying(6, 2), 8, 0.1)
    numbers = torch.arange(4)
    eager = float(step(numbers)[0].detach())

    def record(step: synthetic_step.AnswerLoss, *_: Any) -> Any:
        if fault == "refused":
            raise RuntimeError("operation not permitted when stream is capturing")
        return step if fault == "none" else lambda numbers: [1.1 * each for each in step(numbers)]

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    found = synthetic_step.recorded(step, numbers)
    assert float(found(numbers)[0].detach()) == eager
    assert (found is step) == (fault == "none")
    assert ("eagerly" in caplog.text) == (fault != "none")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--data.length=2", r"data\.length is 2, expected at least 3"),
        ("--data.batch_size=0", r"data\.batch_size is 0, expected at least 1"),
        ("--data.memorise=2", "memorise is 2, expected 1 for induction-heads"),
        ("--data.vocab_size=2", "vocab_size is 2, expected at least 3"),
        ("--validation.lengths=[]", r"lengths is \[\], expected at least one"),
        ("--evaluation.lengths=[2]", r"evaluation\.lengths has 2, expected at least 3"),
        ("--evaluation.samples=0", "samples is 0, expected at least 1"),
        ("--solved.accuracy=1.1", r"solved\.accuracy is 1\.1"),
        ("--solved.validations=-1", r"solved\.validations is -1"),
        ("--label_smoothing=1", "label_smoothing is 1"),
        ("--embedding_std=0", "embedding_std is 0"),
        ("--stages=[{length: 2, steps: 200}]", r"stages\[0\]: data\.length is 2"),
        (
            "--stages=[{length: 8, steps: 9}]",
            r"stages\[0\]: optim\.warmup_steps is 100, expected 0 to",
        ),
        ("--chunk_tokens=0", "chunk_tokens is 0"),
        ("--optim.eps=0", r"optim\.eps is 0"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(
    recipe: str, tmp_path: Path, option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        with pytest.raises(RecipeError, match=said):
            main(recipe, tmp_path / "run", [option])
    except SystemExit:
        # jsonargparse makes nested fields itself, and says so as wrong usage
        pytest.fail(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "length"), [("induction-heads", 256), ("selective-copying", 4096)])
def test_the_papers_recipes(name: str, length: int) -> None:
    from mamba_seq import models_zoo

    fields, _ = read_recipe(models_zoo.recipe_path(name))
    assert isinstance(fields, SyntheticRecipe)
    assert (fields.model.d_model, fields.model.n_layer, fields.data.length, fields.data.vocab_size) == (
        64,
        2,
        length,
        16,
    )
    assert fields.evaluation.lengths == [2**i for i in range(6, 21)]
    assert fields.optim.weight_decay == 0
