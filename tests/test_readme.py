"""The README's code runs, its links lead somewhere, and its figures are those of the card."""

import ast
import re
from pathlib import Path

import pytest

from mamba_seq import models_zoo
from tests.pages import blocks_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [block.code for block in blocks_of(ROOT / "README.md") if block.kind == "python"])
def test_python_blocks_run(code: str) -> None:
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    torch = names["torch"]
    assert names["logits"].shape == (2, 11)
    together = torch.cat([names["first"], names["rest"]], dim=1)
    torch.testing.assert_close(together, names["whole"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(names["step"], names["whole"][:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("page", ["README.md", "docs/operators.md"])
def test_figures_are_there_for_light_and_dark_pages(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    figures = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert [name.split(".")[-2] for name in figures] == ["dark", "light"]
    for name in figures:
        assert ((ROOT / page).parent / name).is_file()


def test_files_of_the_reading_order_are_there() -> None:
    order = README.split("## Reading order")[1]
    folder = Path()
    for name in re.findall(r"`([\w/]+\.py|\w+/[\w/]*)`", order):
        path = Path(name) if "/" in name else folder / name
        assert (ROOT / path).exists(), path
        folder = path.parent if path.suffix else path


def test_every_operator_is_in_the_reading_order() -> None:
    order = README.split("## Reading order")[1]
    for operator in (ROOT / "kernels").glob("*/__init__.py"):
        assert f"`kernels/{operator.parent.name}/" in order


@pytest.mark.parametrize("folder", ["kernels", "mamba_seq", "data_prep", "models_zoo", "pipelines"])
def test_shapes_are_in_the_letters_of_the_glossary(folder: str) -> None:
    glossary = README.split("Shapes, everywhere:")[1].split("What one file alone")[0]
    letters = set(re.findall(r"\b([A-Z])\s", glossary))
    for file in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = [node.value.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and is_text(node.value)]
        text = "\n".join(texts)
        own = set(re.findall(r"\b([A-Z]) [a-z]", text))  # "P pieces": what one file needs, it says
        for shape in re.findall(r"\(([A-Z](?: or [A-Z])?, [^()]*|[A-Z],)\)", text):
            assert set(re.findall(r"\b[A-Z]\b", shape)) <= letters | own, f"{file.relative_to(ROOT)}: ({shape})"


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("name", ["mamba-dna.bacteria11", "mamba-dna.cupriavidus7"])
def test_accuracies_are_the_cards(name: str) -> None:
    record = models_zoo.describe(name)
    for row in record["results"]:
        cells = [f"{row[key]:.3f}" for key in ("accuracy", "low", "high", "baseline")]
        line = f"| {row['length']:,} | {cells[0]} | {cells[1]} to {cells[2]} | {cells[3]} |"
        assert line in README


def test_commands_of_the_makefile_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
