"""The one runner of pages: runs the commands and the Python of a Markdown page as they stand, in their order.

A block that is marked as text and follows a block of commands or Python with nothing between them is what that block
prints: the words must be the same, and numbers with a point about the same.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mamba_seq.pipelines.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CLOSE = 0.02  # what machines and versions may differ by in a probability or a rate

_BLOCK = re.compile(r"^```(?P<kind>python|bash)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<prints>.*?)^```\n)?", re.M | re.S)
_DECIMAL = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Block:
    """Code of a page, and what the page says that it prints; None where it does not say."""

    kind: str
    code: str
    prints: str | None


def blocks_of(page: Path) -> Iterator[Block]:
    """Blocks of Python and of commands, in their order."""
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(match["kind"], match["code"], match["prints"])


def run_page(page: Path, output: pytest.CaptureFixture[str]) -> None:
    """Run a page in the working folder; names of its Python live on from block to block.

    Args:
        page: The Markdown file.
        output: `capfd`, which tells what a block printed.
    """
    names: dict[str, object] = {}
    blocks = list(blocks_of(page))
    assert blocks, f"{page} has nothing to run"
    for block in blocks:
        output.readouterr()
        if block.kind == "python":
            exec(compile(block.code, page.name, "exec"), names)
        else:
            run_commands(block.code)
        printed = output.readouterr().out
        if block.prints is not None:
            assert_prints(printed, block)


def run_commands(code: str) -> None:
    """Run lines of a shell; `mamba-seq` in this process, which has imported what it needs."""
    for line in code.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["mamba-seq"] and not {"|", ">", "&&"} & set(words):
            assert main(words[1:]) == 0, line
        else:
            assert "mamba-seq" not in words, f"{line}: would need an installed command"
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True, capture_output=True, text=True)
            print(done.stdout, end="")


def assert_prints(printed: str, block: Block) -> None:
    """Hold what a block printed to what the page says."""
    assert block.prints is not None
    told = f"{block.code}printed\n{printed}where the page says\n{block.prints}"
    assert _DECIMAL.sub("0.0", printed).split() == _DECIMAL.sub("0.0", block.prints).split(), told
    for came, said in zip(_DECIMAL.findall(printed), _DECIMAL.findall(block.prints), strict=True):
        assert float(came) == pytest.approx(float(said), rel=CLOSE, abs=CLOSE), told
