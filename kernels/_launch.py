"""Launching a Triton kernel that was launched before, without what Triton does to find out that it was.

At every call Triton looks at each argument, whether it is 1, divides by 16 or fits 32 bits, and finds the compiled
kernel by that: some 80 microseconds of Python for forty arguments, where that of a short sequence runs for ten. A
`Launcher` finds it by the arguments themselves, and goes through Triton where they were not met before, or always
with a Triton that is newer than this code.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
import triton
from torch import Tensor

KNOWN = triton.__version__.startswith("3.6.")  # versions that take a compiled kernel's arguments as written here
MOST = 4096  # kernels and shapes remembered; beyond, all are forgotten
ALIGNED = 16  # bytes that Triton distinguishes pointers by


def cdiv(size: int, part: int) -> int:
    """Return how many parts cover a size; `triton.cdiv` outside a kernel takes 8 microseconds."""
    return -(-size // part)


def rows(tensor: Tensor) -> Tensor:
    """Return the tensor with its last axis dense, as kernels read it; copied if need be."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor contiguous, None for None."""
    return None if tensor is None else tensor.contiguous()


class Launcher:
    """A kernel of `triton.jit` or `gluon.jit`, launched as `launcher(grid, arguments..., CONSTANT=...)`.

    Arguments that are no compile-time constants are positional, as the kernel has them: tensors or None, then integers.
    The device is the current one. Triton's interpreter, which compiles nothing, is called as always.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._known: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
        self._interpreted = type(kernel).__name__ == "InterpretedFunction"
        self._tensors: int | None = None
        self._specialised: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple

    def __call__(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch the kernel on a grid of one to three sizes."""
        if self._interpreted:
            self.kernel[grid](*arguments, **constants)
            return
        if self._tensors is None:
            self._look_at(arguments)
        tensors, integers = arguments[: self._tensors], arguments[self._tensors :]
        pointers = [None if t is None else t.data_ptr() for t in tensors]
        alignment = 0
        for pointer in pointers:
            alignment |= pointer or 0
        key = (
            torch.cuda.current_device(),
            *[None if t is None else t.dtype for t in tensors],
            alignment % ALIGNED and tuple(pointer and pointer % ALIGNED for pointer in pointers),
            *self._specialised(integers),
            max(integers) >> 31 and tuple(integer >> 31 for integer in integers),
            *constants.values(),
        )
        found = self._known.get(key)
        if found is None:
            self._first(key, grid, arguments, constants)
        else:
            compiled, constant_values = found
            compiled[(*grid, 1, 1)](*pointers, *integers, *constant_values)

    def _look_at(self, arguments: tuple[Any, ...]) -> None:
        """Find out how many arguments are tensors, and which integers Triton compiles a kernel of its own for."""
        kinds = [isinstance(argument, int) for argument in arguments]
        self._tensors = kinds.index(True)
        assert all(kinds[self._tensors :]), "tensors come before integers"
        parameters = self.kernel.params[self._tensors : len(arguments)]
        chosen = [i for i, parameter in enumerate(parameters) if not parameter.do_not_specialize]
        if chosen:
            self._specialised = itemgetter(*chosen, chosen[0])  # one more: of a single place it returns no tuple
        else:
            self._specialised = lambda integers: ()

    def _first(
        self, key: tuple[Any, ...], grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Launch through Triton, and remember the compiled kernel that it took."""
        compiled = self.kernel[grid](*arguments, **constants)
        if not KNOWN:
            return
        if len(self._known) >= MOST:
            self._known.clear()
        names = self.kernel.arg_names[len(arguments) :]
        self._known[key] = compiled, tuple(constants[name] for name in names)
