"""Memory for the tests of more than 2^31 elements, on a GPU that others may be using."""

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture
def needs_gpu_memory() -> Iterator[Callable[[int], None]]:
    """Skip a test that needs more memory than is free, in GiB; afterwards give back what this process keeps for itself.

    torch holds on to freed memory, and of many test processes on one device each would hold its largest test's.
    """

    def ask(gib: int) -> None:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free < gib:
            pytest.skip(f"needs {gib} GiB of GPU memory, and {free:.0f} GiB are free")

    yield ask
    torch.cuda.empty_cache()
