"""The recipe of a classifier of spoken words: Mamba blocks over the log-mel features of a clip."""

import dataclasses
from typing import Literal

from mamba_seq.config import MambaConfig
from mamba_seq.data_prep.words import WordDataConfig
from mamba_seq.pipelines.train.recipe_fields import BaseRecipe


@dataclasses.dataclass(kw_only=True)
class WordRecipe(BaseRecipe):
    """A training run of a classifier of spoken words, from folders of sound files to a saved model."""

    kind: Literal["words"] = "words"
    """Tells this recipe from others."""
    model: MambaConfig
    """The backbone."""
    pooling: Literal["mean", "last", "max"] = "mean"
    """How the classifier turns frames into one vector."""
    data: WordDataConfig
    """Recordings, splits, features and clips."""
    weights_licence: str = "apache-2.0"
    """The licence of the weights, as the Hugging Face hub calls it, for the card."""
    masked: float = 0.5
    """Part of the training clips of which some frames, and the part of which some bands, are hidden (SpecAugment, arXiv
    1904.08779)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.next_token_weight:
            raise ValueError(
                f"optim.next_token_weight is {self.optim.next_token_weight}, expected 0: there is no token"
            )
        if not 0 <= self.masked <= 1:
            raise ValueError(f"masked is {self.masked}, expected 0 to 1")
