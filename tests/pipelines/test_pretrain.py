"""Pretraining on DNA: a saved model at the end, a killed run that goes on, steps in parts, memory foreseen."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq import ModelError, from_pretrained
from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.data_prep.packed_genomes import LOWER
from mamba_seq.heads import LanguageModel
from mamba_seq.heads.losses import cross_entropy
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.likelihood import shifted
from mamba_seq.pipelines.train.language_module import LanguageTraining
from mamba_seq.pipelines.train.memory import plan_memory
from mamba_seq.pipelines.train.recipe import LanguageRecipe, OptimConfig, Recipe, read_recipe
from mamba_seq.pipelines.train.run import main

RECIPE = """
task: language-model
name: mamba-dna-lm.tiny
summary: Reads made-up DNA.
data_source: Drawn by a seed.
data_licence: None needed.
limits: Useless for anything but tests.
model: {{d_model: 8, n_layer: 2, d_state: 4, dropout: 0.1}}
data:
  paths: [{root}]
  cache_folder: {cache}
  length: 128
  length_warmup: [32, 64]
  length_warmup_steps: [3, 3]
  batch_tokens: 512
  validation_bases: 600
  soft_masked_weight: 0.1
optim: {{lr: 0.02, warmup_steps: 2, steps: 12}}
evaluation: {{lengths: [16, 128], bases: 1500, markov_order: 4}}
val_every: 4
log_every: 1
"""


@pytest.fixture(scope="module")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("genomes")
    rng = np.random.default_rng(0)
    for name in "ab":
        period = np.resize(list("ACGGT"), 6000)
        text = "".join(np.where(rng.random(6000) < 0.1, rng.choice(list("ACGTacgtN"), 6000), period))
        (root / f"{name}.fa").write_text(f">{name}\n{text}\n")
    return root


@pytest.fixture
def recipe(genomes: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(root=genomes, cache=genomes / "cache"))
    return str(path)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    recipe: str, genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the length warm-up, in a step of several parts, and again after it."""
    parts = ["--micro_batch_tokens=128"]
    whole = main(recipe, tmp_path / "whole", parts)
    step = LanguageTraining.backward
    for at in (5, 10):

        def killed(self: LanguageTraining, *args: Any, at: int = at) -> None:
            if self.global_step == at:
                raise MemoryError("killed")
            step(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(LanguageTraining, "backward", killed)
            with pytest.raises(MemoryError, match="killed"):
                main(recipe, tmp_path / "run", parts)
        torch.rand(3)
    model = main(recipe, tmp_path / "run", parts)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    expected = from_pretrained(whole).state_dict()
    for name, tensor in from_pretrained(model).state_dict().items():
        assert torch.equal(tensor, expected[name]), name

    rows = metrics(tmp_path / "whole")
    lengths = [float(row["value"]) for row in rows if row["name"] == "length"]
    assert lengths == [32] * 3 + [64] * 3 + [128] * 6
    bits = [float(row["value"]) for row in rows if row["name"] == "bits"]
    assert bits[-1] < bits[0] - 0.2
    assert [row["step"] for row in rows if row["name"] == "val_bits"] == ["3", "7", "11"]

    assert {path.name for path in model.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "record.json",
        "recipe.yaml",
        "splits.tsv",
        "curves.png",
    }
    record, card = json.loads((model / "record.json").read_text()), (model / "README.md").read_text()
    short, long = record["results"]
    assert [row["context"] for row in record["results"]] == [16, 128]
    assert long["low"] <= long["bits"] <= long["high"] < short["bits"]
    assert short["bases"] == long["bases"]
    assert set(long["sources"]) == {genomes.name}
    assert long["sources"][genomes.name] == pytest.approx(long["bits"])
    assert record["baseline"]["sources"][genomes.name] == pytest.approx(record["baseline"]["bits"], rel=1e-4)
    assert f"| 128 | {long['bits']:.4f} |" in card
    assert f"{record['baseline']['bits']:.4f}" in card
    assert 0 < record["baseline"]["bits"] < 2
    config = from_pretrained(model).config
    assert (config.task, config.alphabet, config.context, config.vocab_size) == ("language-model", "dna", 128, 5)


def training(micro: int, soft: float = 1.0) -> LanguageTraining:
    torch.manual_seed(0)
    config = ModelConfig(task="language-model", vocab_size=5, backbone=MambaConfig(d_model=8, n_layer=1, d_state=4))
    made = LanguageTraining(LanguageModel(config), OptimConfig(), 10**9, 0, soft, micro)
    context: Any = type("Plugin", (), {"train_step_context": torch.enable_grad})
    made._trainer = type("Trainer", (), {"precision_plugin": context, "global_step": 1, "global_rank": 0})()
    return made


@pytest.mark.parametrize("micro", [1, 33, 66, 1000])
def test_parts_of_a_step_are_the_step(micro: int) -> None:
    """Gradients of all parts together are those of the weighted loss of the whole batch."""
    tokens = torch.randint(0, 5, (5, 33), generator=torch.Generator().manual_seed(1))
    lower = torch.rand(5, 33, generator=torch.Generator().manual_seed(2)) < 0.3
    batch = (tokens + LOWER * lower).to(torch.uint8)
    made = training(micro, soft=0.25)
    made.backward(made.training_step(batch, 0))
    other = training(1000)
    nats = torch.nn.functional.cross_entropy(
        other.model(shifted(tokens)).flatten(0, 1), tokens.flatten(), reduction="none"
    )
    weights = (torch.where(lower, 0.25, 1.0) * (tokens != 4)).flatten()
    (nats.dot(weights) / weights.sum()).backward()
    for (name, a), b in zip(made.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_batch_of_n_has_no_loss() -> None:
    made = training(1000)
    loss = made.training_step(torch.full((2, 10), 4, dtype=torch.uint8), 0)
    made.backward(loss)
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_without_weights_it_is_the_plain_loss() -> None:
    tokens = torch.randint(0, 4, (3, 20))
    made = training(1000)
    expected = cross_entropy(made.model(shifted(tokens)), tokens)
    torch.testing.assert_close(made.training_step(tokens.to(torch.uint8), 0), expected)


def plan(memory_gb: float, recompute: str = "auto", split: bool = True, tokens: int = 1 << 18) -> Any:
    config = ModelConfig(task="language-model", vocab_size=5, backbone=MambaConfig(d_model=64, n_layer=12))
    recipe: Any = type("R", (), {"precision": "32", "gradient_checkpointing": False})()
    recipe.memory_gb, recipe.recompute = memory_gb, recompute
    return plan_memory(config, recipe, [1 << 14], tokens, split)


def test_memory_chooses_what_is_computed_again() -> None:
    assert plan(100)[:2] == ("auto", 1 << 18)
    assert plan(6)[:2] == ("segments", 1 << 18)
    # parts of a step, before more of it is computed again
    assert plan(20, tokens=1 << 20)[:2] == ("auto", 1 << 18)
    assert plan(6, tokens=1 << 20)[:2] == ("segments", 1 << 19)
    way, tokens, needed = plan(1)
    assert (way, tokens) == ("segments", 1 << 16)
    assert needed < 1e9
    # a classifier's step is not split
    with pytest.raises(
        RecipeError,
        match=r"takes about \S+ GB with recompute 'segments', and 1.00 GB can be used; a batch of 65,536 bases fits",
    ):
        plan(1, split=False)
    with pytest.raises(RecipeError, match="a batch of 16,384 bases fits"):
        plan(1, "nothing", split=False)
    with pytest.raises(RecipeError, match=r"a step of 16,384 bases .* one window of 4,096 bases fits"):
        plan(0.05)
    with pytest.raises(RecipeError, match="take a smaller model"):
        plan(0.001)


def test_a_run_that_does_not_fit_is_refused_before_it_begins(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"and 0.00 GB can be used; .*memory_gb says what can be used"):
        main(recipe, tmp_path / "run", ["--memory_gb=1e-5"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optim.next_token_weight=1", "the next token is all that a language model is trained on"),
        ("--micro_batch_tokens=0", "micro_batch_tokens is 0"),
        ("--evaluation.markov_order=13", "markov_order is 13, expected 0 to 12"),
        ("--memory_gb=0", "memory_gb is 0"),
        ("--gradient_checkpointing=-1", "gradient_checkpointing is -1"),
    ],
)
def test_fields_out_of_range(recipe: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(Path(recipe), [override])


def test_a_task_that_is_none(recipe: str, tmp_path: Path) -> None:
    text = Path(recipe).read_text()
    assert isinstance(read_recipe(Path(recipe))[0], LanguageRecipe)
    Path(recipe).write_text(text.replace("language-model", "poetry"))
    with pytest.raises(RecipeError, match="task 'poetry', expected sequence-classification or language-model"):
        read_recipe(Path(recipe))


def test_contexts(recipe: str) -> None:
    assert read_recipe(Path(recipe), ["--evaluation.lengths=null"])[0].contexts() == [128]
    assert read_recipe(Path(recipe), ["--evaluation.lengths=null", "--data.length=5000", "--data.batch_tokens=5000"])[
        0
    ].contexts() == [1024, 4096, 5000]


def test_another_recipe_is_another_run(recipe: str, tmp_path: Path) -> None:
    main(recipe, tmp_path / "run", max_minutes=1e-6)
    with pytest.raises(ModelError, match="was begun with another recipe"):
        main(recipe, tmp_path / "run", ["--data.length=64"])


CLASSIFIER = """
name: mamba-dna.tiny
summary: x
data_source: x
data_licence: x
model: {{d_model: 8, n_layer: 1, d_state: 4}}
context: 64
equivariant: true
data: {{root: {root}, lengths: [64], length_warmup: [16, 32], length_warmup_steps: [2, 2], batch_tokens: 256}}
optim: {{warmup_steps: 1, steps: 6, next_token_weight: 0.5}}
evaluation: {{lengths: [64], windows_per_class: [4]}}
val_every: 3
log_every: 1
"""


def test_an_equivariant_classifier_with_a_length_warm_up(
    genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mamba_seq.pipelines.train.finish.BASELINE_BASES", 1)
    for name in "ab":
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "g.fa").write_bytes((genomes / f"{name}.fa").read_bytes())
    (tmp_path / "r.yaml").write_text(CLASSIFIER.format(root=tmp_path / "classes"))
    assert isinstance(read_recipe(tmp_path / "r.yaml")[0], Recipe)
    model = from_pretrained(main(str(tmp_path / "r.yaml"), tmp_path / "run"))
    lengths = [float(row["value"]) for row in metrics(tmp_path / "run") if row["name"] == "length"]
    assert lengths == [16, 16, 32, 32, 64, 64]
    assert model.config.complement == [3, 2, 1, 0, 4]
    tokens = torch.randint(0, 4, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), model(3 - tokens.flip(1)), rtol=0, atol=1e-6)
