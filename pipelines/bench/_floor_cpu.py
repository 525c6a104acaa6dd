"""Exponentials alone on a CPU: the scan's own, on its own threads, over data that stays in the first-level cache."""

from collections.abc import Callable

import torch
from torch import Tensor

from mamba_seq.kernels._numba import compiled, run_kernel, worker_count
from mamba_seq.kernels._simd import LANES, exp2, floats, load, store
from mamba_seq.pipelines.errors import CheckError

EXPS, TASKS, REPEATS = 2048, 64, 200
"""Floats of a task, 8 KB in and 8 KB out; how many tasks; and how often each is done."""


def loop_of_exponentials(device: torch.device | None = None, repeats: int = REPEATS) -> tuple[Callable[[], None], int]:
    """Return a call, and how many exponentials it takes.

    Raises:
        CheckError: when they are wrong.
    """
    x = -torch.rand(TASKS, EXPS)
    y = torch.zeros_like(x)
    run(x, y, 1)
    error = (y / torch.exp2(x.double()) - 1).abs().max().item()
    if not error < 1e-6:
        raise CheckError(f"exponentials are off by {error:.1e} of their value: nothing is timed")
    return lambda: run(x, y, repeats), x.numel() * repeats


def run(x: Tensor, y: Tensor, repeats: int) -> None:
    """Write 2^x to y, `repeats` times."""
    run_kernel(exps_kernel, (x.data_ptr(), y.data_ptr(), repeats), len(x), torch.empty(worker_count(), 1))


@compiled
def exps_kernel(x: int, y: int, repeats: int, first_task: int, last_task: int, scratch: int) -> None:
    """Write 2^x of EXPS floats to y, `repeats` times a task; every task has its own rows of x and y."""
    for task in range(first_task, last_task):
        x_, y_ = floats(x + 4 * EXPS * task), floats(y + 4 * EXPS * task)
        for _ in range(repeats):
            for i in range(0, EXPS, LANES):
                store(y_, i, exp2(load(x_, i)))
