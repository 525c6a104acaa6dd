"""What `mamba-seq generate` does: it finds out what kind of model this is, and hands over to what makes its kind.

A kind is an entry of `KINDS`: whether a model is of it, and the function that takes the request. Sound is the only one.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mamba_seq.errors import ModelError
from mamba_seq.heads import LanguageModel
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines import models
from mamba_seq.pipelines.audio_request import AudioRequest
from mamba_seq.pipelines.generate_audio import generate_audio

if TYPE_CHECKING:
    import torch

log = logging.getLogger("mamba_seq.pipelines")


class Kind(NamedTuple):
    """A kind of model that generates."""

    what: str
    is_of: Callable[[Any], bool]
    run: Callable[..., None]


KINDS = [
    Kind("a language model of sound", lambda m: isinstance(m, LanguageModel) and bool(m.config.codec), generate_audio)
]


def generate(spec: str, device: "torch.device", request: AudioRequest, show: Callable[..., None]) -> None:
    """Generate with the model that `-m` names.

    Args:
        spec: a zoo name, the folder of a saved model, or a hub id.
        device: where it runs.
        request: what is wanted.
        show: takes a line of text and the part that is done, 0 to 1.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it cannot be read, or does not generate.
        PipelineError, DataError: from what makes its kind.
    """
    model = from_pretrained(models.locate_model(spec), device)
    for kind in KINDS:
        if kind.is_of(model):
            kind.run(model, spec, request, show)
            return
    reads = f"reads {model.config.alphabet}" if model.config.alphabet else "names no codec of sound"
    raise ModelError(
        f"model {spec!r} is a {model.config.task} that {reads}, and cannot generate; expected "
        f"{' or '.join(kind.what for kind in KINDS)}, such as one that mamba-seq train makes of a recipe of kind: audio"
    )
