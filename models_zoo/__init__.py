"""Models that come with the package, and the recipes that trained them.

A zoo name is `architecture.tag`. Each released model is a saved-model folder below `released/`, with the record of its
training in `record.json`; each recipe is a YAML file below `recipes/`; each list of genomes to download a table below
`downloads/`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_seq.errors import UnknownModelError

if TYPE_CHECKING:
    from mamba_seq.heads import Model

HERE = Path(__file__).resolve().parent
RELEASED = HERE / "released"
RECIPES = HERE / "recipes"
DOWNLOADS = HERE / "downloads"


def names() -> list[str]:
    """Return the names of the released models, sorted."""
    return sorted(config.parent.name for config in RELEASED.glob("*/config.json"))


def path(name: str) -> Path:
    """Return the folder of a released model.

    Raises:
        UnknownModelError: for a name that the zoo does not have; the message lists those it has.
    """
    if name not in names():
        raise UnknownModelError(f"no zoo model is named {name!r}; there is {', '.join(names()) or 'none'}")
    return RELEASED / name


def describe(name: str) -> dict[str, Any]:
    """Return the record of a released model: data, licence, recipe, hardware, results."""
    record: dict[str, Any] = json.loads((path(name) / "record.json").read_text(encoding="utf-8"))
    return record


def load(name: str, device: str = "cpu") -> "Model":
    """Load a released model, ready for prediction."""
    from mamba_seq.loading import from_pretrained

    return from_pretrained(path(name), device)


def recipes() -> list[str]:
    """Return the names of the recipes, sorted."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        UnknownModelError: for a name that has no recipe; the message lists those that have.
    """
    if name not in recipes():
        raise UnknownModelError(f"no recipe is named {name!r}; there is {', '.join(recipes()) or 'none'}")
    return RECIPES / f"{name}.yaml"


def downloads() -> list[str]:
    """Return the names of the download lists, sorted."""
    return sorted(file.stem for file in DOWNLOADS.glob("*.tsv"))


def download_path(name: str) -> Path:
    """Return the file of a download list.

    Raises:
        UnknownModelError: for a name that has no list; the message lists those that have.
    """
    if name not in downloads():
        raise UnknownModelError(f"no download list is named {name!r}; there is {', '.join(downloads()) or 'none'}")
    return DOWNLOADS / f"{name}.tsv"
