"""Converting a model folder from one package's format to another's."""

import logging
import shutil
from pathlib import Path

import torch

from mamba_seq.heads import Model
from mamba_seq.interop import KINDS, export_hf, export_mamba_ssm
from mamba_seq.loading import open_model
from mamba_seq.pipelines.models import locate_model
from mamba_seq.pipelines.output import check_new_folder, new_folder
from mamba_seq.saving import CARD_FILE

log = logging.getLogger("mamba_seq.pipelines")


def convert(source: str, folder: Path, kind: str) -> Path:
    """Write the model `source` as a folder of `kind`, whole or not at all.

    Args:
        source: a zoo name, a folder or a hub id; any of `mamba_seq.interop.KINDS`, pickled weights included.
        folder: to write; new or empty. The model's card comes along.
        kind: one of `mamba_seq.interop.KINDS`.

    Returns:
        The folder.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it cannot be read, or `kind` has no such model.
        OutputError: when `folder` is a file, or not empty.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    check_new_folder(folder)
    found = locate_model(source, pickles=True)
    model, dtype = open_model(found, name=source, unpickle=True)
    with new_folder(folder) as written:
        _write(model, written, kind, dtype)
        if (found / CARD_FILE).is_file():
            shutil.copyfile(found / CARD_FILE, written / CARD_FILE)
    count = sum(parameter.numel() for parameter in model.parameters())
    precision = str(dtype).removeprefix("torch.")
    log.info("wrote a %s model of %.3g million parameters in %s to %s", kind, count / 1e6, precision, folder)
    return folder


def _write(model: Model, folder: Path, kind: str, dtype: torch.dtype) -> Path:
    if kind == "mamba-seq":
        return model.save_pretrained(folder, dtype=dtype)
    return export_hf(model, folder, dtype) if kind == "transformers" else export_mamba_ssm(model, folder, dtype)
