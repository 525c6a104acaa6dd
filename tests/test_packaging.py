"""What a release is made of agrees: pyproject.toml, the recipe for Bioconda, the pinned set, the version."""

import re
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from mamba_seq import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# what conda-forge calls them
CONDA = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "soundfile": "pysoundfile",
    "soxr": "soxr-python",
}


@pytest.fixture(scope="module")
def recipe() -> Any:
    text = (ROOT / "packaging" / "bioconda" / "meta.yaml").read_text(encoding="utf-8")
    filled = jinja2.Template(text, undefined=jinja2.StrictUndefined).render(
        PYTHON="python", pin_subpackage=lambda name, max_pin: f"{name} {max_pin}"
    )
    return yaml.safe_load(filled)


def requirement(text: str) -> tuple[str, str]:
    """Name and version of a requirement, without its extras and its marker."""
    match = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?\s*([<>=!~].*)?", text.partition(";")[0].strip())
    assert match is not None, text
    return match[1], match[2] or ""


def test_the_recipe_runs_with_what_the_package_needs(recipe: Any) -> None:
    needs = dict(map(requirement, PROJECT["project"]["dependencies"]))
    wanted = {CONDA.get(name, name): version for name, version in needs.items()}
    wanted |= {"python": PROJECT["project"]["requires-python"], "__linux": ""}
    assert dict(map(requirement, recipe["requirements"]["run"])) == wanted


def test_the_recipe_builds_what_the_project_says(recipe: Any) -> None:
    project = PROJECT["project"]
    assert recipe["package"] == {"name": project["name"], "version": __version__}
    assert recipe["source"]["url"].endswith(f"/mamba_seq-{__version__}.tar.gz")
    assert recipe["about"]["license"] == project["license"]
    assert recipe["about"]["summary"] == project["description"]
    assert [f"{name} = {target}" for name, target in project["scripts"].items()] == recipe["build"]["entry_points"]
    host = dict(map(requirement, recipe["requirements"]["host"]))
    assert [requirement(text) for text in PROJECT["build-system"]["requires"]] == [("hatchling", host["hatchling"])]


def test_every_dependency_is_in_the_pinned_set() -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    names = {line.partition("==")[0] for line in pinned.splitlines()}
    optional = PROJECT["project"]["optional-dependencies"]
    assert "mamba-seq[docs]" in optional["dev"]
    for text in [*PROJECT["project"]["dependencies"], *optional["dev"], *optional["docs"]]:
        if text == "mamba-seq[docs]":
            continue
        assert requirement(text)[0].lower().replace("_", "-") in names, text


def test_the_version_is_the_same_everywhere() -> None:
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"({__version__})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
