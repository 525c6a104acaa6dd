"""Which implementation runs a call: the one place that decides, and that says why.

`backend=None` takes Triton on CUDA devices and the Numba kernels elsewhere, and the reference wherever these cannot
run the case; a backend that is named and cannot run raises instead of quietly doing something else.
"""

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

log = logging.getLogger("mamba_seq.kernels")

BACKENDS = ("reference", "cpu", "triton")


@functools.cache
def triton_interpreted() -> bool:
    """Tell whether Triton kernels run in its interpreter, on the CPU (the environment variable TRITON_INTERPRET)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("0", "")


@functools.cache  # asked at every call
def multiprocessor_count(device: torch.device) -> int:
    """Return how many multiprocessors a device has; the interpreter counts as one."""
    return 1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def choose_backend(op: str, asked: str | None, device: torch.device, unsupported: dict[str, str | None]) -> str:
    """Return the backend that runs a call of `op` on `device`.

    Args:
        op: the operator's name, for messages.
        asked: the caller's `backend` argument; None lets this function choose.
        device: where the tensors are.
        unsupported: for "cpu" and "triton", the reason that this case cannot run there, or None when it can.

    Raises:
        ValueError: for an unknown backend.
        RuntimeError: when a backend is asked for and cannot run the case, with the reason.
    """
    if asked is not None and asked not in BACKENDS:
        raise ValueError(f"backend is {asked!r}, expected None or one of {', '.join(map(repr, BACKENDS))}")
    wanted = asked or ("triton" if device.type == "cuda" else "cpu")
    if wanted == "reference":
        return wanted
    reason = _cannot_run(wanted, device) or unsupported.get(wanted)
    if reason is None:
        return wanted
    if asked is not None:
        raise RuntimeError(f"{op}: backend {asked!r} cannot run this call: {reason}")
    _say_fallback(op, wanted, reason)
    return "reference"


def choose(op: str, asked: str | None, like: Tensor) -> str:
    """Return the backend that runs a call of `op` on an input such as `like`; float64 runs on the reference only.

    Raises: as `choose_backend`.
    """
    reason = "float64 runs on the reference only" if like.dtype == torch.float64 else None
    return choose_backend(op, asked, like.device, {"cpu": reason, "triton": reason})


@functools.cache  # a step takes microseconds, and so does an import of what is imported already
def implementation(op: str, backend: str) -> ModuleType:
    """Import the module of a folder `op` that implements a compiled backend; only then is Numba or Triton loaded."""
    return importlib.import_module(f"mamba_seq.kernels.{op}.{backend}")


def _cannot_run(backend: str, device: torch.device) -> str | None:
    """Give the reason that `backend` cannot run on `device` at all, or None."""
    if backend == "cpu":
        if device.type != "cpu":
            return f"the tensors are on {device}, not on the CPU"
        return None if _installed("numba") else "numba is not installed"
    if not _installed("triton"):
        return "triton is not installed (it is available for Linux)"
    if device.type != "cuda" and not triton_interpreted():
        return f"the tensors are on {device}; Triton needs a GPU, or TRITON_INTERPRET=1 set before torch is imported"
    return None


@functools.cache  # once a reason: a training loop would say it at every step
def _say_fallback(op: str, wanted: str, reason: str) -> None:
    log.warning("%s runs on the slow reference instead of %r: %s", op, wanted, reason)
