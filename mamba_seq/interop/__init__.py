"""Models of other packages, in and out: transformers' Mamba folders and those of mamba_ssm.

    kind           config.json                          weights
    mamba-seq      "backbone": {...}                    model.safetensors
    transformers   "model_type": "mamba"                model.safetensors, in shards too; older ones pytorch_model.bin
    mamba-ssm      "d_model", "n_layer", "vocab_size"   pytorch_model.bin

All three compute the same function: the block of arXiv 2312.00752, with a normalisation in front, in a residual stack.
"""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mamba_seq.errors import ModelError
from mamba_seq.interop.configs import from_mamba_ssm, from_transformers, to_mamba_ssm, to_transformers
from mamba_seq.interop.weights import foreign_name, own_names, read_weights
from mamba_seq.saving import CONFIG_FILE, WEIGHTS_FILE, fit_weights, stored, write_whole

if TYPE_CHECKING:
    from mamba_seq.heads import LanguageModel, Model

KINDS = ("mamba-seq", "transformers", "mamba-ssm")
PICKLED_FILE = "pytorch_model.bin"


def folder_kind(folder: Path) -> str:
    """Tell whose model a folder holds, by its config.json: one of `KINDS`.

    A config that is none of them, or that cannot be read, counts as ours: the message is then about our format.
    """
    path = folder / CONFIG_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mamba-seq"
    if not isinstance(fields, dict) or "backbone" in fields:
        return "mamba-seq"
    if "model_type" in fields:
        return "transformers"
    return "mamba-ssm" if {"d_model", "n_layer"} <= set(fields) else "mamba-seq"


def load_foreign(folder: Path, kind: str, name: str, unpickle: bool = False) -> "tuple[LanguageModel, torch.dtype]":
    """Build our language model from a folder of another package, weights in float32.

    Args:
        folder: holds config.json and the weights.
        kind: "transformers" or "mamba-ssm".
        name: what the user called the folder, for messages.
        unpickle: read a pytorch_model.bin when there is no safetensors file, tensors only (`weights_only`).

    Returns:
        The model, and the type its weights are stored in.

    Raises:
        ModelError: when the config asks for what our block does not do, or the weights do not fit it.
    """
    from mamba_seq.heads import LanguageModel

    path = folder / CONFIG_FILE
    fields = json.loads(path.read_text(encoding="utf-8"))
    config = from_transformers(fields, path) if kind == "transformers" else from_mamba_ssm(fields, path)
    tensors, source = read_weights(folder, name, unpickle)
    model = LanguageModel(config)
    names = {ours: foreign_name(ours, kind) for ours in model.state_dict()}
    return model, fit_weights(model, own_names(tensors, names, config.tie_embeddings, source), source, names)


def export_hf(model: "Model", folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a language model as a folder that `transformers.MambaForCausalLM.from_pretrained` loads.

    Args:
        model: a `LanguageModel` with RMSNorm, which is the only normalisation there.
        folder: made if it is not there; gets config.json and model.safetensors, each whole or not at all.
        dtype: type of the stored weights, A_log, D and dt_bias excepted, which stay float32; None keeps each as it is.

    Returns:
        The folder. Its config asks for computing in float32 whatever the stored type: in 16 bits transformers would
        round A_log, and with it the decay of long memories.

    Raises:
        ModelError: when transformers has no such model.
    """
    from safetensors.torch import save

    fields = to_transformers(_language_model(model, "transformers").config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS_FILE, save(_foreign_weights(model, "transformers", dtype), metadata={"format": "pt"}))
    write_whole(folder / CONFIG_FILE, (json.dumps(fields, indent=2) + "\n").encode())
    return folder


def export_mamba_ssm(model: "Model", folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a language model as a folder that mamba_ssm's `MambaLMHeadModel.from_pretrained` loads.

    Args:
        model: a `LanguageModel` with norm_eps 1e-5, for which that package's config has no field.
        folder: made if it is not there; gets config.json and pytorch_model.bin, each whole or not at all.
        dtype: as for `export_hf`.

    Returns:
        The folder.

    Raises:
        ModelError: when mamba_ssm has no such model.
    """
    fields = to_mamba_ssm(_language_model(model, "mamba-ssm").config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _foreign_weights(model, "mamba-ssm", dtype)
    # it loads strictly, so that a tied output matrix must be there as well; one storage holds both
    tensors.setdefault("lm_head.weight", tensors["backbone.embedding.weight"])
    pickled = io.BytesIO()
    torch.save(tensors, pickled)
    write_whole(folder / PICKLED_FILE, pickled.getbuffer())
    write_whole(folder / CONFIG_FILE, (json.dumps(fields, indent=2) + "\n").encode())
    return folder


def _language_model(model: "Model", kind: str) -> "LanguageModel":
    from mamba_seq.heads import LanguageModel

    if not isinstance(model, LanguageModel):
        raise ModelError(
            f"the model is a {model.config.task}, expected a language-model: {kind} has no other Mamba models; keep it "
            "as a mamba-seq folder"
        )
    return model


def _foreign_weights(model: "Model", kind: str, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return the weights under the names and in the shapes of `kind`."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        shaped = tensor[:, None] if name.endswith(".conv_weight") else tensor  # nn.Conv1d keeps (D, 1, K)
        tensors[foreign_name(name, kind)] = stored(name, shaped, dtype or tensor.dtype)
    return tensors
