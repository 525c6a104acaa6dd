"""The training step of a synthetic task, and its accuracy at any length, chunk after chunk."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mamba_seq.data_prep.synthetic import Split, Task
from mamba_seq.heads import LanguageModel
from mamba_seq.pipelines.train.module import Training
from mamba_seq.pipelines.train.synthetic_recipe import LengthsConfig, SyntheticRecipe
from mamba_seq.pipelines.train.synthetic_step import AnswerLoss, recorded

log = logging.getLogger("mamba_seq.train")

CPU_TOKENS, GPU_TOKENS = 1 << 16, 1 << 20
"""Tokens that the evaluation has in memory at a time."""


class SyntheticTraining(Training):
    """A `LanguageModel` that learns the answers of a task and nothing else.

    Args:
        model: the model.
        recipe: of the run.
    """

    def __init__(self, model: LanguageModel, recipe: SyntheticRecipe) -> None:
        super().__init__(model, recipe.optim, recipe.log_every, recipe.seed)
        self.recipe = recipe
        self.task = recipe.data.make()
        self.solved_validations = 0
        self._right: dict[int, float] = {}
        self.skipped = 0
        self._not_finite: list[Tensor] = []
        # in a list, that its parameters do not count as further ones of this module
        self._step: list[AnswerLoss] = []

    @property
    def done(self) -> bool:
        """Whether the task is solved, and the run ends before its last step."""
        return 0 < self.recipe.solved.validations <= self.solved_validations

    def on_train_start(self) -> None:
        """End a run at once that was killed after it had solved the task."""
        if self.done:
            self.trainer.should_stop = True

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of the answers of samples of some numbers (B,), in nats."""
        self.seed_step()
        if not self._step:
            step = AnswerLoss(self.model, self.task, self.recipe.data.length, self.recipe.label_smoothing)
            graph = self.recipe.replays and batch.is_cuda
            self._step.append(recorded(step, batch) if graph else step)
        loss, accuracy = self._step[0](batch)
        self.log_row(lambda: {"loss": loss.item(), "accuracy": accuracy.item(), "lr": self.rate})
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient's norm; one that is not finite counts as zero, and validation says how many there were."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.optim.grad_clip)
        bad = ~norm.isfinite()
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(bad, 0)
        self._not_finite.append(bad)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Measure the accuracy at one length."""
        right, answers = measure(
            self.model, self.task, "validation", batch, self.recipe.validation.count(batch), self.recipe.chunk_tokens
        )
        self._right[batch] = right / answers

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies, and stop when they have been reached often enough."""
        self.log_dict({f"val_{length}_accuracy": value for length, value in self._right.items()})
        solved = bool(self._right) and min(self._right.values()) >= self.recipe.solved.accuracy
        self.solved_validations = self.solved_validations + 1 if solved else 0
        self._right = {}
        if self._not_finite:
            found = int(torch.stack(self._not_finite).sum())
            self.skipped += found
            self._not_finite = []
            if found:
                log.warning("step %d: %d gradients since the last validation were not finite", self.global_step, found)
        if self.done:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how often the task was solved in a row."""
        checkpoint["solved_validations"] = self.solved_validations
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self.solved_validations = checkpoint["solved_validations"]
        self.skipped = checkpoint["skipped"]


@torch.no_grad()
def measure(
    model: LanguageModel, task: Task, split: Split, length: int, count: int, chunk_tokens: int | None = None
) -> tuple[int, int]:
    """Count the right answers of the first samples of a split, in memory that does not grow with the length.

    Args:
        model: on the device that it shall run on.
        task: what is asked.
        split: whose samples.
        length: of the samples.
        count: of the samples.
        chunk_tokens: in memory at a time; the state is carried from chunk to chunk.

    Returns:
        Right answers, and all.
    """
    device = next(model.parameters()).device
    at_a_time = chunk_tokens or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    positions = task.positions(length)
    batch = max(1, min(count, at_a_time // positions, 4096))
    before = positions - task.memorise
    right = torch.zeros((), dtype=torch.int64, device=device)
    for first in range(0, count, batch):
        numbers = torch.arange(first, min(count, first + batch), device=device)
        samples = task.samples(split, numbers, length)
        state = None
        piece = max(1, at_a_time // len(numbers))
        for start in range(0, before, piece):
            tokens = task.tokens(samples, split, start, min(before, start + piece))
            _, state = model.backbone(model.embed(tokens), None, state, return_state=True)
        tokens = task.tokens(samples, split, before, positions)
        logits = model.read(model.backbone(model.embed(tokens), None, state))
        right += (logits.argmax(dim=-1) == samples.answers).sum()
    return int(right), count * task.memorise


class SyntheticData(L.LightningDataModule):
    """Numbers of samples for training, lengths for validation: the samples themselves are made on the device.

    Args:
        batch_size: samples of a step.
        validation: lengths.

    Attributes:
        start_step: the first step of the training loader.
    """

    def __init__(self, batch_size: int, validation: LengthsConfig) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.validation = validation
        self.start_step = 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Numbers (B,) of the samples of each step from `start_step` on, without end."""
        return DataLoader(_Numbers(self.batch_size, self.start_step), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        """Lengths."""
        lengths: Sequence[Any] = self.validation.lengths
        return DataLoader(lengths, batch_size=None)  # type: ignore[arg-type]


class _Numbers(IterableDataset[Tensor]):
    def __init__(self, batch_size: int, start_step: int) -> None:
        self.batch_size = batch_size
        self.start_step = start_step

    def __iter__(self) -> Iterator[Tensor]:
        first = self.start_step * self.batch_size
        while True:
            yield torch.arange(first, first + self.batch_size)
            first += self.batch_size
