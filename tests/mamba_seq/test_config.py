"""Configs refuse what makes no sense, and the public surface is what it says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mamba_seq
from mamba_seq import MambaConfig, ModelConfig, ModelError, SaShiMiConfig
from mamba_seq.config import TASKS


@pytest.mark.parametrize(
    ("field", "value"),
    [("d_model", 0), ("n_layer", 0), ("d_state", 0), ("d_conv", 1), ("dt_rank", 0), ("dt_min", 0.0), ("norm", "batch")],
)
def test_bad_sizes_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*expected"):
        MambaConfig(**{"d_model": 8, "n_layer": 1, field: value})


def test_dt_rank_is_a_sixteenth_rounded_up() -> None:
    assert MambaConfig(d_model=40, n_layer=1).rank == 3
    assert MambaConfig(d_model=40, n_layer=1, dt_rank=7).rank == 7


@pytest.mark.parametrize(
    ("labels", "message"), [([], "labels has 0 names"), (["a"], "labels has 1 names"), (["a", "a"], "name twice")]
)
def test_labels_are_checked(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(
            task="sequence-classification",
            backbone=MambaConfig(d_model=8, n_layer=1),
            vocab_size=5,
            labels=labels,
        )


@pytest.mark.parametrize(
    ("task", "labels", "fits"),
    [
        ("sequence-classification", 1, False),
        ("sequence-classification", 2, True),
        ("token-classification", 1, False),
        ("multi-label", 0, False),
        ("multi-label", 1, True),
        ("sequence-regression", 0, False),
        ("sequence-regression", 1, True),
        ("token-regression", 1, True),
        ("ctc", 0, False),
        ("ctc", 1, True),
        ("language-model", 0, True),
    ],
)
def test_how_many_labels_a_task_needs(task: str, labels: int, fits: bool) -> None:
    def make() -> ModelConfig:
        names = [f"label {i}" for i in range(labels)]
        return ModelConfig(task=task, backbone=MambaConfig(d_model=8, n_layer=1), vocab_size=5, labels=names)

    if fits:
        make()
        return
    with pytest.raises(ValueError, match=rf"labels has {labels} names, expected at least \d for {task}"):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "vocab_size is None and input_features None, expected one of them"),
        ({"vocab_size": 5, "input_features": 2}, "vocab_size is 5 and input_features 2, expected one of them"),
        ({"vocab_size": 0}, "vocab_size is 0, expected at least 1"),
        ({"vocab_size": 5, "max_windows": -1}, "max_windows is -1, expected 0 for all, or more, or none"),
        ({"input_features": 0}, "input_features is 0, expected at least 1"),
        ({"input_features": 3}, "vocab_size is None, expected the number of tokens: a language model"),
    ],
)
def test_the_input_is_tokens_or_numbers(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(task="language-model", backbone=MambaConfig(d_model=8, n_layer=1), **fields)


def test_only_a_language_model_has_an_output_matrix_to_untie() -> None:
    for task in TASKS:
        fields = {"labels": ["a", "b"], "vocab_size": 5, "backbone": MambaConfig(d_model=8, n_layer=1)}
        if task == "language-model":
            ModelConfig(task=task, tie_embeddings=False, **fields)
            continue
        with pytest.raises(ValueError, match=f"tie_embeddings is false, expected true for {task}"):
            ModelConfig(task=task, tie_embeddings=False, **fields)


def test_a_model_of_sound_says_codec_and_rate(tmp_path: Path) -> None:
    fields = {"task": "language-model", "vocab_size": 256, "tie_embeddings": False, "labels": ["one"]}
    backbone = SaShiMiConfig(d_model=8, n_layer=[1, 2], pool=[16], ssm=["complex", "selective"], ff=2)
    config = ModelConfig(backbone=backbone, codec="mu-law-8bit-minmax", sample_rate=16000, **fields)
    (tmp_path / "config.json").write_text(config.to_json())
    assert json.loads(config.to_json())["backbone"]["architecture"] == "sashimi"
    assert ModelConfig.from_json_file(tmp_path / "config.json") == config
    for half in ({"codec": "mu-law-8bit-minmax"}, {"sample_rate": 16000}):
        with pytest.raises(ValueError, match=r"codec is .* and sample_rate .*, expected sample_rate with one"):
            ModelConfig(backbone=backbone, **half, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_dropout": 1.0}, "label_dropout is 1.0, expected 0 or more, below 1"),
        ({"label_dropout": 0.1, "labels": []}, "and 0 unless it is a language model with labels"),
        ({"guidance": 2.0}, "guidance is 2.0 with label_dropout 0.0, .* and 1 without label dropout"),
        ({"label_dropout": 0.1, "guidance": -1.0}, "guidance is -1.0 .* expected a number of at least 0"),
    ],
)
def test_guidance_needs_label_dropout(fields: dict[str, Any], message: str) -> None:
    fields = {"labels": ["one"], "vocab_size": 256, **fields}
    with pytest.raises(ValueError, match=message):
        ModelConfig(task="language-model", backbone=MambaConfig(d_model=8, n_layer=1), **fields)


def test_a_config_of_before_is_read(tmp_path: Path) -> None:
    """A stack has no field that says that it is one."""
    old = {
        "task": "language-model",
        "backbone": {"d_model": 8, "n_layer": 2, "ssm": "complex", "d_state": 4, "norm": "layer"},
        "vocab_size": 5,
        "alphabet": "dna",
        "labels": [],
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = ModelConfig.from_json_file(tmp_path / "config.json")
    assert config.backbone == MambaConfig(d_model=8, n_layer=2, ssm="complex", d_state=4, norm="layer")
    assert "architecture" not in json.loads(config.to_json())["backbone"]
    assert (config.label_dropout, config.guidance) == (0, 1)
    for backbone, message in [
        ({**old["backbone"], "pool": [2]}, "has fields that mamba-seq .* does not know: pool"),
        ({"architecture": "tree", "d_model": 8}, "architecture is 'tree', expected 'sashimi'"),
        ({"architecture": "sashimi", "d_model": "8"}, "d_model is '8', expected int"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**old, "backbone": backbone}))
        with pytest.raises(ModelError, match=message):
            ModelConfig.from_json_file(tmp_path / "config.json")


def test_every_task_has_a_model() -> None:
    from mamba_seq.heads import MODELS

    assert tuple(MODELS) == TASKS
    assert all(model.task == task for task, model in MODELS.items())


def test_public_surface() -> None:
    for name in mamba_seq.__all__:
        assert getattr(mamba_seq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mamba_seq.nothing


def test_importing_the_package_imports_no_torch() -> None:
    code = "import mamba_seq, sys; print(sorted({'torch', 'numpy', 'numba', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
