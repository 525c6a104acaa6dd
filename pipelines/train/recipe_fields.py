"""What every recipe says, whatever it trains: the run, the optimiser, the card's words."""

import dataclasses
from typing import Literal

from mamba_seq.backbone import Recompute


@dataclasses.dataclass(kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine to `min_lr` (Mamba, appendix E.3)."""

    lr: float = 2e-3
    """Largest learning rate, reached after the warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the last step."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    steps: int = 10000
    """Steps in all."""
    minutes: float | None = None
    """Minutes of training that the schedule is fitted to instead of `steps`, which then only bound it: the rate falls
    as they pass, and the run ends with them. No such run can be repeated step by step."""
    weight_decay: float = 0.1
    """Weight decay of matrices; vectors, norms, A_log and D have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment. Gradients far below it no longer move anything."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    next_token_weight: float = 0.0
    """Weight of an auxiliary loss, the next token's cross-entropy at every position, read off by a matrix that only
    training has."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"optim.steps is {self.steps}, expected at least 1")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"optim.warmup_steps is {self.warmup_steps}, expected 0 to optim.steps = {self.steps}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"optim.minutes is {self.minutes}, expected above 0, or null for a schedule of steps")
        if not self.lr > 0:
            raise ValueError(f"optim.lr is {self.lr}, expected above 0")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.min_lr is {self.min_lr}, expected 0 to optim.lr = {self.lr}")
        if not self.grad_clip > 0:
            raise ValueError(f"optim.grad_clip is {self.grad_clip}, expected above 0; inf clips nothing")
        if not self.eps > 0:
            raise ValueError(f"optim.eps is {self.eps}, expected above 0")
        for name in ("weight_decay", "next_token_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}, expected 0 or more, below 1")


@dataclasses.dataclass(kw_only=True)
class BaseRecipe:
    """A training run: what all of them have."""

    name: str
    """Name of the model, architecture.tag."""
    summary: str
    """One sentence for the model's card."""
    data_source: str
    """Where the data comes from, for the card."""
    data_licence: str
    """The data's licence or terms, for the card."""
    limits: str = ""
    """What the model is not good for, for the card."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    start_from: str | None = None
    """Zoo name, folder or hub id of a saved model whose weights training begins with: one of the same sizes and labels,
    or, for a classifier, a language model of the same sizes, whose embedding and blocks it takes under a new head."""
    seed: int = 0
    """Seed of the weights; the data has its own."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic: auto takes bf16 mixed precision on a GPU and float32 on a CPU."""
    val_every: int = 500
    """Steps between two validations."""
    log_every: int = 20
    """Steps between two rows of the training log."""

    def __post_init__(self) -> None:
        for name in ("val_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}, expected 0 to 4294967295")


@dataclasses.dataclass(kw_only=True)
class DnaRecipe(BaseRecipe):
    """A training run on DNA: what classifiers and language models have in common."""

    recompute: Recompute = "auto"
    """What the backward pass computes again instead of keeping it: nothing, inner or segments, ever less memory for
    more time; auto takes the fastest way that is expected to fit."""
    gradient_checkpointing: bool | int = False
    """Keep only the residual stream of every block, or every so many, and compute the blocks again in the backward
    pass."""
    memory_gb: float | None = None
    """Gigabytes (1e9 bytes) that training may take; by default what is free when it begins. What needs more is
    refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_checkpointing < 0:
            raise ValueError(
                f"gradient_checkpointing is {self.gradient_checkpointing}, expected true, false or a number of blocks"
            )
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise ValueError(f"memory_gb is {self.memory_gb}, expected above 0, or null")
