"""A classifier that starts from a language model: its embedding and blocks under a new head, or a reason why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mamba_seq import ModelError, UnknownModelError, from_pretrained, models_zoo
from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.data_prep.dna import GenomeData
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.heads import MODELS, LanguageModel, SequenceClassifier
from mamba_seq.pipelines.train.recipe import read_recipe
from mamba_seq.pipelines.train.run import main
from mamba_seq.pipelines.train.starting import begin_with, described, starting_weights

RECIPE = """
name: mamba-dna.tiny
summary: Tells two made-up species apart.
data_source: Drawn by a seed.
data_licence: None needed.
model: {{d_model: 8, n_layer: 2, d_state: 4}}
context: 64
data: {{root: {root}, lengths: [32], batch_tokens: 256, validation_windows: 4}}
optim: {{lr: 1.0e-30, min_lr: 0.0, warmup_steps: 1, steps: 2}}
evaluation: {{lengths: [60], windows_per_class: [4], calibration_windows: 1}}
"""


def language_config(**fields: object) -> ModelConfig:
    blocks: dict[str, object] = {"d_model": 8, "n_layer": 2, "d_state": 4, "dropout": 0.2, "residual_in_fp32": False}
    rest: dict[str, object] = {"vocab_size": 5, "alphabet": "dna", "context": 4096}
    for name, value in fields.items():
        (blocks if name in blocks else rest)[name] = value
    return ModelConfig(task="language-model", backbone=MambaConfig(**blocks), **rest)  # type: ignore[arg-type]


def classifier_config(**fields: object) -> ModelConfig:
    fields = {"labels": ["a", "b"], "pooling": "last", "complement": [3, 2, 1, 0, 4]} | fields
    return ModelConfig(
        task="sequence-classification",
        backbone=MambaConfig(d_model=8, n_layer=2, d_state=4),
        vocab_size=5,
        alphabet="dna",
        **fields,  # type: ignore[arg-type]
    )


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    return LanguageModel(language_config()).save_pretrained(tmp_path / "lm")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for label, letters in (("one", "ACGT"), ("two", "AACT")):
        (tmp_path / "genomes" / label).mkdir(parents=True)
        text = "".join(rng.choice(list(letters), 3000))
        (tmp_path / "genomes" / label / "g.fa").write_text(f">r\n{text}\n")
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(root=tmp_path / "genomes"))
    return str(path)


def test_blocks_and_embedding_are_taken_and_the_head_is_new(language_model: Path) -> None:
    torch.manual_seed(0)
    made, untouched = SequenceClassifier(classifier_config()), SequenceClassifier(classifier_config())
    untouched.load_state_dict(made.state_dict())
    assert begin_with(made, starting_weights(str(language_model), made.config)) == ["head"]
    theirs, head = from_pretrained(language_model).state_dict(), untouched.state_dict()
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, head[name] if name.startswith("head.") else theirs[name]), name


@pytest.mark.parametrize("task", ["multi-label", "token-classification"])
def test_every_other_task_may_start_from_one(language_model: Path, task: str) -> None:
    config = ModelConfig(
        task=task,  # type: ignore[arg-type]
        backbone=MambaConfig(d_model=8, n_layer=2, d_state=4),
        vocab_size=5,
        alphabet="dna",
        labels=["a", "b"],
    )
    assert begin_with(MODELS[task](config), starting_weights(str(language_model), config)) == ["head"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"d_model": 16}, "d_model 16 instead of 8"),
        ({"n_layer": 3}, "n_layer 3 instead of 2"),
        ({"d_state": 8}, "d_state 8 instead of 4"),
        ({"vocab_size": 6}, "vocab_size 6 instead of 5"),
        ({"alphabet": "rna"}, "alphabet rna instead of dna"),
        ({"d_model": 16, "n_layer": 3}, "d_model 16 instead of 8, n_layer 3 instead of 2"),
    ],
)
def test_other_sizes_are_refused_with_the_reason(tmp_path: Path, fields: dict[str, object], reason: str) -> None:
    folder = LanguageModel(language_config(**fields)).save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match=f"is another model than the recipe's: {reason}; change one of the two"):
        starting_weights(str(folder), classifier_config())


def test_what_starts_nothing(tmp_path: Path, language_model: Path) -> None:
    with pytest.raises(UnknownModelError, match="nothing-of-the-kind"):
        starting_weights("nothing-of-the-kind", classifier_config())
    # a language model does not start from a classifier, whose blocks were trained for something else
    folder = SequenceClassifier(classifier_config()).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ModelError, match="task sequence-classification instead of language-model"):
        starting_weights(str(folder), language_config())
    with pytest.raises(ModelError, match=r"labels \['a', 'b'\] instead of \['a', 'c'\]"):
        starting_weights(str(folder), classifier_config(labels=["a", "c"]))


def test_a_run_starts_from_a_language_model_and_its_card_says_so(
    recipe: str, language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mamba_seq.pipelines.train.finish.BASELINE_BASES", 1)
    start = f"--start_from={language_model}"
    with pytest.raises(ModelError, match="n_layer 2 instead of 3"):
        main(recipe, tmp_path / "run", [start, "--model.n_layer=3"])
    assert not (tmp_path / "run").exists()
    folder = main(recipe, tmp_path / "run", [start, "--refit_windows=20", "--data.mutation_letters=own"])
    theirs, ours = from_pretrained(language_model).state_dict(), from_pretrained(folder).state_dict()
    for name, tensor in theirs.items():
        # Adam moves a weight that is 0 by the learning rate
        assert torch.allclose(ours[name], tensor, rtol=0, atol=1e-20), name
    fitted = json.loads((tmp_path / "run" / "refit.json").read_text())
    assert torch.equal(ours["head.bias"], torch.tensor(fitted["bias"])), "not rounded to 16 bits"
    card = (folder / "README.md").read_text()
    assert "| started from | the language model of an earlier run: its embedding and blocks; a new head |" in card
    assert "| head | fitted again at the end on windows as they are read, strength " in card
    assert "mutated (to letters of its own), dropout" in card
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (folder / "record.json").read_text()


def test_a_zoo_name_is_what_the_card_says(
    recipe: str, language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_zoo, "RELEASED", tmp_path / "zoo")
    (tmp_path / "zoo").mkdir()
    zoo = language_model.rename(tmp_path / "zoo" / "mamba-dna-lm.tiny")
    assert set(starting_weights("mamba-dna-lm.tiny", classifier_config())) >= {"embedding.weight"}
    (zoo / "record.json").write_text(json.dumps({"name": "mamba-dna-lm.tiny"}))
    said = described("mamba-dna-lm.tiny", "sequence-classification")
    assert said == "the language model `mamba-dna-lm.tiny`: its embedding and blocks; a new head"
    assert described("mamba-dna-lm.tiny", "language-model") == "an earlier run's weights (`mamba-dna-lm.tiny`)"
    assert described(None, "language-model") is None


def test_classes_and_lengths_of_validation_windows_are_chosen(recipe: str, tmp_path: Path) -> None:
    fields, _ = read_recipe(Path(recipe), ["--data.validation_lengths=[16]", "--data.lengths=[32,2000]"])
    data = GenomeData(fields.data)
    data.setup()
    loaders = data.val_dataloader()  # validation regions of 150 bases, and no window of 2,000 asked of them
    assert [next(iter(loader))[0].shape[1] for loader in loaders] == [16]
    (tmp_path / "genomes" / "three").mkdir()
    (tmp_path / "genomes" / "three" / "g.fa").write_text(">r\n" + "ACGT" * 500 + "\n")
    fields.data.labels = ["two", "three"]
    chosen = GenomeData(fields.data)
    chosen.setup()
    assert chosen.labels == ["three", "two"]
    fields.data.labels = ["two", "four"]
    with pytest.raises(TooFewData, match=r"no class folder 'four'; it has one, three, two"):
        GenomeData(fields.data).setup()
