"""The training step: AdamW and its schedule for every model; a classifier's loss, and its accuracy by length."""

import math
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.heads import Model, SequenceClassifier
from mamba_seq.pipelines.train.metrics import MetricsFile
from mamba_seq.pipelines.train.recipe_fields import OptimConfig

NO_DECAY = ("A_log", "A_imag", "B", "D", "dt_bias", "conv_bias", "bias", "norm.weight", "embedding.weight")
"""Ends of the names of parameters without weight decay."""

Batch = tuple[Tensor, Tensor]
"""tokens (B, L) uint8 and labels (B,) int64."""


class Training(L.LightningModule):
    """A model in training; the classes below add what is done with a batch.

    Dropout draws from a generator that is seeded anew at every step, by the seed and the step: a run that was killed
    goes on with the numbers of one that was not.

    Attributes:
        minutes: gives the minutes of training so far, for a schedule that is fitted to minutes.
    """

    def __init__(self, model: Model, optim: OptimConfig, log_every: int, seed: int) -> None:
        super().__init__()
        self.model: Any = model
        self.optim = optim
        self.log_every = log_every
        self.seed = seed
        self.minutes: Callable[[], float] = lambda: 0.0

    @property
    def done(self) -> bool:
        """Whether nothing is left to learn, and the run ends before its last step."""
        return False

    def seed_step(self) -> None:
        """Seed what a step draws."""
        torch.manual_seed(step_seed(self.seed, self.global_step, self.global_rank))

    def log_row(self, values: Callable[[], dict[str, float]]) -> None:
        """Write a row of the log, if this step has one: making the values synchronises with the GPU.

        Lightning would write it some steps later. On a GPU the most memory since the row before is written too.
        """
        if self.global_step % self.log_every == 0 and isinstance(self.logger, MetricsFile):
            self.logger.write(self.global_step, values() | self.peak_memory())

    def peak_memory(self) -> dict[str, float]:
        """Return the most that torch had allocated since the last call, in 10^9 bytes; nothing on a CPU."""
        if self.device.type != "cuda":
            return {}
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return {"memory_gb": peak / 1e9}

    @property
    def rate(self) -> float:
        """The learning rate of this step, of what has no factor of its own."""
        rate: float = self.trainer.optimizers[0].param_groups[0]["lr"]
        return rate

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient's norm; Lightning's clipping refuses the fused AdamW, though bf16 scales no gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.optim.grad_clip)

    def rate_factor(self, name: str) -> float:
        """Return what the learning rate of a parameter is multiplied by."""
        return 1.0

    def configure_optimizers(self) -> Any:
        """AdamW over two groups, with and without weight decay, and the schedule of the recipe, step by step.

        Parameters whose rate has another factor than 1 are in further groups, two a factor.
        """
        optim = self.optim
        groups: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = {1.0: ([], [])}  # decayed, and not
        for name, parameter in self.named_parameters():
            of_factor = groups.setdefault(self.rate_factor(name), ([], []))
            of_factor[name.endswith(NO_DECAY)].append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": decay, "lr": optim.lr * factor}
                for factor, both in groups.items()
                for parameters, decay in zip(both, (optim.weight_decay, 0.0), strict=True)
            ],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=self.device.type == "cuda",
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, optim, self.minutes()) / optim.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ClassifierTraining(Training):
    """A `SequenceClassifier` of DNA in training."""

    def __init__(self, model: SequenceClassifier, optim: OptimConfig, log_every: int, seed: int) -> None:
        super().__init__(model, optim, log_every, seed)
        config = model.config
        tokens = cast("int", config.vocab_size)  # a recipe's data are DNA
        self.next_token = nn.Linear(config.backbone.d_model, tokens) if optim.next_token_weight else None
        self._context: int | None = None
        self._growth = 0.0

    def read_in_windows(self, context: int, growth: float) -> None:
        """Train and validate on sequences longer than `context` as they will be read, in windows of it.

        What decides is the average of the windows' logits, each weighted by its bases that are not N, times the number
        of windows that these bases fill to the power of `growth`: what `mamba_seq.pipelines.evidence` averages, in the
        form that `mamba_seq.calibration` gives to it. What such a loss teaches is which evidence is worth adding up.

        Args:
            context: length of a window, in tokens; longer sequences are multiples of it.
            growth: 0 to 1.
        """
        self._context, self._growth = context, growth

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch: cross-entropy over labels, and over next tokens if the recipe wants it."""
        self.seed_step()
        tokens, labels = batch
        length = tokens.shape[1]
        windows = self._windows(tokens)
        tokens = self.model.strands(windows.long())[0]
        out = self.model.backbone(self.model.embedding(tokens))
        logits = self._together(self.model.read(out), windows, len(labels))
        loss = F.cross_entropy(logits, labels)
        self.log_row(
            lambda: {
                "loss": loss.item(),
                "accuracy": (logits.argmax(dim=1) == labels).float().mean().item(),
                "lr": self.rate,
                "length": float(length),
            }
        )
        if self.next_token is not None:
            predicted = self.next_token(out[:, :-1]).flatten(0, 1)
            return loss + self.optim.next_token_weight * F.cross_entropy(predicted, tokens[:, 1:].flatten())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and accuracy of a batch, averaged over the windows of one length."""
        tokens, labels = batch
        windows = self._windows(tokens)
        logits = self._together(self.model(windows.long()), windows, len(labels))
        name = f"val_{tokens.shape[1]}"
        values = {
            f"{name}_loss": F.cross_entropy(logits, labels),
            f"{name}_accuracy": (logits.argmax(dim=1) == labels).float().mean(),
        }
        self.log_dict(values, batch_size=len(labels), add_dataloader_idx=False, on_epoch=True, on_step=False)

    def _windows(self, tokens: Tensor) -> Tensor:
        """Cut sequences (B, L) into the windows that they are read in, (B L / context, context)."""
        whole = self._context is None or tokens.shape[1] <= self._context
        return tokens if whole else tokens.reshape(-1, cast("int", self._context))

    def _together(self, logits: Tensor, windows: Tensor, sequences: int) -> Tensor:
        """Return the logits (B, labels) of sequences whose windows (B windows, L), as many of each, have these."""
        number, context = len(logits) // sequences, windows.shape[1]
        if number == 1:
            return logits
        bases = (windows < DNA.unknown_code).sum(dim=1).float().unflatten(0, (sequences, number))
        seen = bases.sum(dim=1, keepdim=True).clamp(min=1.0)
        average = (logits.unflatten(0, (sequences, number)) * (bases / seen)[..., None]).sum(dim=1)
        together: Tensor = average * (seen / context).clamp(min=1.0) ** self._growth
        return together


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for one step of one process; 32 bits, for torch's generator on the CPU uses no more."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def learning_rate(step: int, optim: OptimConfig, minutes: float = 0.0) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to `min_lr`, by steps or by minutes so far."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.minutes is None:
        through = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    else:
        through = minutes / optim.minutes
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, through)))
