"""The documentation site builds without a warning, asks nobody else for anything, and has every command and page."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mamba_seq import __all__ as public
from mamba_seq import kernels
from mamba_seq.pipelines.cli import mamba_seq as command_line
from mamba_seq.pipelines.cli._shell import Settings
from tests.pages import DOCS, ROOT

PAGES = [
    *DOCS.rglob("*.md"),
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    ROOT / "benchmarks" / "README.md",
]
LINK = re.compile(r"(?<!!)\]\(([^)#\s:]+)(?:#[^)]*)?\)")
LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|srcset|href)=\"?(https?:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("material", "mkdocstrings", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'mamba-seq[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # never with --quiet, which keeps the warnings from --strict too
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not LOADED.search(text), page
        assert "{ .whole }" not in text, page  # what the hook adds to code has been read
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_every_command_and_option_is_on_its_page(site: Path) -> None:
    page = (site / "reference" / "command_line.html").read_text(encoding="utf-8")
    context = click.Context(command_line, info_name="mamba-seq", obj=Settings())
    for name in command_line.list_commands(context):
        command = command_line.get_command(context, name)
        assert command is not None
        assert f'id="mamba-seq-{name}"' in page
        for option in command.params:
            for spelt in option.opts if isinstance(option, click.Option) else ():
                assert spelt in page, f"{name} {spelt}"
    assert "\\" not in re.sub(r"(?s)<script.*?</script>", "", page)  # nothing escaped once too often


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for name in [*public, *kernels.__all__]:
        assert name.startswith("__") or re.search(rf'id="mamba_seq\.[\w.]*\b{name}"', pages), name


def test_numbers_of_classes_are_those_of_the_card(site: Path) -> None:
    assert '<ol start="0">' in (site / "zoo" / "mamba-dna.bacteria11.html").read_text(encoding="utf-8")


def test_search_finds_all_pages(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            assert f'"location":"{page.relative_to(site).as_posix()}' in index, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_on_a_git_host(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
