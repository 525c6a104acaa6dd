"""The job of a waveform model's recipe."""

from pathlib import Path
from typing import cast

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.audio import AudioData
from mamba_seq.data_prep.errors import DataError
from mamba_seq.data_prep.splits import Split
from mamba_seq.heads import LanguageModel, Model
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.audio_finish import finish
from mamba_seq.pipelines.train.audio_module import WaveformTraining
from mamba_seq.pipelines.train.audio_recipe import AudioRecipe
from mamba_seq.pipelines.train.folder import CURVES, METRICS
from mamba_seq.pipelines.train.job import Job
from mamba_seq.pipelines.train.plots import plot_bits


class AudioJob(Job):
    """See `Job`."""

    what = "sound files"

    def __init__(self, recipe: AudioRecipe) -> None:
        self.recipe = recipe
        self.data = AudioData(recipe.data)

    def prepare(self) -> None:
        """Find, read and split the sound files."""
        try:
            self.data.setup("fit")
            self.data.training_batches()
        except DataError:
            raise
        except ValueError as error:
            raise RecipeError(f"the recipe's data section cannot be used: {error}") from error
        for split, files in (("validation", "validation_files"), ("test", "test_files")):
            if not self.data.splits.of(cast("Split", split)):
                raise RecipeError(
                    f"no sound file is held out for {split}, and nothing would be known of the model; set "
                    f"data.{split}_fraction above 0, or name some in data.{files}"
                )
        if self.recipe.conditional and not self.data.labels:
            raise RecipeError(
                "the recipe is conditional, but its sound files have no classes; set data.folder_labels, or "
                "conditional to false"
            )

    def splits(self) -> str:
        """Return the table of the files of training, validation and test."""
        return self.data.splits.to_tsv()

    def model_config(self) -> ModelConfig:
        """Return the config of the language model of levels."""
        return ModelConfig(
            task="language-model",
            backbone=self.recipe.model,
            vocab_size=self.data.codec.levels,
            codec=self.data.codec.name,
            sample_rate=self.recipe.data.sample_rate,
            labels=self.data.labels if self.recipe.conditional else [],
            context=self.recipe.data.length,
            embedding=self.recipe.embedding,
            tie_embeddings=False,
            label_dropout=self.recipe.data.label_dropout,
            guidance=self.recipe.guidance,
        )

    def training(self, model: Model) -> WaveformTraining:
        """Return the training step."""
        recipe, waveform = self.recipe, cast("LanguageModel", model)
        waveform.backbone.gradient_checkpointing = recipe.gradient_checkpointing
        return WaveformTraining(waveform, recipe.optim, recipe.log_every, recipe.seed, self.data.codec.silence)

    def draw_curves(self, run: Path) -> None:
        """Draw bits per sample."""
        plot_bits(run / METRICS, run / CURVES)

    def finish(self, model: Model, run: Path, steps: int, minutes: float) -> Path:
        """Save the model, measure its bits per sample on the test, write its card."""
        return finish(cast("LanguageModel", model), self.recipe, self.data, run, steps, minutes)
