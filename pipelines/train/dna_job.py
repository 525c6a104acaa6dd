"""The job of a DNA classifier's recipe."""

from pathlib import Path
from typing import cast

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.data_prep.dna import GenomeData
from mamba_seq.data_prep.errors import DataError
from mamba_seq.data_prep.genome_windows import EvaluationWindows
from mamba_seq.data_prep.splits import Splits
from mamba_seq.heads import Model, SequenceClassifier
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.finish import finish
from mamba_seq.pipelines.train.folder import CURVES, METRICS
from mamba_seq.pipelines.train.job import Job
from mamba_seq.pipelines.train.memory import plan_memory
from mamba_seq.pipelines.train.module import ClassifierTraining
from mamba_seq.pipelines.train.plots import plot_curves
from mamba_seq.pipelines.train.recipe import Recipe


class DnaJob(Job):
    """See `Job`."""

    what = "genomes"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = GenomeData(recipe.data)
        self.tests: list[EvaluationWindows] = []

    def prepare(self) -> None:
        """Read and split the genomes, and draw the test windows."""
        evaluation = self.recipe.evaluation
        try:
            self.data.setup("fit")
            self.data.training_batches()
            self.data.val_dataloader()
            for length in evaluation.lengths:
                self.data.evaluation_windows("train", length, 1)  # for the baseline
            self.tests = [
                self.data.evaluation_windows("test", length, count)
                for length, count in zip(evaluation.lengths, evaluation.windows_per_class, strict=True)
            ]
        except DataError:
            raise
        except ValueError as error:
            raise RecipeError(f"the recipe's data section cannot be used: {error}") from error
        data = self.recipe.data
        lengths = sorted({*data.lengths, *data.length_warmup})
        if self.recipe.evidence_growth is not None:
            lengths = sorted({min(length, self.recipe.context) for length in lengths})
        self.memory = plan_memory(self.model_config(), self.recipe, lengths, data.batch_tokens, may_split=False)

    def splits(self) -> str:
        """Return the table of every stretch of training, validation and test, those of separate test genomes too."""
        kept = tuple(i for i in self.data.splits.intervals if i.split != "test")
        return Splits(kept + tuple(self.data.test_intervals)).to_tsv()

    def model_config(self) -> ModelConfig:
        """Return the config of the classifier.

        Raises:
            RecipeError: when the recipe's taxonomy is that of other labels.
        """
        taxonomy, labels = self.recipe.taxonomy, self.data.labels
        if taxonomy is not None and set(taxonomy) != set(labels):
            odd = min(set(taxonomy) ^ set(labels))
            raise RecipeError(
                f"the recipe's taxonomy and the class folders differ in {odd!r}; give every folder a lineage"
            )
        return ModelConfig(
            task="sequence-classification",
            backbone=self.recipe.model,
            vocab_size=len(DNA.symbols),
            alphabet=DNA.name,
            labels=labels,
            context=self.recipe.context,
            max_windows=self.recipe.evaluation.max_windows,
            pooling=self.recipe.pooling,
            complement=DNA.complement_codes[: DNA.size].tolist() if self.recipe.equivariant else [],
            taxonomy=taxonomy,
        )

    def training(self, model: Model) -> ClassifierTraining:
        """Return the training step."""
        recipe = self.recipe
        model.backbone.recompute = self.memory.recompute
        model.backbone.gradient_checkpointing = recipe.gradient_checkpointing
        training = ClassifierTraining(cast("SequenceClassifier", model), recipe.optim, recipe.log_every, recipe.seed)
        if recipe.evidence_growth is not None:
            training.read_in_windows(recipe.context, recipe.evidence_growth)
        return training

    def draw_curves(self, run: Path) -> None:
        """Draw loss and accuracy."""
        plot_curves(run / METRICS, run / CURVES)

    def finish(self, model: Model, run: Path, steps: int, minutes: float) -> Path:
        """Save the model, measure it and the baseline, write card and pictures."""
        return finish(cast("SequenceClassifier", model), self.recipe, self.data, self.tests, run, steps, minutes)
