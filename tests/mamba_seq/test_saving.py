"""Saved-model folders: what is written, what comes back, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mamba_seq import LanguageModel, ModelError, SequenceClassifier, UnknownModelError, from_pretrained
from tests.mamba_seq.layouts import KINDS
from tests.mamba_seq.models import inputs_of_every_task, small_model, some_input

Make = Callable[..., SequenceClassifier]


def test_round_trip_keeps_config_and_predictions(make_classifier: Make, tmp_path: Path) -> None:
    model = make_classifier()
    folder = model.save_pretrained(tmp_path / "m", card="# card\n")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = from_pretrained(folder)
    assert again.config == model.config
    assert again.config.labels == ["b", "a", "c"]
    assert not again.training
    tokens = torch.randint(0, 5, (2, 33))
    with torch.no_grad():
        torch.testing.assert_close(again(tokens), model(tokens), rtol=2e-2, atol=2e-2)
        # what was stored once is stored exactly
        twice = from_pretrained(again.save_pretrained(tmp_path / "m2"))
        assert torch.equal(twice(tokens), again(tokens))


def test_language_model_round_trip(language_model: LanguageModel, tmp_path: Path) -> None:
    again = from_pretrained(language_model.save_pretrained(tmp_path))
    assert isinstance(again, LanguageModel)


@pytest.mark.parametrize("ssm", KINDS)
@pytest.mark.parametrize(("task", "numbers"), inputs_of_every_task())
def test_round_trip_of_every_task_and_kind(task: str, numbers: bool, ssm: str, tmp_path: Path) -> None:
    model = small_model(task, numbers, ssm=ssm)
    again = from_pretrained(model.save_pretrained(tmp_path, dtype=torch.float32))
    assert type(again) is type(model)
    assert again.config == model.config
    inputs = some_input(model, 2, 21)
    with torch.no_grad():
        assert torch.equal(again(inputs), model(inputs))
    stored = load_file(model.save_pretrained(tmp_path) / "model.safetensors")
    for name, tensor in stored.items():
        exact = name.rpartition(".")[2] in ("A_log", "A_imag", "B", "C", "D", "dt_bias") or name.startswith("head.")
        assert tensor.dtype == (torch.float32 if exact else torch.bfloat16), name


def test_a_folder_of_an_earlier_version_loads(make_classifier: Make, tmp_path: Path) -> None:
    """Fields that it does not have take what was there before them."""
    model = make_classifier()
    folder = model.save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["input_features"], config["backbone"]["ssm"]
    (folder / "config.json").write_text(json.dumps(config))
    assert from_pretrained(folder).config == model.config


def test_stored_types(make_classifier: Make, tmp_path: Path) -> None:
    stored = load_file(make_classifier().save_pretrained(tmp_path) / "model.safetensors")
    for name, tensor in stored.items():
        exact = name.rpartition(".")[2] in ("A_log", "D", "dt_bias") or name in ("head.weight", "head.bias")
        assert tensor.dtype == (torch.float32 if exact else torch.bfloat16), name
    assert all(p.dtype == torch.float32 for p in from_pretrained(tmp_path).parameters())


def test_the_same_model_gives_the_same_bytes(make_classifier: Make, tmp_path: Path) -> None:
    paths = [make_classifier().save_pretrained(tmp_path / str(i)) / "model.safetensors" for i in range(8)]
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_a_folder_without_weights_is_refused(make_classifier: Make, tmp_path: Path) -> None:
    make_classifier().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        from_pretrained(tmp_path)


def test_weights_that_do_not_fit_are_refused(make_classifier: Make, tmp_path: Path) -> None:
    make_classifier().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["d_state"] = 8
    config["backbone"]["n_layer"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"do not fit its config\.json: .*layers\.1.* is not part of the model.*more"):
        from_pretrained(tmp_path)


def test_missing_and_misshapen_weights_are_named(make_classifier: Make, tmp_path: Path) -> None:
    make_classifier().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("head.bias")
    tensors["head.weight"] = tensors["head.weight"][:, :-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"head\.bias is missing; head\.weight is \(3, 11\), expected \(3, 12\)"):
        from_pretrained(tmp_path)


def test_damaged_weights_are_refused(make_classifier: Make, tmp_path: Path) -> None:
    make_classifier().save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "cannot be read"),
        ("[]", "not a mamba-seq config"),
        ('{"backbone": {"d_model": 4}}', "does not describe a model"),
        ('{"backbone": {"d_model": 4, "n_layer": 1, "widths": 3}}', "does not know: widths"),
        ('{"task": "language-model", "vocab_size": 4, "backbone": {"d_model": "4", "n_layer": 1}}', "d_model is '4'"),
        (
            '{"task": "language-model", "vocab_size": 4.5, "backbone": {"d_model": 4, "n_layer": 1}}',
            "vocab_size is 4.5",
        ),
        ('{"task": "cook", "vocab_size": 4, "backbone": {"d_model": 4, "n_layer": 1}}', "task is 'cook'"),
    ],
)
def test_a_config_that_is_none_is_refused(make_classifier: Make, tmp_path: Path, text: str, message: str) -> None:
    make_classifier().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "./owner/name", "a/b/c"])
def test_unknown_models_are_refused(name: str) -> None:
    with pytest.raises(UnknownModelError, match="not a folder"):
        from_pretrained(name)


@pytest.mark.parametrize("name", ["my model/x", "a--b/..", "owner/"])
def test_names_that_no_hub_takes_are_unknown_models(name: str) -> None:
    """They never reach the network: huggingface_hub refuses them itself, in a type of its own."""
    with pytest.raises(UnknownModelError, match="no hub id"):
        from_pretrained(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnknownModelError, match="it is a file, expected the folder"):
        from_pretrained(tmp_path / "model.safetensors")


def test_a_failed_save_leaves_the_old_files(
    make_classifier: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_classifier().save_pretrained(tmp_path)
    before = (folder / "model.safetensors").read_bytes()

    def disk_full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        make_classifier("max").save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
