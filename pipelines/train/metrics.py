"""The training log: a table of step, name and value that a resumed run goes on writing."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class MetricsFile(Logger):
    """The training log as a table of step, name and value: rows are appended, so a resumed run keeps its history."""

    def __init__(self, path: Path, start_step: int) -> None:
        super().__init__()
        self.path = path
        kept = [row for row in _rows(path) if int(row[0]) < start_step] if path.is_file() else []
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("step", "name", "value"), *kept])

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
        """Append a row a metric."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                (step, name, f"{value:.6g}") for name, value in metrics.items() if name != "epoch"
            )


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Read the rows of a `metrics.csv`: step, name, value."""
    return [(int(step), name, float(value)) for step, name, value in _rows(path)]


def _rows(path: Path) -> list[tuple[str, str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["step"], row["name"], row["value"]) for row in csv.DictReader(file)]
