"""Saved models: a folder of `config.json`, `model.safetensors` and `README.md` (the card).

Weights are stored in bfloat16, except those that must not lose precision (A_log, D, dt_bias), and loaded in float32. Nothing is
unpickled. A hub id works like a folder, through huggingface_hub, and offline once it has been fetched.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mamba_seq.config import ModelConfig
from mamba_seq.errors import ModelError, UnknownModelError

if TYPE_CHECKING:
    from mamba_seq.heads import LanguageModel, SequenceClassifier

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
FLOAT32_PARAMETERS = ("A_log", "D", "dt_bias")
"""Last parts of the names of parameters that are stored in float32."""


class SavedModel:
    """`save_pretrained` for a module with a `config`."""

    config: ModelConfig

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> Path:
        """Write the model to a folder, each file whole or not at all.

        Args:
            folder: made if it is not there.
            card: text of README.md; left as it is when None.

        Returns:
            The folder.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: stored(name, tensor) for name, tensor in cast(nn.Module, self).state_dict().items()}
        _write_whole(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        _write_whole(folder / CONFIG_FILE, self.config.to_json().encode())
        if card is not None:
            _write_whole(folder / CARD_FILE, card.encode())
        return folder


def from_pretrained(
    model: str | Path, device: str | torch.device = "cpu"
) -> "SequenceClassifier | LanguageModel":
    """Load a saved model in evaluation mode, weights in float32.

    Args:
        model: a folder, or the id of a model on the Hugging Face hub ("owner/name").
        device: where to put it.

    Raises:
        UnknownModelError: when there is neither such a folder nor such a model on the hub.
        ModelError: when the folder lacks a file or its weights do not fit its config.
    """
    from mamba_seq.heads import MODELS

    folder = locate(model)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise ModelError(f"{folder} has no {file}: a saved model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    config = ModelConfig.from_json_file(folder / CONFIG_FILE)
    loaded = MODELS[config.task](config)
    load_weights(loaded, folder / WEIGHTS_FILE)
    return loaded.to(device).eval()


def locate(model: str | Path) -> Path:
    """Return the folder of a saved model, fetching it when it is a hub id that is not on this machine yet."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UnknownModelError(f"no model {name!r}: it is not a folder, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnknownModelError(f"no model {name!r}: it is not a folder, and the hub did not give it ({error})") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file, refusing any name or shape that does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    wanted = model.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of the model" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"the weights in {path} do not fit its {CONFIG_FILE}: {'; '.join(problems[:3])}{more}")
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})


def stored(name: str, tensor: Tensor) -> Tensor:
    """Return a weight as it is stored: bfloat16, or float32 where precision matters."""
    keep = not tensor.is_floating_point() or name.rpartition(".")[2] in FLOAT32_PARAMETERS
    tensor = tensor.detach().cpu()
    return (tensor.float() if keep and tensor.is_floating_point() else tensor if keep else tensor.bfloat16()).contiguous()


def _write_whole(path: Path, data: Any) -> None:
    """Write beside the target, then rename: a killed program leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
