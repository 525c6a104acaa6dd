"""Models of the hub: ids, fetching when asked to, publishing, and what is refused; against a hub on localhost."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, close_session, constants, file_download
from safetensors.torch import load_file, save_file

from mamba_seq import HubError, ModelError, SequenceClassifier, UnknownModelError, from_pretrained, hub
from mamba_seq.hub_card import plain_card, with_metadata
from tests.hub_server import Hub, Repo
from tests.mamba_seq.models import small_config

Make = Callable[..., SequenceClassifier]
NAME = "someone/tiny"
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
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.delenv(hub.ONLINE, raising=False)
    yield started
    close_session()
    started.close()


@pytest.fixture
def published(server: Hub, make_classifier: Make, tmp_path: Path) -> Hub:
    """The hub with one model, whose first version is tagged v1 and has the labels in another order."""
    server.repos[NAME] = repo = Repo()
    for labels, refs in ((["x", "y", "z"], ["v1", "main"]), (["b", "a", "c"], ["main"])):
        model = make_classifier()
        model.config.labels = labels
        folder = model.save_pretrained(tmp_path / "saved", card="# tiny\n")
        for ref in refs:
            repo.commit({f.name: f.read_bytes() for f in folder.iterdir()} | {"notes.txt": b"not needed"}, ref)
    return server


def test_nothing_is_fetched_unless_asked(published: Hub) -> None:
    with pytest.raises(UnknownModelError, match=r"say 'hub:someone/tiny', set MAMBA_SEQ_ONLINE=1, or .* online=True"):
        from_pretrained(NAME)
    assert published.requests == []


@pytest.mark.parametrize("how", ["prefix", "argument", "environment"])
def test_what_was_fetched_is_there_without_the_network(
    published: Hub, make_classifier: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv(hub.ONLINE, "1")
    first = from_pretrained(f"hub:{NAME}" if how == "prefix" else NAME, online=True if how == "argument" else None)
    assert not any("notes.txt" in request for request in published.requests)
    monkeypatch.delenv(hub.ONLINE, raising=False)
    published.requests.clear()
    again = from_pretrained(NAME)
    assert published.requests == []
    assert again.config == first.config == make_classifier().config
    tokens = torch.randint(0, 5, (2, 63))
    with torch.no_grad():
        assert torch.equal(first(tokens), again(tokens))
        torch.testing.assert_close(first(tokens), make_classifier()(tokens), rtol=2e-2, atol=2e-2)


def test_a_hub_that_is_away_leaves_what_was_fetched(published: Hub) -> None:
    from_pretrained(f"hub:{NAME}")
    published.close()
    close_session()
    assert from_pretrained(f"hub:{NAME}").config.labels == ["b", "a", "c"]
    with pytest.raises(HubError, match=r"cannot fetch model 'hub:someone/other', which is not on this machine: "):
        from_pretrained("hub:someone/other")


def test_revisions(published: Hub) -> None:
    assert from_pretrained(f"hub:{NAME}@v1").config.labels == ["x", "y", "z"]
    assert from_pretrained(f"hub:{NAME}").config.labels == ["b", "a", "c"]
    assert from_pretrained(NAME, revision="v1").config.labels == ["x", "y", "z"]
    commit = published.repos[NAME].refs["v1"]
    assert from_pretrained(f"{NAME}@{commit}").config.labels == ["x", "y", "z"]
    with pytest.raises(UnknownModelError, match="the hub has no such revision"):
        from_pretrained(f"hub:{NAME}@v9")
    with pytest.raises(UnknownModelError, match="names revision 'v1', and revision is 'v2': give one"):
        from_pretrained(f"{NAME}@v1", revision="v2")


def test_what_is_new_comes_when_the_hub_is_asked(published: Hub, make_classifier: Make, tmp_path: Path) -> None:
    from_pretrained(f"hub:{NAME}")
    model = make_classifier()
    model.config.context = 5
    folder = model.save_pretrained(tmp_path / "newer")
    published.repos[NAME].commit({f.name: f.read_bytes() for f in folder.iterdir()})
    assert from_pretrained(NAME).config.context == 64
    assert from_pretrained(f"hub:{NAME}").config.context == 5
    assert from_pretrained(NAME).config.context == 5


@pytest.mark.usefixtures("server")
def test_a_model_that_the_hub_does_not_have() -> None:
    with pytest.raises(UnknownModelError, match=r"the hub has no such model, or does not show it .* HF_TOKEN"):
        from_pretrained("hub:someone/other")


def test_a_download_that_breaks_off_is_refused_and_made_good(published: Hub) -> None:
    published.cut = {"model.safetensors"}
    with pytest.raises(HubError, match=r"cannot fetch model 'hub:someone/tiny' whole: .*; try again"):
        from_pretrained(f"hub:{NAME}")
    with pytest.raises(HubError, match=r"has been fetched in part only; .*say 'hub:someone/tiny'"):
        from_pretrained(NAME)
    published.cut = set()
    assert from_pretrained(f"hub:{NAME}").config.labels == ["b", "a", "c"]


def test_a_hub_model_without_weights_is_refused(published: Hub) -> None:
    files = published.repos[NAME].commits[published.repos[NAME].refs["main"]]
    del files["model.safetensors"]
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        from_pretrained(f"hub:{NAME}")


@pytest.mark.parametrize("name", ["hub:tiny", "hub:a/b/c", "hub:../x", "owner/name@", "hub:"])
def test_ids_of_another_form(name: str) -> None:
    with pytest.raises(UnknownModelError, match=r"of the form owner/name or owner/name@revision"):
        from_pretrained(name)


def test_the_variable_and_folders(make_classifier: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.ONLINE, "yes")
    with pytest.raises(HubError, match="MAMBA_SEQ_ONLINE is 'yes', expected 1"):
        from_pretrained("hub:owner/name")
    monkeypatch.setenv(hub.ONLINE, "0")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UnknownModelError, match="MAMBA_SEQ_ONLINE is 0, which forbids the network"):
        from_pretrained("hub:owner/name")
    with pytest.raises(HubError, match="MAMBA_SEQ_ONLINE is 0"):
        make_classifier().push_to_hub("owner/name")
    with pytest.raises(UnknownModelError, match="is a folder, which has no revision 'v1'"):
        from_pretrained(make_classifier().save_pretrained(tmp_path / "m"), revision="v1")


@pytest.mark.parametrize("private", [False, True])
def test_publish_and_load(server: Hub, make_classifier: Make, private: bool) -> None:
    model = make_classifier()
    assert model.push_to_hub(NAME, private=private, message="first") == f"{server.address}/{NAME}"
    repo = server.repos[NAME]
    files = repo.commits[repo.refs["main"]]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert (repo.private, repo.messages) == (private, ["first"])
    data = ModelCard(files["README.md"].decode()).data
    assert data.library_name == "mamba-seq"
    assert data.tags == ["mamba", "mamba-seq", "sequence-classification", "dna"]
    assert from_pretrained(f"hub:{NAME}").config == model.config
    model.push_to_hub(NAME)  # one that is there gets a new commit
    assert len(repo.messages) == 2


def test_publishing_that_is_refused(server: Hub, make_classifier: Make) -> None:
    server.forbidden = True
    with pytest.raises(HubError, match=r"cannot publish 'someone/tiny': .*; publishing needs a token that may write"):
        make_classifier().push_to_hub(NAME)
    for name in ("tiny", "someone/tiny@v1", "some one/tiny"):
        with pytest.raises(UnknownModelError):
            make_classifier().push_to_hub(name)
    assert server.repos == {}


def test_metadata_of_a_card_stays_and_is_filled_in() -> None:
    config = small_config("multi-label", alphabet="dna")
    card = "---\nlicense: mit\nlibrary_name: other\ntags: [mine]\nextra: 1\n---\n# Title | x\n\ntext\n"
    new = with_metadata(card, config, licence="apache-2.0", generates_text=True)
    data = ModelCard(new).data.to_dict()
    assert data["tags"] == ["mine", "mamba", "mamba-seq", "multi-label", "dna"]
    assert (data["license"], data["library_name"], data["extra"]) == ("apache-2.0", "other", 1)
    assert data["pipeline_tag"] == "text-generation"
    assert new.endswith("---\n# Title | x\n\ntext\n")
    assert with_metadata(new, config) == new
    plain = plain_card(config, "a/b")
    assert "| labels | b, a, c |" in plain
    assert "license" not in ModelCard(plain).data.to_dict()
    for broken, words in (("[1, 2", "cannot be read"), ("[1, 2]", "is no object")):
        with pytest.raises(ModelError, match=f"metadata that {words}"):
            with_metadata(f"---\n{broken}\n---\ntext\n", config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": ["a", "b", "c"]}, "labels"),
        ({"pooling": "last"}, "pooling"),
        ({"backbone": {"norm_eps": 0.5}}, "backbone.norm_eps"),
        ({"calibration": None, "context": 7, "strand": "forward"}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, str) or value is None else "",
)
def test_a_config_that_was_edited(make_classifier: Make, tmp_path: Path, changes: dict, named: str | None) -> None:  # type: ignore[type-arg]
    """Weights fit it in name and shape, and it would give wrong answers."""
    folder = make_classifier().save_pretrained(tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    fields["backbone"].update(changes.pop("backbone", {}))
    (folder / "config.json").write_text(json.dumps(fields | changes))
    if named is None:
        assert from_pretrained(folder).config.context == 7
        return
    message = rf"config\.json was edited after model\.safetensors had been written: {re.escape(named)}; put it back"
    with pytest.raises(ModelError, match=message):
        from_pretrained(folder)
    # weights that do not say what they were saved with, as those of earlier versions
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    assert from_pretrained(folder) is not None


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.2.0", r"written by mamba-seq 0\.2\.0, which is newer than this .*upgrade"),
        ("12.0", "is newer than"),
        ("new", "mamba_seq_version is 'new', expected a version"),
        ("0.1.9", None),
        ("0.0.3", None),
    ],
)
def test_a_folder_of_a_newer_version(make_classifier: Make, tmp_path: Path, version: str, words: str | None) -> None:
    folder = make_classifier().save_pretrained(tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "mamba_seq_version": version, "unheard_of": words and 1}))
    if words is None:
        with pytest.raises(ModelError, match="does not know: unheard_of"):
            from_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({**fields, "mamba_seq_version": version}))
        assert from_pretrained(folder).config.labels == ["b", "a", "c"]
        return
    with pytest.raises(ModelError, match=words):
        from_pretrained(folder)
