"""Every released model loads and predicts, every card and record is whole, every recipe parses."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from mamba_seq import UnknownModelError, models_zoo
from mamba_seq.pipelines.finetune.recipe import read_finetune_recipe
from mamba_seq.pipelines.train.recipe import BaseRecipe, read_recipe

MODELS = models_zoo.names()
RECIPES = models_zoo.recipes()


def test_the_zoo_is_not_empty() -> None:
    assert "mamba-dna.bacteria11" in MODELS
    assert "mamba-dna.bacteria11" in RECIPES


@pytest.mark.parametrize("name", MODELS)
def test_released_model_loads_and_predicts(name: str) -> None:
    model = models_zoo.load(name)
    assert not model.training
    config = model.config
    made = torch.randint(0, 4, (2, 65)) if config.vocab_size else torch.randn(2, 65, config.input_features)
    languages = config.task == "language-model"  # whose labels, if any, are what they can be asked for
    asked = {"labels": torch.tensor([1, 0])} if languages and config.labels else {}
    with torch.inference_mode():
        logits = model(made, **asked)
    assert torch.isfinite(logits).all()
    assert logits.shape[-1] == (config.vocab_size if languages else len(config.labels))


@pytest.mark.parametrize("name", MODELS)
def test_card_and_record_are_whole(name: str) -> None:
    folder = models_zoo.path(name)
    record = models_zoo.describe(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for field in (
        "summary",
        "data_source",
        "data_licence",
        "limits",
        "hardware",
        "minutes",
        "seed",
        "versions",
        "date",
    ):
        assert record[field] not in ("", None), field
    assert f"{record['parameters']:,}" in card
    assert record["data_licence"] in card
    classifies = "accuracy" in record["results"][0]
    measure = "accuracy" if classifies else "bits"
    for row in record["results"]:
        assert row["low"] <= row[measure] <= row["high"]
        assert f"{row[measure]:.{3 if 'codec' in record else 4}f}" in card
    for picture in ("confusion.png", "curves.png") if classifies else ("curves.png",):
        assert picture in card
        assert (folder / picture).stat().st_size > 5_000
    parameters = sum(p.numel() for p in models_zoo.load(name).parameters())
    assert parameters == record["parameters"]


def test_all_weights_together_stay_small() -> None:
    total = sum(file.stat().st_size for file in models_zoo.RELEASED.rglob("*.safetensors"))
    assert total < 35e6


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_parses_and_is_of_its_name(name: str) -> None:
    path = models_zoo.recipe_path(name)
    if "kind: finetune" in path.read_text():
        recipe, text = read_finetune_recipe(path, [])
    else:
        recipe, text = read_recipe(path)
    assert isinstance(recipe, BaseRecipe)
    assert recipe.name == name
    assert "optim:" in text


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(UnknownModelError, match=r"'mamba-dna\.none'; there is .*mamba-dna\.bacteria11"):
        models_zoo.path("mamba-dna.none")
    with pytest.raises(UnknownModelError, match=r"no recipe is named 'soup'; there is .*mamba-dna\.bacteria11"):
        models_zoo.recipe_path("soup")


@pytest.mark.parametrize("name", MODELS)
def test_config_is_plain_json(name: str) -> None:
    config = json.loads((Path(models_zoo.path(name)) / "config.json").read_text(encoding="utf-8"))
    if config.get("input_features") is not None:
        assert (config["features"], config["sample_rate"]) == ("log-mel-40band-12.5ms-3600hz", 16000)
        return
    if "codec" in config and config["codec"] is not None:
        assert (config["codec"], config["sample_rate"]) == ("mu-law-8bit-minmax", 16000)
        return
    assert config["alphabet"] == "dna"
    assert config["labels"] == sorted(config["labels"])
    if config["task"] == "sequence-classification":  # records are read as the test windows were
        assert config.get("max_windows") == models_zoo.describe(name).get("max_windows")


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_commands_of_the_pages_are_recipes(page: str) -> None:
    """What is given on the command line and what the recipe says of the data it was made for go together."""
    text = (Path(__file__).resolve().parents[2] / page).read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^mamba-seq train (.+)$", text, re.MULTILINE)]
    assert len(commands) > 1
    for name, _, run, *overrides in commands:
        assert isinstance(read_recipe(models_zoo.recipe_path(name), overrides)[0], BaseRecipe), run


@pytest.mark.parametrize("name", ["mamba-dna.own", "mamba-dna-lm.own"])
def test_recipes_of_own_genomes_name_none_of_ours(name: str) -> None:
    fields, _ = read_recipe(models_zoo.recipe_path(name))
    data = fields.data
    for field in ("weights", "exclude", "labels", "splits_bed", "splits_file", "test_records", "validation_records"):
        assert not getattr(data, field, None), field
    assert getattr(fields, "taxonomy", None) is None
