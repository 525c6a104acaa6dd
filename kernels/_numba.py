"""How the CPU kernels are compiled and spread over threads.

Numba's own `parallel=True` is not used: its `omp` layer aborts a process that forks after the first kernel (every
DataLoader worker does), and its `workqueue` layer aborts when two Python threads call at once. Kernels are serial, free
of the interpreter lock, and a small thread pool runs many of them side by side; that is safe in both cases.
"""

import functools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor

log = logging.getLogger("mamba_seq.kernels")

_njit: Any = functools.partial(numba.njit, nogil=True, error_model="numpy")

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def compiled(function: Callable[..., Any]) -> "Kernel":
    """Turn a function of int arguments into a kernel, compiled at its first call and kept on disk where possible."""
    return Kernel(function)


class Kernel:
    """A Numba function that can do without its cache on disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: int) -> None:
        """Run the kernel; the interpreter lock is released meanwhile."""
        try:
            self.dispatcher(*arguments)
        except OSError as error:  # kernels do no input and output, only the cache does: the disk is full, or went away
            _say_uncached(str(error))
            self.dispatcher = _njit()(self._function)
            self.dispatcher(*arguments)

    @functools.cached_property
    def dispatcher(self) -> Any:
        """The Numba dispatcher, cached on disk where Numba finds a folder for that."""
        try:
            return _follow_every_module(_njit(cache=True)(self._function))
        except RuntimeError as error:  # how Numba says that it can write to none of the folders it tries
            _say_uncached(str(error))
            return _njit()(self._function)


def _follow_every_module(dispatcher: Any) -> Any:
    """Let what is on disk grow stale with any module of kernels: Numba looks at the one of the kernel itself alone.

    What a kernel is made of, such as the exponential of `_simd.py`, stands in others.
    """
    file: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, _stamp_of_modules())
    return dispatcher


@functools.cache
def _stamp_of_modules() -> tuple[tuple[str, int, int], ...]:
    """Return names, times and sizes of all modules of kernels."""
    folder = Path(__file__).resolve().parent
    found = [(path, path.stat()) for path in sorted(folder.rglob("*.py"))]
    return tuple((str(path.relative_to(folder)), stat.st_mtime_ns, stat.st_size) for path, stat in found)


@functools.cache
def _say_uncached(reason: str) -> None:
    log.info("a CPU kernel is compiled anew in this process (NUMBA_CACHE_DIR names a folder to keep it in): %s", reason)


def run_kernel(kernel: Kernel, arguments: tuple[int, ...], count: int, scratch: Tensor) -> None:
    """Run the tasks 0 to count - 1 of a kernel: `kernel(*arguments, first task, last task + 1, scratch address)`.

    `scratch` has a row for each thread that may take part.
    """
    size = scratch.stride(0) * scratch.element_size()
    start = scratch.data_ptr()
    run_tasks(
        lambda first, last, worker: kernel(*arguments, first, last, start + worker * size), count, scratch.shape[0]
    )


def run_tasks(work: Callable[[int, int, int], None], count: int, workers: int) -> None:
    """Share the tasks 0 to count - 1 out over threads: `work(first, last, worker)` does those from first to last - 1.

    The calling thread takes part and then waits only for work that has begun, so no call ever waits for another's.
    `worker` numbers the threads of this call from 0: two calls of `work` with the same number never overlap, so scratch
    memory goes by it. `work` must release the interpreter lock to run in parallel.
    """
    helpers = min(workers, count) - 1
    if helpers <= 0:
        work(0, count, 0)
        return
    piece = max(1, count // (8 * workers))  # several pieces a thread, since threads do not all run equally fast
    starts = iter(range(0, count, piece))  # its next() is atomic under the interpreter lock

    def work_on(worker: int) -> None:
        for first in starts:
            work(first, min(first + piece, count), worker)

    pool = _shared_pool()
    futures = [pool.submit(work_on, worker) for worker in range(1, helpers + 1)]
    try:
        work_on(0)
    finally:
        for future in futures:
            if not future.cancel():
                future.result()


def worker_count() -> int:
    """Return how many threads a call may use: torch's number, which DataLoader workers set to 1."""
    return torch.get_num_threads()


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, os.cpu_count() or 1), thread_name_prefix="mamba-seq-cpu")
        return _pool


def _forget_pool() -> None:
    """Start afresh in a forked child: threads do not survive a fork, and the lock may have been held."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
