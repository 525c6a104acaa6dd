"""Saved models: a folder of `config.json`, `model.safetensors` and `README.md` (the card).

Weights are stored in bfloat16, except those that must not lose precision (A_log, D, dt_bias), and loaded in float32.
Nothing is unpickled. A hub id works like a folder, through huggingface_hub, and offline once it has been fetched. Mamba
folders of other packages load as well (`mamba_seq.interop`).
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
_HUB_FILES = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, f"{WEIGHTS_FILE}.index.json", "model-*.safetensors"]
_HUB_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


class SavedModel:
    """`save_pretrained` for a module with a `config`."""

    config: ModelConfig

    def save_pretrained(self, folder: str | Path, card: str | None = None, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Write the model to a folder, each file whole or not at all.

        Args:
            folder: made if it is not there.
            card: text of README.md; left as it is when None.
            dtype: type of the stored weights, A_log, D and dt_bias excepted, which stay float32.

        Returns:
            The folder.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: stored(name, tensor, dtype) for name, tensor in cast("nn.Module", self).state_dict().items()}
        write_whole(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        write_whole(folder / CONFIG_FILE, self.config.to_json().encode())
        if card is not None:
            write_whole(folder / CARD_FILE, card.encode())
        return folder


def from_pretrained(model: str | Path, device: str | torch.device = "cpu") -> "SequenceClassifier | LanguageModel":
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


def open_model(
    folder: Path, name: str, unpickle: bool = False
) -> "tuple[SequenceClassifier | LanguageModel, torch.dtype]":
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
    from mamba_seq.heads import MODELS
    from mamba_seq.interop import folder_kind, load_foreign

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
    folder = Path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UnknownModelError(f"no model {name!r}: it is not a folder, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES + (_HUB_PICKLES if pickles else [])))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnknownModelError(
            f"no model {name!r}: it is not a folder, and the hub did not give it ({error})"
        ) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by their names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error


def fit_weights(
    model: nn.Module, tensors: dict[str, Tensor], path: Path, names: dict[str, str] | None = None
) -> torch.dtype:
    """Fill `model` from tensors, refusing any name or shape that does not fit.

    Args:
        model: to fill.
        tensors: by the model's names.
        path: where they came from, for messages.
        names: what the file calls them, for messages; None when it uses the model's names.

    Returns:
        The type that the weights came in, but for those always stored in float32: bfloat16 if all are, else float32.
    """
    wanted, names = model.state_dict(), names or {}
    problems = [f"{names.get(name, name)} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of the model" for name in tensors if name not in wanted]
    problems += [
        f"{names.get(name, name)} is {tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"the weights in {path} do not fit its {CONFIG_FILE}: {'; '.join(problems[:3])}{more}")
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})
    narrow = all(t.dtype == torch.bfloat16 for name, t in tensors.items() if not _always_float32(name))
    return torch.bfloat16 if narrow else torch.float32


def stored(name: str, tensor: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a weight as it is stored: in `dtype`, or in float32 where precision matters."""
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32 if _always_float32(name) else dtype)
    return tensor.detach().cpu().contiguous()


def _always_float32(name: str) -> bool:
    return name.rpartition(".")[2] in FLOAT32_PARAMETERS


def _lacks(folder: Path, file: str) -> str:
    return f"{folder} has no {file}: a saved model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"


def write_whole(path: Path, data: Any) -> None:
    """Write beside the target, then rename: a killed program leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
