"""The step of a fine-tuning run, its validation, and the end when validation improves no more."""

import copy
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from mamba_seq.errors import ModelError
from mamba_seq.heads import Model
from mamba_seq.pipelines.finetune.batches import IGNORED, Batch
from mamba_seq.pipelines.finetune.dataset import Dataset
from mamba_seq.pipelines.finetune.predictions import split_outputs
from mamba_seq.pipelines.finetune.recipe import FinetuneRecipe
from mamba_seq.pipelines.finetune.scores import quick_score
from mamba_seq.pipelines.train.module import Training
from mamba_seq.pipelines.train.recipe_fields import OptimConfig
from mamba_seq.saving import write_whole


class FinetuneTraining(Training):
    """A model of any task in training."""

    def __init__(self, model: Model, recipe: FinetuneRecipe, dataset: Dataset, optim: OptimConfig) -> None:
        super().__init__(model, optim, recipe.log_every, recipe.seed)
        self.dataset = dataset
        self.recipe = recipe
        if recipe.layer_decay != 1 and not hasattr(model.backbone, "layers"):
            raise ModelError(
                f"layer_decay is {recipe.layer_decay}, and the saved model is a U-Net, whose levels are no stack of "
                "blocks; leave it out, or give backbone_rate for all of them"
            )
        self.averaged: nn.Module | None = None
        if recipe.ema:
            self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.class_weight: Tensor | None = None
        if recipe.class_weights and dataset.targets.task == "sequence-classification":
            counts = np.bincount(
                [dataset.targets.values[i] for i in dataset.of("train")], minlength=len(dataset.targets.labels)
            )
            self.class_weight = torch.tensor(counts.sum() / np.maximum(1, counts) / len(counts), dtype=torch.float32)
        self._outputs: dict[int, Any] = {}
        self._losses: list[tuple[float, int]] = []

    @property
    def tested(self) -> Any:
        """The model that is validated and saved: the running average, where there is one."""
        return self.model if self.averaged is None else self.averaged

    def rate_factor(self, name: str) -> float:
        """Return the factor of a parameter's learning rate: less for what was taken over, and less the deeper it is."""
        recipe, name = self.recipe, name.removeprefix("model.")
        if not name.startswith(("backbone.", "embedding.")) or recipe.start is None:
            return 1.0
        blocks = len(getattr(self.model.backbone, "layers", ()))
        # the embedding lies below all blocks, the last norm above them
        found = re.match(r"backbone\.layers\.(\d+)\.", name)
        below = blocks - 1 - int(found[1]) if found else blocks * name.startswith("embedding.")
        factor: float = recipe.backbone_rate * recipe.layer_decay**below
        return factor

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        task, model = self.dataset.targets.task, self.model
        smoothing = self.recipe.label_smoothing if self.training else 0.0
        if task == "sequence-classification":
            weight = self.class_weight if self.training else None
            return model.loss(outputs, batch.targets, class_weight=weight, label_smoothing=smoothing)
        if task in ("multi-label", "sequence-regression"):
            return model.loss(outputs, batch.targets)
        if task == "token-classification":
            return model.loss(outputs, batch.targets, batch.mask, label_smoothing=smoothing)
        if task == "ctc":
            return model.loss(outputs, batch.targets, batch.mask, zero_infinity=True)
        if task == "language-model":
            return next_token_loss(outputs, batch)
        return model.loss(outputs, batch.targets, batch.mask)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        self.seed_step()
        batch = Batch(*batch)
        loss = self.loss(self.model(batch.inputs, mask=mask_of(batch)), batch)
        self.log_row(lambda: {"loss": loss.item(), "lr": self.rate})
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        """Move the running average on; its memory grows with the steps, so that the random start is soon forgotten."""
        if self.averaged is None:
            return
        decay = min(self.recipe.ema, self.global_step / (self.global_step + 10))
        with torch.no_grad():
            # one call for all of them: on a GPU a call each would take longer than the arithmetic
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Keep the outputs of a batch."""
        batch = Batch(*batch)
        outputs = self.tested(batch.inputs, mask=mask_of(batch))
        self._losses.append((self.loss(outputs, batch).item(), len(batch.numbers)))
        rows = split_outputs(self.tested, outputs, batch.mask, self.dataset.targets.task, batch.inputs)
        self._outputs.update(zip(batch.numbers, rows, strict=True))

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the score of all validation examples."""
        numbers = sorted(self._outputs)
        loss = float(np.average([x for x, _ in self._losses], weights=[n for _, n in self._losses]))
        values = [self.dataset.targets.values[i] for i in numbers]
        found = quick_score(self.dataset.targets, [self._outputs[i] for i in numbers], values)
        self._outputs, self._losses = {}, []
        self.log_dict({"val_loss": loss, **{f"val_{k}": v for k, v in found.items()}})
        self.score = -loss
        if found and self.recipe.monitor == "score":
            name, first = next(iter(found.items()))
            # an error is better when smaller; the loss decides between equals
            self.score = (-first if "error_rate" in name else first) - 1e-6 * loss


def mask_of(batch: Batch) -> Tensor | None:
    """Return the mask of a batch, or None when nothing is padded."""
    return batch.mask if batch.padded else None


def next_token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the token after each position."""
    targets = batch.inputs[:, 1:].masked_fill(~batch.mask[:, 1:], IGNORED)
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


class EarlyStop(Callback):
    """Keeps the weights of the best validation in a file, and ends training when none has been better for a while."""

    def __init__(self, path: Path, patience: int) -> None:
        self.path = path
        self.patience = patience
        self.best: float | None = None
        self.since = 0

    @property
    def ended(self) -> bool:
        """Whether training has been ended."""
        return self.since >= self.patience

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take no step more in a run that was killed after its end: a further validation might be better."""
        if self.ended:
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compare this validation with the best; called before the checkpoint is written."""
        score = pl_module.score
        if self.best is None or score > self.best:
            from safetensors.torch import save

            self.best, self.since = score, 0
            tensors = {name: t.detach().cpu().contiguous() for name, t in pl_module.tested.state_dict().items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, save(tensors))
        else:
            self.since += 1
        if self.ended:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps of this callback."""
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what the checkpoint kept."""
        self.best, self.since = state_dict["best"], state_dict["since"]
