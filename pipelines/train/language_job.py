"""The job of a DNA language model's recipe."""

from pathlib import Path
from typing import cast

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.data_prep.errors import DataError
from mamba_seq.data_prep.pretraining import PretrainingData
from mamba_seq.heads import LanguageModel, Model
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.folder import CURVES, METRICS
from mamba_seq.pipelines.train.job import Job
from mamba_seq.pipelines.train.language_finish import finish
from mamba_seq.pipelines.train.language_module import LanguageTraining
from mamba_seq.pipelines.train.language_recipe import LanguageRecipe
from mamba_seq.pipelines.train.memory import plan_memory
from mamba_seq.pipelines.train.plots import plot_bits


class LanguageJob(Job):
    """See `Job`."""

    what = "genomes"

    def __init__(self, recipe: LanguageRecipe) -> None:
        self.recipe = recipe
        self.data = PretrainingData(recipe.data)

    def prepare(self) -> None:
        """Pack and split the files, and foresee the memory of a step."""
        recipe = self.recipe
        try:
            self.data.setup("fit")
            self.data.training_batches()
        except DataError:
            raise
        except ValueError as error:
            raise RecipeError(f"the recipe's data section cannot be used: {error}") from error
        lengths = sorted({*recipe.data.length_warmup, recipe.data.length})
        tokens = recipe.micro_batch_tokens or recipe.data.batch_tokens
        self.memory = plan_memory(
            self.model_config(), recipe, lengths, tokens, may_split=recipe.micro_batch_tokens is None
        )

    def splits(self) -> str:
        """Return the table of every stretch of training, validation and test."""
        return self.data.splits.to_tsv()

    def model_config(self) -> ModelConfig:
        """Return the config of the language model."""
        return ModelConfig(
            task="language-model",
            backbone=self.recipe.model,
            vocab_size=DNA.size,
            alphabet=DNA.name,
            context=self.recipe.data.length,
        )

    def training(self, model: Model) -> LanguageTraining:
        """Return the training step."""
        recipe, language = self.recipe, cast("LanguageModel", model)
        language.backbone.recompute = self.memory.recompute
        language.backbone.gradient_checkpointing = recipe.gradient_checkpointing
        return LanguageTraining(
            language,
            recipe.optim,
            recipe.log_every,
            recipe.seed,
            recipe.data.soft_masked_weight,
            self.memory.micro_batch_tokens,
        )

    def draw_curves(self, run: Path) -> None:
        """Draw bits per base."""
        plot_bits(run / METRICS, run / CURVES, "base")

    def finish(self, model: Model, run: Path, steps: int, minutes: float) -> Path:
        """Save the model, measure its bits per base on the test, write its card."""
        return finish(cast("LanguageModel", model), self.recipe, self.data, run, steps, minutes)
