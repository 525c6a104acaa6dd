"""Kernels that were launched before are found again by what their compilation depends on."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mamba_seq.kernels import _launch
from mamba_seq.kernels._launch import Launcher

NAMES = ("x", "y", "stride", "length", "BLOCK", "num_warps")


class Kernel:
    """Stands for a jitted kernel: notes what goes through Triton, and what goes to a compiled kernel."""

    def __init__(self) -> None:
        self.arg_names = NAMES
        self.params = [SimpleNamespace(do_not_specialize=name == "length") for name in NAMES]
        self.compiled = 0
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def compile_and_launch(*_: Any, **__: Any) -> Any:
            self.compiled += 1
            return self

        def launch(*arguments: Any) -> None:
            self.launched.append((grid, arguments))

        return launch if len(grid) == 3 else compile_and_launch


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(_launch, "KNOWN", True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return Kernel()


def test_the_second_launch_goes_straight_to_the_compiled_kernel(kernel: Kernel) -> None:
    launch = Launcher(kernel)
    x = torch.zeros(64)
    for length in (5, 16, 1, 5):  # a size that Triton is told not to look at
        launch((length,), x, None, 16, length, BLOCK=32, num_warps=1, maxnreg=None)
    assert kernel.compiled == 1
    assert kernel.launched[0] == ((16, 1, 1), (x.data_ptr(), None, 16, 16, 32, 1))


def test_what_triton_compiles_apart_is_kept_apart(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launcher(kernel)
    x = torch.zeros(64)
    calls: list[tuple[Any, ...]] = [
        (x, x, 16, 5),
        (x[1:], x, 16, 5),  # not aligned
        (x, x[1:], 16, 5),
        (x.half(), x, 16, 5),
        (x, None, 16, 5),
        (x, x, 1, 5),
        (x, x, 17, 5),
        (x, x, 2**31, 5),
        (x, x, 16, 2**31),
    ]
    for number, call in enumerate(calls, 1):
        launch((1,), *call, BLOCK=32, num_warps=1)
        assert kernel.compiled == number
    launch((1,), *calls[0], BLOCK=64, num_warps=1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    launch((1,), *calls[0], BLOCK=64, num_warps=1)
    assert kernel.compiled == len(calls) + 2
    assert not kernel.launched


def test_nothing_is_remembered_for_a_triton_not_known(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "KNOWN", False)
    launch = Launcher(kernel)
    for _ in range(2):
        launch((1,), torch.zeros(8), None, 16, 5, BLOCK=32, num_warps=1)
    assert kernel.compiled == 2


def test_memory_of_many_shapes_is_bounded(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "MOST", 8)
    launch = Launcher(kernel)
    for stride in range(2, 22):
        launch((1,), torch.zeros(8), None, stride, 5, BLOCK=32, num_warps=1)
    assert kernel.compiled == 20
    assert len(launch._known) <= 8


def test_the_interpreter_is_called_as_always() -> None:
    class InterpretedFunction(Kernel):
        pass

    kernel = InterpretedFunction()
    launch = Launcher(kernel)  # without a GPU there is no current device to ask for
    for _ in range(2):
        launch((1,), torch.zeros(8), None, 16, 5, BLOCK=32, num_warps=1)
    assert kernel.compiled == 2
