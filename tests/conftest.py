"""Shared test set-up: Triton's interpreter without a GPU, and NaN in memory that nobody wrote."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

from collections.abc import Iterator

import pytest

from tests.kernels.compare import one_thread
from tests.poison import poisoned_memory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture
def _nothing_compiled() -> Iterator[None]:
    """Let torch.compile begin anew, and forget what it made."""
    torch._dynamo.reset()
    with one_thread():
        yield
    torch._dynamo.reset()
