"""The training log: a table of step, name and value that a resumed run goes on writing."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger

from mamba_seq.saving import write_whole


class MetricsFile(Logger):
    """The training log as a table of step, name and value: rows are appended, so a resumed run keeps its history.

    Args:
        path: of the table; rows of `start_step` and later are thrown away, for they come again.
        start_step: number of steps that a resumed run has behind it.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        super().__init__()
        self.path = path
        self.trainer: L.Trainer | None = None
        kept = [row for row in _rows(path) if int(row[0]) < start_step] if path.is_file() else []
        text = io.StringIO()
        csv.writer(text).writerows([("step", "name", "value"), *kept])
        write_whole(path, text.getvalue().encode())

    @property
    def name(self) -> str:
        """Name for Lightning's folders; unused."""
        return "metrics"

    @property
    def version(self) -> int:
        """Version for Lightning's folders; unused."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `recipe.yaml` holds them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write what Lightning gathered (the validation) under the last step that is done.

        That is asked of `trainer`, where it is set: Lightning's own `step` is one too high after a run was stopped.
        """
        last = step or 0 if self.trainer is None else self.trainer.global_step - 1
        self.write(last, {name: value for name, value in metrics.items() if name != "epoch"})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a row a value."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, name, _digits(value)) for name, value in values.items())


def _digits(value: float) -> str:
    """Write six digits, but all of a whole number: windows of 1,048,576 bases are not of 1.04858e+06."""
    return f"{value:.6g}" if value % 1 else f"{value:.0f}"


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Read the rows of a `metrics.csv`: step, name, value."""
    return [(int(step), name, float(value)) for step, name, value in _rows(path)]


def _rows(path: Path) -> list[tuple[str, str, str]]:
    """Return the rows; a last line without an end was cut off when the run was killed, and is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        whole = [line for line in file if line.endswith("\n")]
    return [(row["step"], row["name"], row["value"]) for row in csv.DictReader(whole)]
