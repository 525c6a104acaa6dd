"""The Hugging Face hub, through huggingface_hub: which model an id means, fetching it, and publishing one.

    owner/name              what has been fetched to this machine; the network is not used
    owner/name@revision     the same at a branch, a tag or a commit
    hub:owner/name[@...]    asked from the hub: what is new or missing is fetched; what is here serves when it is away

`MAMBA_SEQ_ONLINE` changes who may use the network: 1 lets every id, 0 none. HF_ENDPOINT, HF_HOME, HF_TOKEN and
HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mamba_seq.errors import HubError, UnknownModelError
from mamba_seq.saving import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

PREFIX = "hub:"
ONLINE = "MAMBA_SEQ_ONLINE"
FILES = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, f"{WEIGHTS_FILE}.index.json", "model-*.safetensors"]
TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
"""What writing text needs besides the model."""
PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


class HubId(NamedTuple):
    """A model on the hub."""

    name: str
    """owner/name."""
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""
    asked: bool = False
    """It began with `hub:`: the network may be used for it."""

    def __str__(self) -> str:
        return f"{PREFIX if self.asked else ''}{self.name}{f'@{self.revision}' if self.revision else ''}"


def parse(model: str, revision: str | None = None) -> HubId:
    """Read a hub id, `[hub:]owner/name[@revision]`.

    Args:
        model: what a person wrote.
        revision: the same as after the @.

    Raises:
        UnknownModelError: when it has not that form, or names two revisions.
    """
    asked = model.startswith(PREFIX)
    name, at, written = model.removeprefix(PREFIX).partition("@")
    wrong_form = name.count("/") != 1 or name.startswith((".", "/", "~")) or (at and not written)
    if wrong_form:
        raise UnknownModelError(
            f"no model {model!r}: it is not {'a hub id' if asked else 'a folder, and not a hub id'} of the form "
            "owner/name or owner/name@revision"
        )
    if written and revision is not None and written != revision:
        raise UnknownModelError(f"model {model!r} names revision {written!r}, and revision is {revision!r}: give one")
    return HubId(name, written or revision, asked)


def may_go_online(asked: bool, online: bool | None = None) -> bool:
    """Tell whether the network may be used.

    Args:
        asked: the id began with `hub:`.
        online: what the caller says; None leaves it to MAMBA_SEQ_ONLINE (1 or 0), and that unset to `asked`.

    Raises:
        HubError: when the variable holds something else.
    """
    if online is not None:
        return online
    value = os.environ.get(ONLINE, "")
    if value not in ("", "0", "1"):
        raise HubError(f"the environment variable {ONLINE} is {value!r}, expected 1 (use the network), 0, or nothing")
    return value == "1" if value else asked


def fetch(model: HubId, online: bool | None = None, pickles: bool = False) -> Path:
    """Return the folder of a hub model on this machine, fetching what it lacks if the network may be used.

    Args:
        model: from `parse`.
        online: see `may_go_online`.
        pickles: a pytorch_model.bin too.

    Raises:
        UnknownModelError: when the hub has no such model or revision, or when it is not here and nobody asked the hub.
        HubError: when it could not be fetched, or not whole.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    uses_network = may_go_online(model.asked, online)
    files = [*FILES, *TEXT_FILES, *(PICKLES if pickles else [])]
    try:
        with _bars_on_terminals():
            folder = snapshot_download(
                model.name, revision=model.revision, allow_patterns=files, local_files_only=not uses_network
            )
    except HFValidationError as error:
        raise UnknownModelError(f"no model {str(model)!r}: it is not a folder, and no hub id ({error})") from error
    except LocalEntryNotFoundError as error:
        if type(error).__name__ == "IncompleteSnapshotError":  # earlier versions of huggingface_hub do not have it
            raise HubError(
                f"model {str(model)!r} has been fetched in part only; {_how(model, uses_network)}"
            ) from error
        if not uses_network:
            raise UnknownModelError(
                f"no model {str(model)!r}: it is not a folder, and has not been fetched from the hub to this machine; "
                f"{_how(model, False)}"
            ) from error
        raise HubError(f"cannot fetch model {str(model)!r}, which is not on this machine: {_cause(error)}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UnknownModelError(
            f"no model {str(model)!r}: the hub has no such {_missing(error)}, or does not show it to you "
            "(a private one needs HF_TOKEN, or 'hf auth login')"
        ) from error
    except (OfflineModeIsEnabled, _transport_error(), OSError) as error:
        raise HubError(f"cannot fetch model {str(model)!r} whole: {_cause(error)}; try again") from error
    return Path(folder)


def push_folder(
    folder: Path, name: str, *, card: str | None = None, private: bool = False, message: str | None = None
) -> str:
    """Publish the files of a folder as a model on the hub, in one commit: all of them, or none.

    Args:
        folder: of a saved model. Files that begin with a dot and folders in it are left out.
        name: owner/name, made if it is not there.
        card: text of README.md, in place of the folder's.
        private: make it one that only its owner sees; one that is there stays as it is.
        message: of the commit.

    Returns:
        The address of the model.

    Raises:
        UnknownModelError: when the name has not that form.
        HubError: when the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    target = parse(name)
    if target.revision is not None:
        raise UnknownModelError(f"cannot publish as {name!r}: owner/name was expected, without a revision")
    if not may_go_online(True):
        raise HubError(f"cannot publish {name!r}: {ONLINE} is 0, which forbids the network")
    files: dict[str, Path | bytes] = {
        file.name: file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")
    }
    if card is not None:
        files[CARD_FILE] = card.encode()
    api = HfApi(library_name="mamba-seq")
    try:
        with _bars_on_terminals():
            address = str(api.create_repo(target.name, private=private, exist_ok=True))
            api.create_commit(
                target.name,
                [CommitOperationAdd(file, content) for file, content in files.items()],
                commit_message=message or "Publish a mamba-seq model",
            )
    except HFValidationError as error:
        raise UnknownModelError(f"cannot publish as {name!r}: {error}") from error
    except (OfflineModeIsEnabled, _transport_error(), OSError, ValueError, RuntimeError) as error:
        raise HubError(
            f"cannot publish {name!r}: {_cause(error)}; publishing needs a token that may write "
            "(HF_TOKEN, or 'hf auth login')"
        ) from error
    return address


def _how(model: HubId, uses_network: bool) -> str:
    """Say how to fetch it."""
    if uses_network:
        return "try again"
    if os.environ.get(ONLINE) == "0":
        return f"{ONLINE} is 0, which forbids the network"
    asking = str(model._replace(asked=True))
    return (
        "the network is used only when asked to, and then its files are fetched: "
        f"say {asking!r}, set {ONLINE}=1, or in Python pass online=True"
    )


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Keep huggingface_hub from drawing progress bars into a log."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or (sys.stderr is not None and sys.stderr.isatty()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _transport_error() -> type[Exception]:
    """Return what the client raises when a connection fails: it was requests, then httpx, then its successor."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def _missing(error: Exception) -> str:
    from huggingface_hub.errors import RevisionNotFoundError

    return "revision" if isinstance(error, RevisionNotFoundError) else "model"


def _cause(error: BaseException) -> str:
    """Return what went wrong in one line: huggingface_hub's messages have several, and name causes in others."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(root).__name__
