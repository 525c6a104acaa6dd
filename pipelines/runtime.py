"""Where a run computes: device, threads and seeds, the same for every command."""

import logging
import os
import random
from contextlib import AbstractContextManager, nullcontext

import torch

from mamba_seq.pipelines.errors import DeviceError

log = logging.getLogger("mamba_seq.pipelines")


def start(device: str = "auto", threads: int | None = None, seed: int | None = None) -> torch.device:
    """Set up a run and return its device.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        threads: CPU threads for torch and for the scan; None leaves the libraries' default.
        seed: seeds Python, numpy and torch; None leaves them alone.

    Raises:
        DeviceError: when the device is not there.
    """
    if seed is not None:
        seed_everything(seed)
    if threads is not None:
        limit_threads(threads)
    chosen = find_device(device)
    log.debug("computing on %s with %d CPU threads", chosen, torch.get_num_threads())
    return chosen


def find_device(device: str) -> torch.device:
    """Return the device that `device` names.

    Raises:
        DeviceError: when it is not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda", 0) if there else torch.device("cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not there:
            raise DeviceError(f"device {device} was asked for and torch finds no CUDA GPU here; use --device cpu")
        if (chosen.index or 0) >= there:
            raise DeviceError(f"device {device} was asked for and there are {there} GPUs, cuda:0 to cuda:{there - 1}")
    return chosen


def limit_threads(threads: int) -> None:
    """Use `threads` CPU threads in torch and, up to the number of its cores, in Numba."""
    torch.set_num_threads(threads)
    import numba

    # Numba's pool has one thread a core (or NUMBA_NUM_THREADS); it can be used in part, and not grow
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


def seed_everything(seed: int) -> None:
    """Seed every source of random numbers that a run may use."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Give the context that a forward pass runs in: bfloat16 autocast on GPUs, plain float32 on CPUs."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def use(device: torch.device) -> AbstractContextManager[object]:
    """Give the context in which `device` is the current one of its kind, as Triton's launches want it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
