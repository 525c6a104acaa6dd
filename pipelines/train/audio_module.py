"""The training step of a waveform model: cross-entropy of each level given those before it, in bits per sample."""

from torch import Tensor

from mamba_seq.data_prep.audio_clips import AudioBatch, inputs_and_targets
from mamba_seq.data_prep.codecs import bits_per_sample
from mamba_seq.heads import LanguageModel
from mamba_seq.heads.losses import cross_entropy
from mamba_seq.pipelines.train.module import Training
from mamba_seq.pipelines.train.recipe_fields import OptimConfig


class WaveformTraining(Training):
    """A `LanguageModel` of levels in training.

    Args:
        model: conditional if its config has labels.
        optim: optimiser and schedule.
        log_every: steps between two rows of the log.
        seed: of dropout.
        silence: the level before a clip's first sample.
    """

    def __init__(self, model: LanguageModel, optim: OptimConfig, log_every: int, seed: int, silence: int) -> None:
        super().__init__(model, optim, log_every, seed)
        self.silence = silence

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        """Return the mean negative log-likelihood of a batch's samples, in nats."""
        self.seed_step()
        loss = self._loss(batch)
        self.log_row(lambda: {"loss": loss.item(), "bits": bits_per_sample(loss.item()), "lr": self.rate})
        return loss

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Log the bits per sample of a batch, averaged over the samples of all clips."""
        samples = int(batch.lengths.sum())
        self.log("val_bits", bits_per_sample(1.0) * self._loss(batch), batch_size=max(1, samples), on_epoch=True)

    def _loss(self, batch: AudioBatch) -> Tensor:
        inputs, targets = inputs_and_targets(batch, self.silence)
        logits = self.model(inputs, labels=batch.labels if self.model.config.labels else None)
        return cross_entropy(logits, targets)
