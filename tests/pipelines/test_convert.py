"""`mamba-seq convert`: formats in and out, what is refused, and that nothing is left half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mamba_seq import (
    LanguageModel,
    MambaConfig,
    ModelConfig,
    SequenceClassifier,
    export_hf,
    export_mamba_ssm,
    from_pretrained,
)
from mamba_seq.interop import folder_kind
from mamba_seq.loading import open_model

BACKBONE = MambaConfig(d_model=12, n_layer=2, d_state=5)
EXPORTS: dict[str, Callable[..., Path]] = {
    "mamba-seq": lambda model, folder, dtype: model.save_pretrained(folder, dtype=dtype),
    "transformers": export_hf,
    "mamba-ssm": export_mamba_ssm,
}


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(ModelConfig(task="language-model", backbone=BACKBONE, vocab_size=7, alphabet="dna")).eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(0, 7, (2, 63), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(tokens)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("to", EXPORTS)
@pytest.mark.parametrize("source", EXPORTS)
def test_every_format_becomes_every_other(
    run: Callable[..., Any], model: LanguageModel, tmp_path: Path, source: str, to: str
) -> None:
    EXPORTS[source](model, tmp_path / "in", torch.float32)
    (tmp_path / "in" / "README.md").write_text("# its card\n")
    out = tmp_path / "new" / "out"
    result = run("convert", tmp_path / "in", out, "--to", to)
    assert result.code == 0, result.err
    assert result.out == f"{out}\n"
    assert f"wrote a {to} model" in result.err
    assert "in float32" in result.err
    assert folder_kind(out) == to
    weights = "pytorch_model.bin" if to == "mamba-ssm" else "model.safetensors"
    assert files(out) == ["README.md", "config.json", weights]
    assert (out / "README.md").read_text() == "# its card\n"
    assert files(tmp_path / "new") == ["out"]
    loaded, _ = open_model(out, "out", unpickle=True)
    assert torch.equal(logits(loaded.eval()), logits(model))


def test_pickled_weights_become_a_folder_that_loads(
    run: Callable[..., Any], model: LanguageModel, tmp_path: Path
) -> None:
    export_mamba_ssm(model, tmp_path / "in")
    (tmp_path / "out").mkdir()
    result = run("convert", tmp_path / "in", tmp_path / "out", "-q")
    assert (result.code, result.err) == (0, "")
    assert torch.equal(logits(from_pretrained(tmp_path / "out")), logits(model))


def test_a_hub_model_is_fetched_with_its_pickles(
    run: Callable[..., Any], model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    export_mamba_ssm(model, tmp_path / "snapshot")
    wanted: list[str] = []

    def snapshot(name: str, allow_patterns: list[str], **how: object) -> str:
        wanted.extend(allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert run("convert", "owner/name", tmp_path / "out").code == 0
    assert "pytorch_model.bin" in wanted
    assert isinstance(from_pretrained(tmp_path / "out"), LanguageModel)


@pytest.mark.parametrize("to", EXPORTS)
def test_weights_keep_their_precision(run: Callable[..., Any], model: LanguageModel, tmp_path: Path, to: str) -> None:
    model.save_pretrained(tmp_path / "in")
    result = run("convert", tmp_path / "in", tmp_path / "out", "--to", to)
    assert "in bfloat16" in result.err
    weights = tmp_path / "out" / ("pytorch_model.bin" if to == "mamba-ssm" else "model.safetensors")
    tensors = torch.load(weights, weights_only=True) if to == "mamba-ssm" else load_file(weights)
    for name, tensor in tensors.items():
        exact = name.endswith((".A_log", ".D", ".dt_bias", ".dt_proj.bias"))
        assert tensor.dtype == (torch.float32 if exact else torch.bfloat16), name


def test_a_folder_with_something_in_it_stays_as_it_is(
    run: Callable[..., Any], model: LanguageModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result = run("convert", tmp_path / "in", tmp_path / "out")
    assert result.code == 1
    assert "is not empty, expected a new or empty folder" in result.err
    assert files(tmp_path / "out") == ["mine.txt"]
    result = run("convert", tmp_path / "in", tmp_path / "out" / "mine.txt")
    assert result.code == 1
    assert "is a file" in result.err


def test_what_is_no_model_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "list" / "model.safetensors").write_text("")
    cases = {
        "empty": "has no config.json",
        "bert": "model_type is 'bert', expected 'mamba'",
        "list": "not a mamba-seq config",
        "nowhere": "not a folder",
    }
    for name, message in cases.items():
        result = run("convert", tmp_path / name, tmp_path / "out")
        assert result.code == 1
        assert message in result.err, name
        assert "Traceback" not in result.err
    assert files(tmp_path) == ["bert", "empty", "list"]


def test_a_classifier_has_no_other_form(run: Callable[..., Any], tmp_path: Path) -> None:
    config = ModelConfig(task="sequence-classification", backbone=BACKBONE, vocab_size=5, labels=["a", "b"])
    SequenceClassifier(config).save_pretrained(tmp_path / "in")
    for to in ("transformers", "mamba-ssm"):
        result = run("convert", tmp_path / "in", tmp_path / "out", "--to", to)
        assert result.code == 1
        assert "expected a language-model" in result.err
    assert files(tmp_path) == ["in"]


def test_a_failed_conversion_leaves_nothing(
    run: Callable[..., Any], model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "in")

    def disk_full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    for to in EXPORTS:
        result = run("convert", tmp_path / "in", tmp_path / "out", "--to", to)
        assert result.code == 1
        assert "No space left on device" in result.err
        assert files(tmp_path) == ["in"]


def test_an_unknown_format_is_wrong_usage(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("convert", tmp_path, tmp_path / "out", "--to", "onnx")
    assert result.code == 2
    assert "'transformers'" in result.err
    assert not (tmp_path / "out").exists()


def test_the_command_is_listed(run: Callable[..., Any]) -> None:
    assert "convert" in run("--help").out
    assert "nothing in it is run" in run("convert", "--help").out
