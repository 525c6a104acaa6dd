"""From a name to a model: a saved-model folder, one of transformers or mamba_ssm, or an id on the Hugging Face hub.

A hub id works like a folder once it has been fetched, which happens only when it was asked for (`mamba_seq.hub`).
Nothing is unpickled unless the caller says so: that is for `mamba-seq convert`.
"""

from pathlib import Path

import torch

from mamba_seq import hub
from mamba_seq.config import ModelConfig
from mamba_seq.errors import ModelError, UnknownModelError
from mamba_seq.heads import MODELS, Model
from mamba_seq.interop import folder_kind, load_foreign
from mamba_seq.saving import CONFIG_FILE, WEIGHTS_FILE, check_unedited, fit_weights, read_safetensors


def from_pretrained(
    model: str | Path,
    device: str | torch.device = "cpu",
    *,
    revision: str | None = None,
    online: bool | None = None,
) -> Model:
    """Load a saved model in evaluation mode, weights in float32.

    Args:
        model: a folder, or the id of a model on the Hugging Face hub: "owner/name", "owner/name@revision", or with
            "hub:" in front, which asks the hub. Mamba language models of transformers and of mamba_ssm become a
            `LanguageModel` if their weights are safetensors; pickles are left to `mamba-seq convert`.
        device: where to put it.
        revision: of a hub model, a branch, a tag or a commit; None is its main branch.
        online: fetch from the hub what is new or missing (True), or take what has been fetched before (False). None
            leaves it to the environment variable MAMBA_SEQ_ONLINE (1 or 0), and without one to "hub:".

    Raises:
        UnknownModelError: when there is neither such a folder nor such a model on the hub, or it is not on this machine
            and the hub was not asked.
        HubError: when a hub model could not be fetched whole.
        ModelError: when the folder lacks a file, a newer version wrote it, or its weights do not fit its config.
    """
    loaded, _ = open_model(locate(model, revision=revision, online=online), name=str(model))
    return loaded.to(device).eval()


def open_model(folder: Path, name: str, unpickle: bool = False) -> tuple[Model, torch.dtype]:
    """Load the model of a folder, ours or another package's, on the CPU and in float32.

    Args:
        folder: of the model.
        name: what the user called it, for messages.
        unpickle: also read another package's pytorch_model.bin, tensors only.

    Returns:
        The model, and the type that its weights are stored in, as `save_pretrained` takes it.

    Raises:
        ModelError: when the folder lacks a file or its weights do not fit its config.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(_lacks(folder, CONFIG_FILE))
    kind = folder_kind(folder)
    if kind != "mamba-seq":
        return load_foreign(folder, kind, name, unpickle)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(_lacks(folder, WEIGHTS_FILE))
    config = ModelConfig.from_json_file(folder / CONFIG_FILE)
    loaded = MODELS[config.task](config)
    dtype = fit_weights(loaded, read_safetensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    check_unedited(config, folder)
    return loaded, dtype


def locate(
    model: str | Path, pickles: bool = False, *, revision: str | None = None, online: bool | None = None
) -> Path:
    """Return the folder of a saved model, fetching a hub model if the network may be used.

    Args:
        model: a folder, or a hub id.
        pickles: fetch a pytorch_model.bin too.
        revision: as for `from_pretrained`.
        online: as for `from_pretrained`.

    Raises:
        UnknownModelError: when it is neither.
        HubError: when it could not be fetched whole.
    """
    folder, name = Path(model), str(model)
    if not name.startswith(hub.PREFIX):
        if name and folder.is_dir():  # Path("") is the folder one is in
            if revision is not None:
                raise UnknownModelError(f"{name} is a folder, which has no revision {revision!r}: leave it out")
            return folder
        if name and folder.exists():
            raise UnknownModelError(f"no model {name!r}: it is a file, expected the folder of a saved model")
    return hub.fetch(hub.parse(name, revision), online, pickles)


def _lacks(folder: Path, file: str) -> str:
    return f"{folder} has no {file}: a saved model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
