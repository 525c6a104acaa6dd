"""The document of the models: its code runs and does what it says, its tables name all there is."""

import re
from typing import Any

import pytest
import torch

import mamba_seq
from mamba_seq.config import SSM_KINDS
from mamba_seq.heads import MODELS
from tests.kernels.compare import relative_error
from tests.pages import DOCS, blocks_of

PAGE = DOCS / "models.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [block.code for block in blocks_of(PAGE) if block.kind == "python"]


@pytest.fixture(params=range(len(BLOCKS)))
def names(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(BLOCKS[request.param], "models.md", "exec"), found)
    return found


def test_python_blocks_do_what_they_say(names: dict[str, Any]) -> None:
    if "texts" in names:
        assert torch.isfinite(names["loss"])
        assert len(names["texts"]) == 2
        assert all(0 <= i < 4 for text in names["texts"] for i in text)
    elif "whole" in names:
        assert names["state"].position == 50
        assert relative_error(names["logits"], names["whole"][:, -1]) <= 1e-4
    else:
        assert names["packed"].shape == (3, 2)
        assert relative_error(names["packed"], names["alone"]) <= 1e-5


def test_tables_name_every_task_and_kind() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (?:`(\w+)`)?", TEXT, flags=re.MULTILINE)
    assert {task: model for task, model in rows if model} == {task: model.__name__ for task, model in MODELS.items()}
    assert tuple(name for name, model in rows if not model) == SSM_KINDS


@pytest.mark.parametrize("name", [name for name in mamba_seq.__all__ if name != "__version__"])
def test_public_names_are_in_the_document_and_have_a_docstring(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT)
    assert getattr(mamba_seq, name).__doc__
