"""Launching a Triton kernel that was launched before, without what Triton does to find out that it was.

At every call Triton looks at each argument, whether it is 1, divides by 16 or fits 32 bits, and finds the compiled
kernel by that: some 80 microseconds of Python for forty arguments, where that of a short sequence runs for ten. A
`Launcher` finds it by the arguments themselves, and goes through Triton where they were not met before, or always
with a Triton that is newer than this code.
"""

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


class Launcher:
    """A kernel of `triton.jit` or `gluon.jit`, launched as `launcher(grid, arguments..., CONSTANT=...)`.

    Arguments that are no compile-time constants are positional, as the kernel has them, and are tensors, integers or
    None. The device is the current one. Triton's interpreter, which compiles nothing, is called as always.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._specialised = [not parameter.do_not_specialize for parameter in getattr(kernel, "params", ())]
        self._known: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
        self._interpreted = type(kernel).__name__ == "InterpretedFunction"

    def __call__(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch the kernel on a grid of one to three sizes."""
        if self._interpreted:
            self.kernel[grid](*arguments, **constants)
            return
        values: list[Any] = []
        key: list[Any] = [torch.cuda.current_device(), *constants.values()]
        for argument, specialised in zip(arguments, self._specialised, strict=False):
            if isinstance(argument, Tensor):
                pointer = argument.data_ptr()
                values.append(pointer)
                key.append(argument.dtype)
                key.append(pointer % ALIGNED)
            else:
                values.append(argument)
                key.append(argument if specialised or argument is None else argument.bit_length() > 31)
        found = self._known.get(tuple(key))
        if found is None:
            self._first(tuple(key), grid, arguments, constants)
        else:
            compiled, constant_values = found
            compiled[(*grid, 1, 1)](*values, *constant_values)

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
