"""The training step of a waveform model: cross-entropy of each level given those before it, in bits per sample.

What a clip's class says about it is some bits of tens of thousands, so the likelihood alone teaches a model little of
it. A contrast teaches that and nothing else: clips are to be likelier under their own class than under another
(maximum mutual information: Bahl et al., ICASSP 1986, of recognisers of speech).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.data_prep.audio_clips import IGNORED, AudioBatch, inputs_and_targets
from mamba_seq.data_prep.codecs import bits_per_sample
from mamba_seq.heads import LanguageModel
from mamba_seq.heads.losses import cross_entropy
from mamba_seq.padding import at_least_float32
from mamba_seq.pipelines.train.module import Training
from mamba_seq.pipelines.train.recipe_fields import OptimConfig

SHARPNESS = 0.1
"""Of the contrast, a nat: a clip that is by 30 nats likelier under its own class has little more to teach."""


class WaveformTraining(Training):
    """A `LanguageModel` of levels in training.

    Args:
        model: conditional if its config has labels.
        optim: optimiser and schedule.
        log_every: steps between two rows of the log.
        seed: of dropout, and of the classes that a contrast draws.
        silence: the level before a clip's first sample.
        contrast: weight of the contrast between classes, 0 for none; takes twice the time.
    """

    def __init__(
        self,
        model: LanguageModel,
        optim: OptimConfig,
        log_every: int,
        seed: int,
        silence: int,
        contrast: float = 0.0,
    ) -> None:
        super().__init__(model, optim, log_every, seed)
        self.silence = silence
        self.contrast = contrast

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        """Return the mean negative log-likelihood of a batch's samples, in nats, and the contrast if there is one."""
        if self.contrast:
            return self._contrasted(batch)
        self.seed_step()
        loss = self._loss(batch)
        self.log_row(lambda: {"loss": loss.item(), "bits": bits_per_sample(loss.item()), "lr": self.rate})
        return loss

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Log the bits per sample of a batch, averaged over the samples of all clips; with a contrast, who is told."""
        samples = max(1, int(batch.lengths.sum()))
        if self.contrast:
            inputs, targets = inputs_and_targets(batch, self.silence)
            next_one = (batch.labels + 1) % len(self.model.config.labels)
            own, other = (self._log_likelihood(inputs, targets, each) for each in (batch.labels, next_one))
            self.log("val_told", (own > other).float().mean(), batch_size=len(own), on_epoch=True)
            loss = -own.sum() / samples
        else:
            loss = self._loss(batch)
        self.log("val_bits", bits_per_sample(1.0) * loss, batch_size=samples, on_epoch=True)

    def _contrasted(self, batch: AudioBatch) -> Tensor:
        """Return the loss with the contrast: softplus of how much likelier another class is, of clips with a class.

        It is a mean over samples too, so that at a weight of 1 a clip that is taken for another class moves the
        parameters as far away from its likelihood under that as towards its likelihood under its own.
        """
        self.seed_step()
        inputs, targets = inputs_and_targets(batch, self.silence)
        others = other_classes(batch.labels, len(self.model.config.labels))
        likelihoods = []
        for labels in (batch.labels, others):
            self.seed_step()  # the same dropout for both, or its noise is all that they differ by
            likelihoods.append(self._log_likelihood(inputs, targets, labels))
        own, other = likelihoods
        samples = (targets != IGNORED).sum().clamp(min=1)
        known = batch.labels >= 0
        likelihood = -own.sum() / samples
        margins = SHARPNESS * (own - other)
        contrast = F.softplus(-margins).masked_fill(~known, 0).sum() / (SHARPNESS * samples)
        loss = likelihood + self.contrast * contrast
        self.log_row(
            lambda: {
                "loss": loss.item(),
                "bits": bits_per_sample(likelihood.item()),
                "told": ((margins > 0) & known).sum().item() / max(1, int(known.sum())),
                "lr": self.rate,
            }
        )
        return loss

    def _loss(self, batch: AudioBatch) -> Tensor:
        inputs, targets = inputs_and_targets(batch, self.silence)
        logits = self.model(inputs, labels=batch.labels if self.model.config.labels else None)
        return cross_entropy(logits, targets)

    def _log_likelihood(self, inputs: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Return the log-likelihood of each clip (B,), in nats, given its class."""
        logits = at_least_float32(self.model(inputs, labels=labels)).flatten(0, 1)
        each = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none")
        return -each.view(targets.shape).sum(dim=1)


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Draw a class (B,) other than each of the labels (B,), every other one as often; of no class, -1, none."""
    steps = torch.randint(1, classes, labels.shape, device=labels.device)
    return torch.where(labels >= 0, (labels + steps) % classes, labels)
