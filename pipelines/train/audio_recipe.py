"""The recipe of a waveform model: a SaShiMi that says the next level of a clip from those before it."""

import dataclasses
import math
from typing import Literal

from mamba_seq.config import SaShiMiConfig
from mamba_seq.data_prep.audio import AudioDataConfig
from mamba_seq.pipelines.train.recipe_fields import BaseRecipe


@dataclasses.dataclass(kw_only=True)
class AudioRecipe(BaseRecipe):
    """A training run of a waveform model, from folders of sound files to a saved model."""

    kind: Literal["audio"] = "audio"
    """Tells this recipe from one of DNA."""
    model: SaShiMiConfig
    """The backbone."""
    data: AudioDataConfig
    """Sound files, codec, splits and clips."""
    weights_licence: str = "apache-2.0"
    """The licence of the weights, as the Hugging Face hub calls it, for the card."""
    embedding: Literal["learned", "sinusoidal"] = "learned"
    """How levels become vectors: each has its own, as in the papers, or they are a linear map of waves."""
    conditional: bool = False
    """Tell the model the class of each clip, so that it can be asked for one; but for data.label_dropout of them."""
    guidance: float = 1.0
    """With data.label_dropout, how much generate guides the model unless told otherwise; 1 is not at all."""
    gradient_checkpointing: bool | int = False
    """Compute every layer, or so many layers, of the model again in the backward pass, to save memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.next_token_weight:
            raise ValueError(
                f"optim.next_token_weight is {self.optim.next_token_weight}, expected 0: the next token is all that a "
                "waveform model is trained on"
            )
        if self.data.label_dropout and not self.conditional:
            raise ValueError(
                f"data.label_dropout is {self.data.label_dropout}, expected 0: the recipe is not conditional, and the "
                "model is told no label that could be left out"
            )
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance is {self.guidance}, expected a number of at least 0")
        if self.guidance != 1 and not self.data.label_dropout:
            raise ValueError(
                f"guidance is {self.guidance}, expected 1: without data.label_dropout the model has nothing to be "
                "guided by"
            )
        if self.gradient_checkpointing < 0:
            raise ValueError(
                f"gradient_checkpointing is {self.gradient_checkpointing}, expected true, false or a number"
            )
