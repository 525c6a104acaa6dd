"""The job of a recipe of a classifier of spoken words."""

from pathlib import Path
from typing import cast

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.errors import DataError
from mamba_seq.data_prep.mel import torchaudio
from mamba_seq.data_prep.splits import Split
from mamba_seq.data_prep.words import WordData
from mamba_seq.heads import Model, SequenceClassifier
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.folder import CURVES, METRICS
from mamba_seq.pipelines.train.job import Job
from mamba_seq.pipelines.train.plots import plot_curves
from mamba_seq.pipelines.train.word_finish import finish
from mamba_seq.pipelines.train.word_module import WordTraining
from mamba_seq.pipelines.train.word_recipe import WordRecipe


class WordJob(Job):
    """See `Job`."""

    what = "sound files"

    def __init__(self, recipe: WordRecipe) -> None:
        self.recipe = recipe
        self.data = WordData(recipe.data)

    def prepare(self) -> None:
        """Find, read and split the recordings."""
        try:
            torchaudio()
        except ImportError as error:
            raise RecipeError(str(error)) from error
        try:
            self.data.setup("fit")
        except DataError:
            raise
        except ValueError as error:
            raise RecipeError(f"the recipe's data section cannot be used: {error}") from error
        held_out: tuple[Split, ...] = ("validation", "test")
        for split in held_out:
            if not self.data.of(split):
                raise RecipeError(
                    f"no recording is held out for {split}, and nothing would be known of the model; set "
                    f"data.{split}_fraction above 0, or name some in data.{split}_files"
                )

    def splits(self) -> str:
        """Return the table of the files of training, validation and test."""
        return self.data.splits.to_tsv()

    def model_config(self) -> ModelConfig:
        """Return the config of the classifier."""
        data = self.recipe.data
        return ModelConfig(
            task="sequence-classification",
            backbone=self.recipe.model,
            input_features=self.data.features.bands,
            features=self.data.features.name,
            sample_rate=data.sample_rate,
            labels=self.data.labels,
            # in positions, which are frames here
            context=data.length // self.data.features.hop + 1,
            pooling=self.recipe.pooling,
        )

    def training(self, model: Model) -> WordTraining:
        """Return the training step."""
        recipe = self.recipe
        classifier = cast("SequenceClassifier", model)
        return WordTraining(classifier, recipe.optim, recipe.log_every, recipe.seed, self.data.features, recipe.masked)

    def draw_curves(self, run: Path) -> None:
        """Draw loss and accuracy."""
        plot_curves(run / METRICS, run / CURVES, "samples")

    def finish(self, model: Model, run: Path, steps: int, minutes: float) -> Path:
        """Save the model, measure it, write card and pictures."""
        return finish(cast("SequenceClassifier", model), self.recipe, self.data, run, steps, minutes)
