"""What the loop asks of a recipe, whatever it trains: its data, its model, its step, and what follows the last step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mamba_seq.config import ModelConfig
from mamba_seq.heads import Model
from mamba_seq.pipelines.train.module import Training


class Job(Protocol):
    """A recipe at work. The jobs inherit from this, for what few of them do: `draw` and `grow`."""

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

    def draw(self, model: Model) -> None:
        """Draw what a model that starts from no other's weights starts with, where its own draw will not do."""
        return  # a protocol's method with nothing but words would be abstract

    def grow(
        self,
        model: Model,
        run: Path,
        fit: Callable[..., int],
        part_bytes: int | None,
        max_minutes: float | None,
        progress: bool,
    ) -> bool:
        """Train what comes before the run, and leave its weights in the model; a run without first stages has nothing.

        Args:
            model: in the weights that it starts with.
            run: folder of the run.
            fit: `mamba_seq.pipelines.train.run.fit`.
            part_bytes: split checkpoints into files of at most so many bytes.
            max_minutes: stop after so long.
            progress: draw a progress bar.

        Returns:
            Whether all of it is done: False when the time was up before.
        """
        return True

    def training(self, model: Model) -> Training:
        """Return the training step of a model."""
        ...

    def draw_curves(self, run: Path) -> None:
        """Draw the curves of the run's log."""
        ...

    def finish(self, model: Model, run: Path, steps: int, minutes: float) -> Path:
        """Save the model, measure it, write its card; return its folder."""
        ...
