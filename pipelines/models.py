"""Which model a person means by `-m`: the one place that resolves it, and checks that it can do the work."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_seq import models_zoo
from mamba_seq.errors import ModelError, UnknownModelError

if TYPE_CHECKING:
    import torch

    from mamba_seq.heads import SequenceClassifier


def load_model(spec: str, device: "torch.device | str") -> "SequenceClassifier":
    """Load the DNA classifier that `-m` names, in evaluation mode.

    Args:
        spec: a zoo name, the folder of a saved model, or a hub id ("owner/name"); looked up in this order.
        device: where the model shall run.

    Raises:
        UnknownModelError: when it is none of these; the message lists the zoo.
        ModelError: when the model cannot be read, or does not classify DNA.
    """
    from mamba_seq.loading import from_pretrained

    model = from_pretrained(locate_model(spec), device)
    config = model.config
    if config.task != "sequence-classification":
        raise ModelError(f"model {spec!r} is a {config.task}, expected sequence-classification; choose another -m")
    if config.alphabet != "dna":
        raise ModelError(f"model {spec!r} reads the alphabet {config.alphabet!r}, expected 'dna'; choose another -m")
    return model  # type: ignore[return-value]


def locate_model(spec: str, pickles: bool = False) -> Path:
    """Return the folder of the model that `-m` names, fetching a hub model that is not on this machine yet.

    Args:
        spec: a zoo name, the folder of a saved model, or a hub id.
        pickles: fetch a hub model's pytorch_model.bin too.

    Raises:
        UnknownModelError: when there is no such model; the message lists the zoo.
    """
    from mamba_seq.loading import locate

    known = models_zoo.names()
    if spec in known:
        return models_zoo.path(spec)
    try:
        return locate(spec, pickles)
    except UnknownModelError as error:
        raise UnknownModelError(f"{error}; {suggest_model(spec, known)}") from error


def suggest_model(spec: str, known: list[str]) -> str:
    """Say which zoo model `spec` may have meant."""
    if not known:
        return "the zoo holds no model"
    close = difflib.get_close_matches(spec, known, n=1)
    names = ", ".join(known)
    return f"did you mean {close[0]!r}? The zoo holds {names}" if close else f"the zoo holds {names}"
