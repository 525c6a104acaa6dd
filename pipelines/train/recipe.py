"""Recipes: everything that decides what a training run does, as typed fields read from YAML.

One docstring under a field serves the reader, the editor and `--help`. Dotted options override single fields:
`--optim.lr 1e-3`. A misspelt key is refused.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mamba_seq.config import MambaConfig
from mamba_seq.data_prep.dna import GenomeDataConfig
from mamba_seq.data_prep.windows import MAX_WINDOWS
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.audio_recipe import AudioRecipe
from mamba_seq.pipelines.train.language_recipe import LanguageRecipe
from mamba_seq.pipelines.train.recipe_fields import BaseRecipe, DnaRecipe, OptimConfig
from mamba_seq.pipelines.train.synthetic_recipe import SyntheticRecipe
from mamba_seq.pipelines.train.word_recipe import WordRecipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = [
    "AudioRecipe",
    "BaseRecipe",
    "EvaluationConfig",
    "LanguageRecipe",
    "OptimConfig",
    "Recipe",
    "SyntheticRecipe",
    "WordRecipe",
    "read_recipe",
    "recipe_parser",
]


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig:
    """What the finished model is measured on: windows of the held-out test regions."""

    lengths: list[int] = dataclasses.field(default_factory=lambda: [1000, 10000, 100000])
    """Lengths of the test windows, in bases."""
    windows_per_class: list[int] = dataclasses.field(default_factory=lambda: [400, 200, 20])
    """Number of windows a class, one figure for each length."""
    max_windows: int = MAX_WINDOWS
    """The most windows of `context` that a test window is read in, evenly spaced; 0 for all. The model reads records so
    by default, whoever uses it."""
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
class Recipe(DnaRecipe):
    """A training run of a DNA classifier, from folders of genomes to a saved model."""

    task: Literal["sequence-classification"] = "sequence-classification"
    """Tells this recipe from one of a language model."""
    taxonomy: dict[str, str] | None = None
    """For each label its lineage, such as "2:D:Bacteria;562:S:Escherichia coli" (taxonomy id, rank code, name)."""
    model: MambaConfig
    """The backbone."""
    pooling: Literal["mean", "last", "max"] = "mean"
    """How the classifier turns positions into one vector."""
    equivariant: bool = False
    """Read both strands of every window with the same weights and pool them together: the probabilities of a sequence
    are then those of its reverse complement, for twice the time."""
    context: int = 8192
    """Length of a window at prediction, in bases."""
    evidence_growth: float | None = None
    """Train on what is longer than `context` as it will be read: in windows of `context` whose scores are averaged. The
    average counts their number to this power, 0 to 1, so that much evidence may say more than little. Null reads it
    whole."""
    refit_windows: int = 0
    """Training windows a class, of each length of data, that the head is fitted to once more when training is over,
    unmutated and read as they will be; validation windows choose how far. 0 keeps the head as it was trained."""
    data: GenomeDataConfig
    """Genomes, splits and windows."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """Test windows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1:
            raise ValueError(f"context is {self.context}, expected at least 1")
        if self.refit_windows < 0 or (self.refit_windows and self.pooling == "max"):
            raise ValueError(
                f"refit_windows is {self.refit_windows} and pooling {self.pooling}, expected 0 or more, 0 with max, "
                "which is no average of windows"
            )
        if self.evidence_growth is not None:
            self._check_evidence(self.evidence_growth)

    def _check_evidence(self, growth: float) -> None:
        if not 0 <= growth <= 1:
            raise ValueError(f"evidence_growth is {growth}, expected 0 to 1, or null")
        validation = self.data.validation_lengths or []
        for length in [*self.data.lengths, *self.data.length_warmup, *validation]:
            if length > self.context and length % self.context:
                raise ValueError(
                    f"evidence_growth is {growth} and a length of data is {length}, expected at most context = "
                    f"{self.context}, or a multiple of it"
                )


KINDS: dict[str, type[BaseRecipe]] = {
    "dna": Recipe,
    "audio": AudioRecipe,
    "words": WordRecipe,
    "synthetic": SyntheticRecipe,
}
"""What a recipe's `kind` may be; one that says nothing is of DNA."""
DNA_TASKS: dict[str, type[BaseRecipe]] = {"sequence-classification": Recipe, "language-model": LanguageRecipe}
"""What the `task` of a recipe of DNA may be; one that says nothing is of a classifier."""


def recipe_parser(kind: type[BaseRecipe] = Recipe) -> "ArgumentParser":
    """Build the parser that reads a recipe of a kind and its dotted overrides."""
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
    parser.add_class_arguments(kind, nested_key=None)
    return parser


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Any, str]:
    """Read a recipe file with overrides such as ["--optim.lr", "1e-3"]; `--print_config` prints it and exits.

    Returns:
        The recipe, a `Recipe`, `LanguageRecipe`, `AudioRecipe`, `WordRecipe` or `SyntheticRecipe` as its `kind` and
        `task` say, and the YAML text of all its fields.

    Raises:
        RecipeError: for a value out of its range. A field of another name or type ends the process with exit code 2,
            as wrong usage does.
    """
    kind = _kind(path)
    parser = recipe_parser(kind)
    fields = parser.parse_args([f"--config={path}", *overrides])
    text: str = parser.dump(fields)
    try:
        made: Any = parser.instantiate(fields)
        return kind(**{field.name: made[field.name] for field in dataclasses.fields(kind)}), text
    except ValueError as error:
        raise RecipeError(f"{path} with its overrides is no recipe: {error}") from error


def _kind(path: Path) -> type[BaseRecipe]:
    """Return what a recipe file says that it is: the parser must know before it reads the file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    kind = _said(path, text, "kind", "dna", KINDS)
    return DNA_TASKS[_said(path, text, "task", "sequence-classification", DNA_TASKS)] if kind == "dna" else KINDS[kind]


def _said(path: Path, text: str, field: str, default: str, known: dict[str, type[BaseRecipe]]) -> str:
    found = re.search(rf"""^{field}:\s*['"]?([^\s'"#]+)""", text, re.MULTILINE)
    value = found[1] if found is not None else default
    if value not in known:
        raise RecipeError(f"{path} is a recipe of {field} {value!r}, expected {' or '.join(known)}")
    return value
