"""Saved models: a folder of `config.json`, `model.safetensors` and `README.md` (the card).

Weights are stored in bfloat16, except those that must not lose precision (A_log, D, dt_bias and their like), and
loaded in float32. Nothing is unpickled. `mamba_seq.loading` finds such a folder and makes the model of it.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mamba_seq.config import ModelConfig
from mamba_seq.errors import ModelError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
FLOAT32_PARAMETERS = ("A_log", "A_imag", "B", "C", "D", "dt_bias")
"""Last parts of the names of parameters that the scans take in float32, and that stay and are stored so."""
_WRITTEN_WITH = "mamba_seq_config"
"""In the weights' metadata: the config that they were saved with."""
_FREE = ("calibration", "taxonomy", "context", "max_windows", "strand", "guidance", "mamba_seq_version")
"""Fields that change nothing of what a model computes, and that `calibrate` and people write into a config later."""


class SavedModel:
    """`save_pretrained` for a module with a `config`."""

    config: ModelConfig

    def save_pretrained(self, folder: str | Path, card: str | None = None, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Write the model to a folder, each file whole or not at all.

        Args:
            folder: made if it is not there.
            card: text of README.md; left as it is when None.
            dtype: type of the stored weights; those of `FLOAT32_PARAMETERS`, and a classifier's head, stay float32.

        Returns:
            The folder.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: stored(name, tensor, dtype) for name, tensor in cast("nn.Module", self).state_dict().items()}
        metadata = {"format": "pt", _WRITTEN_WITH: json.dumps(dataclasses.asdict(self.config))}
        write_whole(folder / WEIGHTS_FILE, _with_metadata(save(tensors), metadata))
        write_whole(folder / CONFIG_FILE, self.config.to_json().encode())
        if card is not None:
            write_whole(folder / CARD_FILE, card.encode())
        return folder

    def push_to_hub(
        self, name: str, *, private: bool = False, card: str | None = None, message: str | None = None
    ) -> str:
        """Publish the model on the Hugging Face hub, all of its files in one commit.

        Args:
            name: owner/name; made if it is not there.
            private: make it one that only its owner sees.
            card: text of README.md; one of what the config says when None.
            message: of the commit.

        Returns:
            The address of the model.

        Raises:
            UnknownModelError: for a name of another form.
            HubError: when the hub refuses, or cannot be reached. It takes a token from HF_TOKEN or 'hf auth login'.
        """
        from mamba_seq.hub import push_folder
        from mamba_seq.hub_card import plain_card

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=plain_card(self.config, name) if card is None else card)
            return push_folder(Path(folder), name, private=private, message=message)


def check_unedited(config: ModelConfig, folder: Path) -> None:
    """Refuse a config whose fields say something else of the weights than when these were saved.

    Names that were swapped, or another way of pooling, fit the weights' shapes and give wrong answers. Weights of
    earlier versions do not say what they were saved with.

    Raises:
        ModelError: naming the fields.
    """
    from safetensors import safe_open

    path = folder / WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(_WRITTEN_WITH)
    if written is None:
        return
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    then = json.loads(written)
    # a field that is newer than the weights has its default, or it was edited in
    known = {name: value for name, value in now.items() if name in then and name not in _FREE}
    changed = [name for name, value in known.items() if name != "backbone" and then[name] != value]
    changed += [
        f"backbone.{name}" for name, value in now["backbone"].items() if then["backbone"].get(name, value) != value
    ]
    if changed:
        raise ModelError(
            f"{folder / CONFIG_FILE} was edited after {WEIGHTS_FILE} had been written: {', '.join(changed)}; put it "
            "back, or load the model, change its config and write both with save_pretrained"
        )


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


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """Put metadata into the header of a safetensors file, in their order: safetensors' own is another at every call."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8 : 8 + size])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # what follows is aligned
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _always_float32(name: str) -> bool:
    # a head is small, and where the evidence of hundreds of windows adds up, roundings of its offsets do so, too
    return name.rpartition(".")[2] in FLOAT32_PARAMETERS or name in ("head.weight", "head.bias")


def write_whole(path: Path, data: Any) -> None:
    """Write beside the target, then rename: a killed program leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
