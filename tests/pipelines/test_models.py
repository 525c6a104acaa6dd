"""What -m may name, the zoo on the command line, and classify with a model of the package's own."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq import MambaConfig, ModelConfig, SequenceClassifier, __version__, models_zoo
from mamba_seq.errors import ModelError, UnknownModelError
from mamba_seq.heads import MODELS
from mamba_seq.pipelines import evidence
from mamba_seq.pipelines.models import load_model

LABELS = ["alpha", "beta"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = MambaConfig(d_model=8, n_layer=2, d_state=4)
    config = ModelConfig(
        task="sequence-classification", backbone=backbone, vocab_size=5, alphabet="dna", labels=LABELS, context=100
    )
    model = SequenceClassifier(config)
    with torch.no_grad():  # an untrained head says the same of everything
        model.head.weight.mul_(20)
        model.embedding.weight.mul_(20)
    return model.save_pretrained(tmp_path_factory.mktemp("model"), card="# tiny\n\nA card.\n")


@pytest.fixture
def zoo(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    released = tmp_path / "released"
    for name in ("tiny.one", "tiny.two"):
        (released / name).mkdir(parents=True)
        for file in saved.iterdir():
            (released / name / file.name).write_bytes(file.read_bytes())
        (released / name / "record.json").write_text(json.dumps({"name": name, "labels": LABELS}))
    monkeypatch.setattr(models_zoo, "RELEASED", released)
    return released


def test_zoo_name_comes_before_a_folder(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.one").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("tiny.one", "cpu").config.labels == LABELS
    assert load_model(str(zoo / "tiny.two"), "cpu").config.context == 100


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("spec", ["tiny.oen", "./nowhere", "nowhere/at/all", ""])
def test_unknown_model_names_those_that_are_known(spec: str) -> None:
    with pytest.raises(UnknownModelError, match=r"no model .*[Tt]he zoo holds tiny\.one, tiny\.two") as error:
        load_model(spec, "cpu")
    assert ("did you mean 'tiny.one'?" in str(error.value)) == (spec == "tiny.oen")


def broken(saved: Path, folder: Path, **changes: Any) -> Path:
    """Copy the model with fields of its config changed; a file whose content is None is left out."""
    folder.mkdir()
    fields = json.loads((saved / "config.json").read_text())
    fields.update({name: value for name, value in changes.items() if name in fields})
    files = {
        "config.json": json.dumps(fields).encode(),
        "model.safetensors": (saved / "model.safetensors").read_bytes(),
    }
    files.update({name.replace("_dot_", "."): value for name, value in changes.items() if "_dot_" in name})
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_dot_safetensors": None}, "has no model.safetensors"),
        ({"config_dot_json": None}, "has no config.json"),
        ({"config_dot_json": b"{"}, "config.json"),
        ({"model_dot_safetensors": b"x" * 40}, "cannot be read as safetensors"),
        ({"labels": ["a", "b", "c"]}, "do not fit its config.json"),
        ({"alphabet": "protein"}, "was edited after model.safetensors had been written: alphabet"),
        ({"task": "language-model", "labels": []}, "do not fit"),
    ],
    ids=["no-weights", "no-config", "bad-config", "bad-weights", "other-labels", "other-alphabet", "other-task"],
)
def test_broken_folder(saved: Path, tmp_path: Path, run: Any, changes: dict[str, Any], words: str) -> None:
    folder = broken(saved, tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=words):
        load_model(str(folder), "cpu")
    (tmp_path / "in.fa").write_text(">a\nACGT\n")
    result = run("classify", tmp_path / "in.fa", "-m", folder)
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert result.err.startswith("mamba-seq: error: ")
    assert result.err.count("\n") == 1


def save(task: str, folder: Path, **fields: Any) -> Path:
    """Save a model of a task that nobody trained."""
    labels = [] if task == "language-model" else LABELS
    config = ModelConfig(
        **{"task": task, "backbone": MambaConfig(d_model=8, n_layer=1), "labels": labels, "alphabet": "dna", **fields}
    )
    return MODELS[task](config).save_pretrained(folder)


@pytest.mark.parametrize("task", [task for task in MODELS if task != "sequence-classification"])
def test_models_of_other_tasks_do_not_classify(run: Any, zoo: Path, tmp_path: Path, task: str) -> None:
    folder = save(task, zoo / "tiny.other", vocab_size=5, context=100)
    words = f"is a {task}, expected sequence-classification; choose another -m (the zoo holds "
    with pytest.raises(ModelError, match=re.escape(words)):
        load_model(str(folder), "cpu")
    (tmp_path / "in.fa").write_text(">a\nACGT\n")
    result = run("classify", tmp_path / "in.fa", "-m", "tiny.other")
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    labels = "NA" if task == "language-model" else "2"
    assert f"tiny.other\t{task}\t{labels}\t100\t" in run("zoo", "list").out


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_features": 3}, "reads numbers (3 at every position), expected 'dna'"),
        ({"vocab_size": 4}, "reads 4 tokens, not the 5 of DNA (ACGTN), expected 'dna'"),
        ({"vocab_size": 5, "alphabet": "protein"}, "reads the alphabet 'protein', expected 'dna'"),
        ({"vocab_size": 5, "alphabet": None}, "reads the alphabet None, expected 'dna'"),
    ],
    ids=["numbers", "other-size", "other-alphabet", "no-alphabet"],
)
def test_models_of_other_input_do_not_classify(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    folder = save("sequence-classification", tmp_path / "model", **fields)
    with pytest.raises(ModelError, match=re.escape(words) + "; choose another -m"):
        load_model(str(folder), "cpu")


def test_list_show_and_export(run: Any, zoo: Path, tmp_path: Path) -> None:
    listed = run("zoo", "list")
    assert [line.split("\t")[:4] for line in listed.out.splitlines()] == [
        ["name", "task", "labels", "context"],
        ["tiny.one", "sequence-classification", "2", "100"],
        ["tiny.two", "sequence-classification", "2", "100"],
    ]
    assert run("zoo", "show", "tiny.one").out == "# tiny\n\nA card.\n"
    assert json.loads(run("zoo", "show", "tiny.two", "--json").out)["name"] == "tiny.two"
    for command in (["show", "tiny.on"], ["export", "tiny.on", tmp_path / "copy"]):
        result = run("zoo", *command)
        assert (result.code, result.out) == (1, "")
        assert "did you mean 'tiny.one'?" in result.err

    copy = tmp_path / "new" / "copy"
    result = run("zoo", "export", "tiny.one", copy)
    assert (result.code, result.out) == (0, f"{copy}\n")
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
        file.name: file.read_bytes() for file in (zoo / "tiny.one").iterdir()
    }
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert load_model(str(copy), "cpu").config.labels == LABELS
    result = run("zoo", "export", "tiny.two", copy)
    assert result.code == 1
    assert "is not empty, expected a new or empty folder" in result.err
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert run("zoo", "export", "tiny.two", tmp_path / "link").code == 0
    assert (tmp_path / "empty" / "config.json").is_file()


def test_every_released_model_is_listed_and_can_be_shown(run: Any) -> None:
    names = [line.split("\t")[0] for line in run("zoo", "list").out.splitlines()[1:]]
    assert names == models_zoo.names()
    for name in names:
        assert name in run("zoo", "show", name).out


@pytest.mark.usefixtures("zoo")
def test_info(run: Any) -> None:
    result = run("info", "--device", "cpu", "--threads", 1)
    assert (result.code, result.err) == (0, "")
    shown = {line[:16].strip(): line[17:] for line in result.out.splitlines()}
    assert shown["mamba-seq"] == __version__
    assert shown["torch"].startswith(torch.__version__.split("+")[0])
    assert shown["threads"] == "1 (torch)"
    assert shown["device"] == "cpu"
    assert shown["scan"].startswith("cpu, ")
    assert shown["zoo"] == "tiny.one, tiny.two"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_device_that_is_not_there(run: Any) -> None:
    result = run("info", "--device", "cuda")
    assert (result.code, result.out) == (1, "")
    assert "torch finds no CUDA GPU here; use --device cpu" in result.err


def test_classify_with_a_saved_model(run: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    lengths = [1, 63, 99, 100, 101, 1000, 2049, 7]
    (tmp_path / "in.fa").write_text(
        "".join(f">r{i}\n{''.join(rng.choices('ACGTN', k=length))}A\n" for i, length in enumerate(lengths))
    )
    first = run("classify", tmp_path / "in.fa", "-m", saved)
    assert first.code == 0, first.err
    assert [row[1] for row in first.rows] == [str(length + 1) for length in lengths]
    expected = np.array([row[5:] for row in first.rows], dtype=float)
    assert expected.std(axis=0).min() > 0.005
    monkeypatch.setattr(evidence, "SHORTEST_PIECE", 33)  # so that windows go through in pieces too
    for how in (["--threads", 1, "--batch-tokens", 1], ["--threads", 2, "--batch-tokens", 300]):
        again = run("classify", tmp_path / "in.fa", "-m", saved, *how)
        np.testing.assert_allclose(np.array([row[5:] for row in again.rows], dtype=float), expected, atol=1e-4)
