"""The job of a synthetic task's recipe."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from mamba_seq.config import ModelConfig
from mamba_seq.heads import LanguageModel, Model
from mamba_seq.pipelines.train.folder import CURVES, METRICS
from mamba_seq.pipelines.train.job import Job
from mamba_seq.pipelines.train.synthetic_finish import finish, plot_accuracies
from mamba_seq.pipelines.train.synthetic_module import SyntheticData, SyntheticTraining
from mamba_seq.pipelines.train.synthetic_recipe import SyntheticRecipe
from mamba_seq.pipelines.train.synthetic_stages import grow


class SyntheticJob(Job):
    """See `Job`."""

    what = "samples"

    def __init__(self, recipe: SyntheticRecipe) -> None:
        self.recipe = recipe
        self.data = SyntheticData(recipe.data.batch_size, recipe.validation)

    def prepare(self) -> None:
        """Do nothing: samples are made when they are needed."""

    def splits(self) -> str:
        """Return the table of the splits: which numbers the samples have, and from which seed they are drawn."""
        recipe = self.recipe
        rows = ["split\tseed\tlength\tsamples"]
        rows += [f"train\t{recipe.data.seed}\t{stage.length}\tunlimited" for stage in recipe.stages]
        rows += [f"train\t{recipe.data.seed}\t{recipe.data.length}\tunlimited"]
        for split, lengths in (("validation", recipe.validation), ("test", recipe.evaluation)):
            rows += [f"{split}\t{recipe.data.seed}\t{n}\t{lengths.count(n)}" for n in lengths.lengths]
        return "\n".join(rows) + "\n"

    def model_config(self) -> ModelConfig:
        """Return the config of the model: the answer is the next token."""
        return ModelConfig(
            task="language-model",
            backbone=self.recipe.model,
            vocab_size=self.recipe.data.vocab_size,
            context=self.recipe.data.length,
            tie_embeddings=False,
        )

    def draw(self, model: Model) -> None:
        """Draw the embedding, as wide as the recipe says."""
        torch.nn.init.normal_(cast("torch.nn.Embedding", model.embedding).weight, std=self.recipe.embedding_std)

    def grow(
        self,
        model: Model,
        run: Path,
        fit: Callable[..., int],
        part_bytes: int | None,
        max_minutes: float | None,
        progress: bool,
    ) -> bool:
        """Train the stages of shorter lengths."""
        return grow(self.recipe, cast("LanguageModel", model), run, fit, part_bytes, max_minutes, progress)

    def training(self, model: Model) -> SyntheticTraining:
        """Return the training step."""
        return SyntheticTraining(cast("LanguageModel", model), self.recipe)

    def draw_curves(self, run: Path) -> None:
        """Draw the loss, and the accuracy by length."""
        plot_accuracies(run / METRICS, run / CURVES)

    def finish(self, model: Model, run: Path, steps: int, minutes: float) -> Path:
        """Save the model, measure it at all lengths, write its card."""
        return finish(cast("LanguageModel", model), self.recipe, run, steps, minutes)
