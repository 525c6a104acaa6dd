"""The training step of a DNA language model: weighted cross-entropy of each base given those before it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.data_prep.packed_genomes import LOWER
from mamba_seq.heads import LanguageModel
from mamba_seq.padding import at_least_float32
from mamba_seq.pipelines.likelihood import shifted
from mamba_seq.pipelines.train.module import Training
from mamba_seq.pipelines.train.recipe_fields import OptimConfig


class LanguageTraining(Training):
    """A `LanguageModel` of DNA in training.

    A step's windows go through the model in parts that fit into memory. The first is Lightning's; the others follow in
    `backward`, which it calls after it has set the gradients to zero.

    Args:
        model: the model.
        optim: optimiser and schedule.
        log_every: steps between two rows of the log.
        seed: of dropout.
        soft_masked_weight: of lower-case bases in the loss; N has none.
        micro_batch_tokens: bases of a part; a window at least.
    """

    def __init__(
        self,
        model: LanguageModel,
        optim: OptimConfig,
        log_every: int,
        seed: int,
        soft_masked_weight: float,
        micro_batch_tokens: int,
    ) -> None:
        super().__init__(model, optim, log_every, seed)
        self.soft_masked_weight = soft_masked_weight
        self.micro_batch_tokens = micro_batch_tokens
        self._rest: list[Tensor] = []
        self._total = torch.ones(())
        self._length = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the first part's share of the mean loss of a batch of cased token ids (B, L) uint8, in nats."""
        self.seed_step()
        windows = max(1, self.micro_batch_tokens // batch.shape[1])
        first, *self._rest = batch.split(windows)
        self._total = self._weights(batch).sum(dtype=torch.float64).clamp(min=1e-9).float()
        self._length = batch.shape[1]
        return self._share(first)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Sum the gradients of all parts."""
        loss.backward(*args, **kwargs)
        found = loss.detach()
        for part in self._rest:
            with self.trainer.precision_plugin.train_step_context():
                share = self._share(part)
            share.backward()
            found = found + share.detach()
        self._rest = []
        self.log_row(
            lambda: {
                "loss": found.item(),
                "bits": found.item() / math.log(2),
                "lr": self.rate,
                "length": float(self._length),
            }
        )

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the bits per base of a batch of token ids (B, L), averaged over the bases of all batches; no weights."""
        bases = int((batch % LOWER != DNA.unknown_code).sum())
        tokens = (batch % LOWER).long()
        nats = F.cross_entropy(
            at_least_float32(self.model(shifted(tokens))).flatten(0, 1),
            tokens.flatten(),
            ignore_index=DNA.unknown_code,
            reduction="sum",
        )
        self.log("val_bits", nats / max(1, bases) / math.log(2), batch_size=max(1, bases), on_epoch=True)

    def _share(self, batch: Tensor) -> Tensor:
        """Return the weighted sum of a part's cross-entropies over the weights of the whole batch."""
        tokens = (batch % LOWER).long()
        logits = self.model(shifted(tokens)).flatten(0, 1)
        nats = F.cross_entropy(at_least_float32(logits), tokens.flatten(), reduction="none")
        share: Tensor = torch.dot(nats, self._weights(batch).flatten()) / self._total
        return share

    def _weights(self, batch: Tensor) -> Tensor:
        """Return what each base weighs (B, L), float32."""
        known = (batch % LOWER != DNA.unknown_code).float()
        return torch.where(batch >= LOWER, self.soft_masked_weight * known, known)
