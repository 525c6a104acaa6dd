"""Which model a person means by `-m`: the one place that resolves it, and checks that it can do the work."""

import difflib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_seq import models_zoo
from mamba_seq.errors import ModelError, UnknownModelError

if TYPE_CHECKING:
    import torch

    from mamba_seq.calibration import Calibration
    from mamba_seq.config import ModelConfig
    from mamba_seq.heads import LanguageModel, Model, SequenceClassifier

log = logging.getLogger("mamba_seq.pipelines")


def load_model(spec: str, device: "torch.device | str") -> "SequenceClassifier":
    """Load the DNA classifier that `-m` names, in evaluation mode.

    Args:
        spec: a zoo name, the folder of a saved model, or a hub id ("owner/name"); looked up in this order.
        device: where the model shall run.

    Raises:
        UnknownModelError: when it is none of these; the message lists the zoo.
        ModelError: when the model cannot be read, or does not classify DNA.
    """
    from mamba_seq.heads import SequenceClassifier
    from mamba_seq.loading import from_pretrained

    model = from_pretrained(locate_model(spec), device)
    if not isinstance(model, SequenceClassifier):
        raise ModelError(
            f"model {spec!r} is a {model.config.task}, expected sequence-classification; choose another -m "
            f"({_zoo(models_zoo.names())}), or use it from Python with mamba_seq.from_pretrained"
        )
    _check_input(spec, model.config)
    return model


def load_language_model(spec: str, device: "torch.device | str") -> "LanguageModel":
    """Load the DNA language model that `-m` names, in evaluation mode; see `load_model`.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it cannot be read, is of another task or alphabet, or wants to be told a class.
    """
    from mamba_seq.heads import LanguageModel
    from mamba_seq.loading import from_pretrained

    model = from_pretrained(locate_model(spec), device)
    if not isinstance(model, LanguageModel) or model.config.labels:
        kind = model.config.task + (" of several classes" if isinstance(model, LanguageModel) else "")
        raise ModelError(
            f"model {spec!r} is a {kind}, expected a language-model without classes; choose another -m, or train one "
            "with a recipe of task: language-model"
        )
    _check_input(spec, model.config)
    return model


def load_variant_model(spec: str, device: "torch.device | str") -> "LanguageModel | SequenceClassifier":
    """Load the DNA classifier or language model that `-m` names, in evaluation mode; see `load_model`.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it cannot be read, is of another task or alphabet, or wants to be told a class.
    """
    from mamba_seq.heads import LanguageModel, SequenceClassifier

    model = load_dna_model(spec, device)
    if isinstance(model, SequenceClassifier) or (isinstance(model, LanguageModel) and not model.config.labels):
        return model
    kind = model.config.task + (" of several classes" if isinstance(model, LanguageModel) else "")
    raise ModelError(
        f"model {spec!r} is a {kind}, expected a sequence-classification, or a language-model without classes; choose "
        "another -m"
    )


def load_dna_model(spec: str, device: "torch.device | str") -> "Model":
    """Load the model of any task that `-m` names and that reads DNA, in evaluation mode; see `load_model`.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it cannot be read, or reads something else.
    """
    from mamba_seq.loading import from_pretrained

    model = from_pretrained(locate_model(spec), device)
    _check_input(spec, model.config)
    return model


def _check_input(spec: str, config: "ModelConfig") -> None:
    """Refuse a model whose input is not the tokens of DNA."""
    from mamba_seq.data_prep.alphabet import DNA

    if config.input_features is not None:
        reads = f"numbers ({config.input_features} at every position)"
    elif config.alphabet != DNA.name:
        reads = f"the alphabet {config.alphabet!r}"
    elif config.vocab_size != DNA.size:
        reads = f"{config.vocab_size} tokens, not the {DNA.size} of DNA ({DNA.symbols})"
    else:
        return
    raise ModelError(f"model {spec!r} reads {reads}, expected {DNA.name!r}; choose another -m")


def strands_of(spec: str, config: "ModelConfig", asked: str | None) -> str:
    """Return which strands of DNA a model's answer is of: "both", averaged, or "forward", the given one.

    Args:
        spec: what `-m` said, for messages.
        config: of the model.
        asked: what `--strand` said; None leaves it to the model, and both if that says nothing.
    """
    if config.complement:
        if asked == "forward":
            log.warning("model %r reads both strands with the same weights, so --strand forward changes nothing", spec)
        return "both"
    if asked == "both" and config.strand == "forward":
        log.warning("model %r was trained on the given strand alone, and --strand both averages over the other", spec)
    return asked or config.strand or "both"


def max_windows_of(config: "ModelConfig", asked: int | None) -> int:
    """Return the most windows that a record is read in, 0 for all.

    Args:
        config: of the model.
        asked: what `--max-windows` said; None leaves it to the model, and `MAX_WINDOWS` if that says nothing.
    """
    from mamba_seq.data_prep.windows import MAX_WINDOWS

    for most in (asked, config.max_windows):
        if most is not None:
            return most
    return MAX_WINDOWS


def calibration_of(spec: str, config: "ModelConfig", novel: float | None = None) -> "Calibration | None":
    """Return the calibration that a model has stored, or None.

    Args:
        spec: what `-m` said, for messages.
        config: of the model.
        novel: a rate that its thresholds must have, or None.

    Raises:
        ModelError: when a rate was asked for and there is no threshold for it.
    """
    from mamba_seq.calibration import Calibration

    stored = None if config.calibration is None else Calibration.from_fields(config.calibration)
    if novel is None or (stored is not None and novel in stored.rates):
        return stored
    if stored is None or not stored.rates:
        raise ModelError(
            f"model {spec!r} is not calibrated, which --novel needs; measure it on genomes of its classes that it has "
            "not seen: mamba-seq calibrate GENOMES -m MODEL -o FOLDER"
        )
    rates = ", ".join(f"{rate:g}" for rate in stored.rates)
    raise ModelError(f"model {spec!r} has no threshold for --novel {novel:g}; it has those for {rates}")


def locate_model(spec: str, pickles: bool = False) -> Path:
    """Return the folder of the model that `-m` names, fetching a hub model if the network may be used.

    Args:
        spec: a zoo name, the folder of a saved model, or a hub id, [hub:]owner/name[@revision].
        pickles: fetch a hub model's pytorch_model.bin too.

    Raises:
        UnknownModelError: when there is no such model; the message lists the zoo.
    """
    from mamba_seq.hub import PREFIX
    from mamba_seq.loading import locate

    known = models_zoo.names()
    if spec in known:
        return models_zoo.path(spec)
    try:
        return locate(spec, pickles)
    except UnknownModelError as error:
        if spec.startswith(PREFIX):  # the zoo was not meant
            raise
        raise UnknownModelError(f"{error}; {suggest_model(spec, known)}") from error


def suggest_model(spec: str, known: list[str]) -> str:
    """Say which zoo model `spec` may have meant."""
    close = difflib.get_close_matches(spec, known, n=1)
    return f"did you mean {close[0]!r}? T{_zoo(known)[1:]}" if close else _zoo(known)


def _zoo(known: list[str]) -> str:
    return f"the zoo holds {', '.join(known) or 'no model'}"
