"""What the loop asks of a recipe, whatever it trains: its data, its model, its step, and what follows the last step."""

from pathlib import Path
from typing import Any, Protocol

from mamba_seq.config import ModelConfig
from mamba_seq.heads import Model
from mamba_seq.pipelines.train.module import Training


class Job(Protocol):
    """A recipe at work."""

    data: Any
    """The Lightning datamodule, with a `start_step` that is set before its loaders are asked for."""
    what: str
    """What the data are, for messages: "genomes"."""

    def prepare(self) -> None:
        """Read and split the data: what cannot be had is refused before anything is written.

        Raises:
            DataError: for data that cannot be read, or are too few.
            RecipeError: for a recipe that asks of the data what they cannot give.
        """
        ...

    def splits(self) -> str:
        """Return the table of what is held out."""
        ...

    def model_config(self) -> ModelConfig:
        """Return the config of the model that the recipe trains."""
        ...

    def training(self, model: Model) -> Training:
        """Return the training step of a model."""
        ...

    def draw_curves(self, run: Path) -> None:
        """Draw the curves of the run's log."""
        ...

    def finish(self, model: Model, run: Path, steps: int, minutes: float) -> Path:
        """Save the model, measure it, write its card; return its folder."""
        ...
