"""Weights of other packages: their files, their names and their shapes."""

import json
import pickle
from pathlib import Path

import torch
from torch import Tensor

from mamba_seq.errors import ModelError
from mamba_seq.saving import WEIGHTS_FILE, read_safetensors

_SUFFIXES = {".conv_weight": ".conv1d.weight", ".conv_bias": ".conv1d.bias", ".dt_bias": ".dt_proj.bias"}


def read_weights(folder: Path, name: str, unpickle: bool) -> tuple[dict[str, Tensor], Path]:
    """Read the weights of a folder: a safetensors file, one in shards, or, only with `unpickle`, a pytorch_model.bin.

    Args:
        folder: where they are.
        name: what the user called the folder, for messages.
        unpickle: allow a pytorch_model.bin; nothing but tensors is taken from it.

    Returns:
        The tensors by their names, and the file that they or their index came from.

    Raises:
        ModelError: when there are none, or they cannot be read.
    """
    for file in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        path = folder / file
        if not path.is_file():
            continue
        if file.startswith("pytorch_model") and not unpickle:
            raise ModelError(
                f"{path} is a pickle, which mamba-seq does not load without being asked to: "
                f"turn it into a safetensors folder with 'mamba-seq convert {name} DIR', and load DIR"
            )
        read = read_pickle if file.startswith("pytorch_model") else read_safetensors
        if not file.endswith(".index.json"):
            return read(path), path
        tensors: dict[str, Tensor] = {}
        for shard in _shards(path):
            tensors |= read(shard)
        return tensors, path
    raise ModelError(
        f"{folder} has no {WEIGHTS_FILE}; if its weights are a pytorch_model.bin, "
        f"turn it into a safetensors folder with 'mamba-seq convert {name} DIR'"
    )


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a state dict that `torch.save` wrote, on the CPU, refusing everything in it but tensors."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise ModelError(f"{path} cannot be read as a state dict of tensors: {reason}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ModelError(f"{path} is not a state dict: expected names with a tensor each")
    return tensors


def foreign_name(name: str, kind: str) -> str:
    """Return the name that a weight of our language model has in "transformers" or in "mamba-ssm"."""
    if name == "embedding.weight":
        return "backbone.embeddings.weight" if kind == "transformers" else "backbone.embedding.weight"
    if name == "output.weight":
        return "lm_head.weight"
    name = name.replace("backbone.norm.", "backbone.norm_f.")
    for ours, theirs in _SUFFIXES.items():
        if name.endswith(ours):
            return name.removesuffix(ours) + theirs
    return name


def own_names(tensors: dict[str, Tensor], names: dict[str, str], tied: bool, path: Path) -> dict[str, Tensor]:
    """Give weights the names and shapes of our language model; those it does not have keep theirs.

    Args:
        tensors: as they are in the file.
        names: for each of our names, the other package's.
        tied: whether the embedding is also the output matrix, so that a stored `lm_head.weight` is its copy.
        path: the file, for messages.
    """
    if not any(name.startswith("backbone.") for name in tensors):  # the stack alone, saved without its head
        tensors = {name if name == "lm_head.weight" else f"backbone.{name}": tensor for name, tensor in tensors.items()}
    ours = {theirs: own for own, theirs in names.items()}
    for spelling in ("backbone.embedding.weight", "backbone.embeddings.weight"):  # conversions took either
        ours[spelling] = "embedding.weight"
    renamed = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    for name, tensor in renamed.items():
        if name.endswith(".conv_weight") and tensor.ndim == 3 and tensor.shape[1] == 1:
            renamed[name] = tensor[:, 0]  # nn.Conv1d keeps (D, 1, K)
    head = renamed.get("lm_head.weight") if tied else None
    if head is not None:
        embedding = renamed.get("embedding.weight")
        if embedding is not None and not torch.equal(head, embedding):
            raise ModelError(
                f"{path} holds an lm_head.weight that differs from the embedding, and its config says that they "
                "are one; to use it, set tie_word_embeddings (mamba_ssm: tie_embeddings) to false in config.json"
            )
        del renamed["lm_head.weight"]
    return renamed


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names, which must stand beside it."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read as an index of weights: {error!r}") from error
    shards = []
    for file in sorted(set(map(str, files))):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise ModelError(f"{index} names {file!r}, which is not there; fetch the folder again, whole")
        shards.append(index.parent / file)
    return shards
