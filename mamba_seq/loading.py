"""From a name to a model: a saved-model folder, one of transformers or mamba_ssm, or an id on the Hugging Face hub.

A hub id works like a folder, through huggingface_hub, and offline once it has been fetched. Nothing is unpickled unless
the caller says so: that is for `mamba-seq convert`.
"""

from pathlib import Path

import torch

from mamba_seq.config import ModelConfig
from mamba_seq.errors import ModelError, UnknownModelError
from mamba_seq.heads import MODELS, Model
from mamba_seq.interop import folder_kind, load_foreign
from mamba_seq.saving import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, fit_weights, read_safetensors

_HUB_FILES = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, f"{WEIGHTS_FILE}.index.json", "model-*.safetensors"]
_HUB_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


def from_pretrained(model: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a saved model in evaluation mode, weights in float32.

    Args:
        model: a folder, or the id of a model on the Hugging Face hub ("owner/name"). Mamba language models of
            transformers and of mamba_ssm become a `LanguageModel` if their weights are safetensors; pickles are left
            to `mamba-seq convert`.
        device: where to put it.

    Raises:
        UnknownModelError: when there is neither such a folder nor such a model on the hub.
        ModelError: when the folder lacks a file or its weights do not fit its config.
    """
    loaded, _ = open_model(locate(model), name=str(model))
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
    return loaded, fit_weights(loaded, read_safetensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)


def locate(model: str | Path, pickles: bool = False) -> Path:
    """Return the folder of a saved model, fetching it when it is a hub id that is not on this machine yet.

    Args:
        model: a folder, or a hub id.
        pickles: fetch a pytorch_model.bin too.

    Raises:
        UnknownModelError: when it is neither.
    """
    folder, name = Path(model), str(model)
    if name and folder.is_dir():  # Path("") is the folder one is in
        return folder
    if name and folder.exists():
        raise UnknownModelError(f"no model {name!r}: it is a file, expected the folder of a saved model")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UnknownModelError(f"no model {name!r}: it is not a folder, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES + (_HUB_PICKLES if pickles else [])))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UnknownModelError(
            f"no model {name!r}: it is not a folder, and the hub did not give it ({error})"
        ) from error


def _lacks(folder: Path, file: str) -> str:
    return f"{folder} has no {file}: a saved model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
