"""The published classifier's checkpoint made a folder of safetensors; nothing of it is run.

The file (sc09_classifier/resnext.pth of the release of SaShiMi) is a pickled `DataParallel` module. torch reads it with
`weights_only=True` when the modules' classes are allowed; here each of them stands for a class that holds what it is
given and does nothing, and the tensors are gathered from those.
"""

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamba_seq.errors import ModelError
from mamba_seq.pipelines.output import check_new_folder, new_folder
from mamba_seq.pipelines.speech.sc09 import SC09ResNeXt
from mamba_seq.saving import CONFIG_FILE, WEIGHTS_FILE, read_safetensors

ARCHITECTURE = "sc09-resnext29-8x64"
"""What config.json says of such a folder."""
_NAME = re.compile(r"GLOBAL ([\w.]+) was not an allowed global|Unsupported global: GLOBAL ([\w.]+)")
_MODULES = re.compile(r"(torch\.nn\.(modules|parallel)\.[\w.]+|[\w.]*resnext\.(CifarResNeXt|ResNeXtBottleneck))")


def convert_sc09(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write the weights of a published checkpoint, a module or a dict of tensors, as a folder that is safe to load.

    Raises:
        ModelError: The file cannot be read without running what is in it, or is not this network.
        OutputError: The folder is a file, or not empty.
    """
    from safetensors.torch import save_file

    path, target = Path(checkpoint), Path(folder)
    check_new_folder(target)
    tensors = {name.removeprefix("module."): tensor for name, tensor in _tensors(path).items()}
    network = SC09ResNeXt()
    fit(network, tensors, path)
    with new_folder(target) as written:
        written.mkdir()
        weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, written / WEIGHTS_FILE, metadata={"format": "pt"})
        (written / CONFIG_FILE).write_text(json.dumps({"architecture": ARCHITECTURE}, indent=2) + "\n")
    return target


def load_sc09(folder: str | Path) -> SC09ResNeXt:
    """Load what `convert_sc09` wrote, in evaluation mode.

    Raises:
        ModelError: The folder lacks a file, or its weights are of another network.
    """
    path = Path(folder) / WEIGHTS_FILE
    network = SC09ResNeXt()
    fit(network, read_safetensors(path), path)
    return network.eval()


def fit(network: SC09ResNeXt, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill the network, refusing any name or shape that is not its own."""
    wanted = network.state_dict()
    # older torch did not count batches
    tensors = {**{n: t for n, t in wanted.items() if n.endswith("num_batches_tracked")}, **tensors}
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of the network" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"the weights in {path} are not of SC09's ResNeXt: {'; '.join(problems[:3])}{more}")
    network.load_state_dict(tensors)


class _Inert:
    """Stands for a module of the file: keeps its attributes."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names in the module."""
    if not path.is_file():
        raise ModelError(f"{path} is no file, expected the published checkpoint of the classifier, resnext.pth")
    allowed: dict[str, type] = {}
    while True:
        try:
            stubs: list[Any] = [(stub, name) for name, stub in allowed.items()]
            with torch.serialization.safe_globals(stubs), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol")
                loaded = torch.load(path, map_location="cpu", weights_only=True)
            break
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
            found = _NAME.search(str(error))
            name = (found[1] or found[2]) if found is not None else None
            if name is None or name in allowed or not _MODULES.fullmatch(name):
                raise ModelError(
                    f"{path} cannot be read as a checkpoint of tensors and torch's modules: "
                    f"{(str(error).splitlines() or [repr(error)])[0]}"
                    + (f" (it asks for {name})" if name is not None else "")
                ) from error
            allowed[name] = type("Inert", (_Inert,), {})
    if isinstance(loaded, _Inert):
        return dict(_walk(loaded, ""))
    if isinstance(loaded, dict):
        inner = loaded.get("state_dict", loaded)
        if isinstance(inner, dict) and all(isinstance(each, Tensor) for each in inner.values()):
            return inner
    raise ModelError(f"{path} holds neither a module nor a dict of tensors, expected the classifier's checkpoint")


def _walk(module: _Inert, prefix: str) -> Any:
    for kind in ("_parameters", "_buffers"):
        for name, tensor in getattr(module, kind, {}).items():
            if tensor is not None:
                yield prefix + name, tensor.detach()
    for name, child in getattr(module, "_modules", {}).items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.")
