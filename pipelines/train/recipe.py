"""Recipes: everything that decides what a training run does, as typed fields read from YAML.

One docstring under a field serves the reader, the editor and `--help`. Dotted options override single fields:
`--optim.lr 1e-3`. A misspelt key is refused.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mamba_seq.config import MambaConfig
from mamba_seq.data_prep.dna import GenomeDataConfig
from mamba_seq.data_prep.windows import MAX_WINDOWS
from mamba_seq.pipelines.errors import RecipeError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclasses.dataclass(kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine to `min_lr` (Mamba, appendix E.3)."""

    lr: float = 2e-3
    """Largest learning rate, reached after the warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the last step."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    steps: int = 10000
    """Steps in all."""
    minutes: float | None = None
    """Minutes of training that the schedule is fitted to instead of `steps`, which then only bound it: the rate falls
    as they pass, and the run ends with them. No such run can be repeated step by step."""
    weight_decay: float = 0.1
    """Weight decay of matrices; vectors, norms, A_log and D have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    next_token_weight: float = 0.0
    """Weight of an auxiliary loss, the next token's cross-entropy at every position, read off by a matrix that only
    training has."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"optim.steps is {self.steps}, expected at least 1")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"optim.warmup_steps is {self.warmup_steps}, expected 0 to optim.steps = {self.steps}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"optim.minutes is {self.minutes}, expected above 0, or null for a schedule of steps")
        if not self.lr > 0:
            raise ValueError(f"optim.lr is {self.lr}, expected above 0")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.min_lr is {self.min_lr}, expected 0 to optim.lr = {self.lr}")
        if not self.grad_clip > 0:
            raise ValueError(f"optim.grad_clip is {self.grad_clip}, expected above 0; inf clips nothing")
        for name in ("weight_decay", "next_token_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}, expected 0 or more, below 1")


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig:
    """What the finished model is measured on: windows of the held-out test regions."""

    lengths: list[int] = dataclasses.field(default_factory=lambda: [1000, 10000, 100000])
    """Lengths of the test windows, in bases."""
    windows_per_class: list[int] = dataclasses.field(default_factory=lambda: [400, 200, 20])
    """Number of windows a class, one figure for each length."""
    max_windows: int = MAX_WINDOWS
    """The most windows of `context` that a test window is read in, evenly spaced; 0 for all."""
    calibration_windows: int = 100
    """Validation windows a class that the model is calibrated on, at every length that fits."""
    baseline_windows: int = 60
    """The fewest windows a class that the k-mer baseline is fitted on, at every length; where 1.5 million bases are
    more windows it gets so many, up to 1,500."""

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.windows_per_class):
            raise ValueError(
                f"evaluation.lengths has {len(self.lengths)} entries and evaluation.windows_per_class "
                f"{len(self.windows_per_class)}, expected one figure for each length"
            )
        for name in ("lengths", "windows_per_class"):
            figures = getattr(self, name)
            if not figures or min(figures) < 1:
                raise ValueError(f"evaluation.{name} is {figures}, expected at least one figure, each at least 1")
        if self.max_windows < 0:
            raise ValueError(f"evaluation.max_windows is {self.max_windows}, expected 0 for all, or more")
        for name in ("calibration_windows", "baseline_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}, expected at least 1")


@dataclasses.dataclass(kw_only=True)
class Recipe:
    """A training run of a DNA classifier, from folders of genomes to a saved model."""

    name: str
    """Name of the model, architecture.tag."""
    summary: str
    """One sentence for the model's card."""
    data_source: str
    """Where the data comes from, for the card."""
    data_licence: str
    """The data's licence or terms, for the card."""
    limits: str = ""
    """What the model is not good for, for the card."""
    taxonomy: dict[str, str] | None = None
    """For each label its lineage, such as "2:D:Bacteria;562:S:Escherichia coli" (taxonomy id, rank code, name)."""
    model: MambaConfig
    """The backbone."""
    pooling: Literal["mean", "last", "max"] = "mean"
    """How the classifier turns positions into one vector."""
    context: int = 8192
    """Length of a window at prediction, in bases."""
    data: GenomeDataConfig
    """Genomes, splits and windows."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """Test windows."""
    start_from: str | None = None
    """Folder of a saved model of the same sizes and labels whose weights training begins with, to train on."""
    seed: int = 0
    """Seed of the weights; the data has its own."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic: auto takes bf16 mixed precision on a GPU and float32 on a CPU."""
    val_every: int = 500
    """Steps between two validations."""
    log_every: int = 20
    """Steps between two rows of the training log."""

    def __post_init__(self) -> None:
        for name in ("context", "val_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}, expected 0 to 4294967295")


def recipe_parser() -> "ArgumentParser":
    """Build the parser that reads a recipe and its dotted overrides."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    # without a usage of its own, every mistake would be told below a page of all fields
    parser = ArgumentParser(
        prog="mamba-seq train",
        usage="mamba-seq train RECIPE -o RUN [--FIELD VALUE]...\n"
        "'mamba-seq train RECIPE -o RUN --print_config' shows every field and its value.",
        description="Fields of a recipe, all overridable.",
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="a further YAML file whose fields override the recipe's"
    )
    parser.add_class_arguments(Recipe, nested_key=None)
    return parser


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, str]:
    """Read a recipe file with overrides such as ["--optim.lr", "1e-3"]; `--print_config` prints it and exits.

    Returns:
        The recipe, and the YAML text of all its fields.

    Raises:
        RecipeError: for a value out of its range. A field of another name or type ends the process with exit code 2,
            as wrong usage does.
    """
    parser = recipe_parser()
    fields = parser.parse_args([f"--config={path}", *overrides])
    text: str = parser.dump(fields)
    try:
        made: Any = parser.instantiate(fields)
        return Recipe(**{field.name: made[field.name] for field in dataclasses.fields(Recipe)}), text
    except ValueError as error:
        raise RecipeError(f"{path} with its overrides is no recipe: {error}") from error
