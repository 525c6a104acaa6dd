"""The recipe of a DNA language model: each base from those before it."""

import dataclasses
from typing import Literal

from mamba_seq.config import MambaConfig
from mamba_seq.data_prep.markov import HIGHEST
from mamba_seq.data_prep.pretraining import PretrainingDataConfig
from mamba_seq.pipelines.train.recipe_fields import DnaRecipe


@dataclasses.dataclass(kw_only=True)
class LikelihoodConfig:
    """What the finished model is measured on: bits per base of held-out regions."""

    lengths: list[int] | None = None
    """Contexts: the model starts anew every so many bases. By default powers of 4 from 1,024 to the training length."""
    bases: int = 4194304
    """Held-out bases that are read, the same ones at every context, from all paths in turn as long as each has some."""
    markov_order: int = 11
    """Highest order of the Markov model that stands beside, 0 to 12; its order and prior are chosen on the
    validation."""

    def __post_init__(self) -> None:
        if self.lengths is not None and (not self.lengths or min(self.lengths) < 1):
            raise ValueError(f"evaluation.lengths is {self.lengths}, expected at least one, each at least 1")
        if self.bases < 1:
            raise ValueError(f"evaluation.bases is {self.bases}, expected at least 1")
        if not 0 <= self.markov_order <= HIGHEST:
            raise ValueError(f"evaluation.markov_order is {self.markov_order}, expected 0 to {HIGHEST}")


@dataclasses.dataclass(kw_only=True)
class LanguageRecipe(DnaRecipe):
    """A training run of a causal DNA language model, from FASTA files to a saved model."""

    kind: Literal["dna"] = "dna"
    """Tells this recipe from one of sound."""
    task: Literal["language-model"] = "language-model"
    """Tells this recipe from one of a classifier."""
    model: MambaConfig
    """The backbone."""
    data: PretrainingDataConfig
    """Files, what of them is held out, and windows."""
    micro_batch_tokens: int | None = None
    """Bases that go through the model at once, at least a window; the gradients of a step's parts are summed. By
    default as many as are expected to fit into memory."""
    evaluation: LikelihoodConfig = dataclasses.field(default_factory=LikelihoodConfig)
    """Bits per base of the finished model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.next_token_weight:
            raise ValueError(
                f"optim.next_token_weight is {self.optim.next_token_weight}, expected 0: the next token is all that a "
                "language model is trained on"
            )
        if self.micro_batch_tokens is not None and self.micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens is {self.micro_batch_tokens}, expected at least 1, or null")

    def contexts(self) -> list[int]:
        """Return the contexts of the evaluation, ascending."""
        if self.evaluation.lengths is not None:
            return sorted(set(self.evaluation.lengths))
        length = self.data.length
        return sorted({min(1024 << 2 * i, length) for i in range(16)})
