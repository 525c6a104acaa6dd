"""`mamba-seq push`, and -m with what it published; against a hub on localhost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, close_session, constants

from mamba_seq import MambaConfig, ModelConfig, SequenceClassifier
from tests.hub_server import Hub

# huggingface_hub's own upload, in the words of the HTTP client that it uses
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    started = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", started.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", started.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.delenv("MAMBA_SEQ_ONLINE", raising=False)
    yield started
    close_session()
    started.close()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    backbone = MambaConfig(d_model=8, n_layer=1, d_state=4)
    config = ModelConfig(
        task="sequence-classification", backbone=backbone, vocab_size=5, alphabet="dna", labels=["a", "b"], context=100
    )
    folder = SequenceClassifier(config).save_pretrained(tmp_path / "model", card="---\nlicense: mit\n---\n# Mine\n")
    (folder / "record.json").write_text("{}")
    (folder / ".hidden").touch()
    (folder / "more").mkdir()
    return folder


def test_push_and_classify_with_it(run: Any, server: Hub, saved: Path, tmp_path: Path) -> None:
    result = run("push", saved, "someone/tiny", "--private", "--message", "words")
    assert (result.code, result.out, result.err) == (0, f"{server.address}/someone/tiny\n", "")
    repo = server.repos["someone/tiny"]
    files = repo.commits[repo.refs["main"]]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "record.json"]
    assert (repo.private, repo.messages) == (True, ["words"])
    card = ModelCard(files["README.md"].decode())
    assert card.data.to_dict() == {
        "license": "mit",
        "library_name": "mamba-seq",
        "tags": ["mamba", "mamba-seq", "sequence-classification", "dna"],
    }
    assert card.text.lstrip() == "# Mine\n"
    assert (saved / "README.md").read_text() == "---\nlicense: mit\n---\n# Mine\n"

    (tmp_path / "in.fa").write_text(">a\nACGTTGCA\n")
    refused = run("classify", tmp_path / "in.fa", "-m", "someone/tiny")
    assert (refused.code, refused.out) == (1, "")
    assert "say 'hub:someone/tiny', set MAMBA_SEQ_ONLINE=1" in refused.err
    first = run("classify", tmp_path / "in.fa", "-m", "hub:someone/tiny")
    assert first.code == 0, first.err
    server.requests.clear()
    assert run("classify", tmp_path / "in.fa", "-m", "someone/tiny").out == first.out
    assert server.requests == []


def test_license_of_a_model_without_a_card(run: Any, server: Hub, saved: Path) -> None:
    (saved / "README.md").unlink()
    assert run("push", saved, "someone/tiny", "--license", "cc0-1.0").code == 0
    repo = server.repos["someone/tiny"]
    card = ModelCard(repo.commits[repo.refs["main"]]["README.md"].decode())
    assert card.data.license == "cc0-1.0"
    assert '"hub:someone/tiny"' in card.text


def test_what_does_not_load_is_not_published(run: Any, server: Hub, saved: Path) -> None:
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:-40])
    for arguments, words in (
        ((saved, "someone/tiny"), "cannot be read as safetensors"),
        ((saved, "tiny"), "of the form owner/name"),
        (("nowhere", "someone/tiny"), "no model 'nowhere'"),
    ):
        result = run("push", *arguments)
        assert (result.code, result.out) == (1, "")
        assert words in result.err
    assert server.requests == []
