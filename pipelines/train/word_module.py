"""The training step of a classifier of spoken words.

Shapes: B batch, T frames, F bands.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.data_prep.mel import LogMel
from mamba_seq.data_prep.words import WordBatch
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines.train.module import Training
from mamba_seq.pipelines.train.recipe_fields import OptimConfig


class WordTraining(Training):
    """A `SequenceClassifier` of log-mel frames in training.

    Args:
        model: to train.
        optim: optimiser and schedule.
        log_every: steps between two rows of the log.
        seed: of dropout and of what is hidden.
        features: make the model's input of samples.
        masked: part of the clips of which some frames are hidden, and of which some bands are.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        optim: OptimConfig,
        log_every: int,
        seed: int,
        features: LogMel,
        masked: float,
    ) -> None:
        super().__init__(model, optim, log_every, seed)
        self.features = features
        self.masked = masked

    def training_step(self, batch: WordBatch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        self.seed_step()
        frames = hide(self.features(batch.samples), self.masked)
        logits = self.model(frames)
        loss = F.cross_entropy(logits, batch.labels)
        right = (logits.argmax(dim=1) == batch.labels).float()
        self.log_row(lambda: {"loss": loss.item(), "accuracy": right.mean().item(), "lr": self.rate})
        return loss

    def validation_step(self, batch: WordBatch, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        logits = self.model(self.features(batch.samples))
        name = f"val_{batch.samples.shape[1]}"
        values = {
            f"{name}_loss": F.cross_entropy(logits, batch.labels),
            f"{name}_accuracy": (logits.argmax(dim=1) == batch.labels).float().mean(),
        }
        self.log_dict(values, batch_size=len(batch.labels), on_epoch=True, on_step=False)


def hide(frames: Tensor, part: float) -> Tensor:
    """Hide up to a sixth of the frames, and of the bands, of a part of the clips (B, T, F): they get the mean."""
    batch, times, bands = frames.shape
    device = frames.device
    mean = frames.mean(dim=(1, 2), keepdim=True)
    hidden = torch.zeros(batch, times, bands, dtype=torch.bool, device=device)
    for axis, size in ((1, times), (2, bands)):
        width = (torch.rand(batch, device=device) * size / 6).ceil() * (torch.rand(batch, device=device) < part)
        start = torch.rand(batch, device=device) * (size - width)
        at = torch.arange(size, device=device)
        inside = (at >= start[:, None]) & (at < (start + width)[:, None])
        hidden |= inside[:, :, None] if axis == 1 else inside[:, None, :]
    return torch.where(hidden, mean, frames)
