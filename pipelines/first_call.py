"""What the first call of the scan costs on a machine: compiling its kernels, or loading them from a cache.

The common case is run once, forward and backward: real A, B and C that depend on the input, all switches on, N = 16, in
the type of the device's models. Triton tells a listener of every kernel that it compiles or finds in its cache; Numba
counts the same for each function.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mamba_seq.kernels import selective_scan
from mamba_seq.kernels._dispatch import choose_backend

SHAPE = 1, 2048, 256
"""B, L, D: on a GPU one that is cut along its length, which takes most kernels."""


class Kernels(NamedTuple):
    """What became of the kernels of a call."""

    compiled: int
    loaded: int
    """From a cache on disk."""
    seconds: float
    """Of the whole call."""
    folders: frozenset[Path]
    """Where the kernels are kept; empty when they are kept nowhere."""


def report(device: torch.device) -> Iterator[tuple[str, str]]:
    """Yield lines (name, value) on the first call of the scan in this process: its time, and the cache."""
    backend = choose_backend("selective_scan", None, device, {})
    if backend == "reference":
        yield "scan kernels", "none: the reference is plain torch"
        return
    try:
        found = with_triton(device) if backend == "triton" else with_numba(device)
    except Exception as error:  # a report on a machine says what fails there, whatever it is
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        yield "scan kernels", f"failed: {first_line}"
        return
    yield "scan kernels", in_words(found)
    variable = "TRITON_CACHE_DIR" if backend == "triton" else "NUMBA_CACHE_DIR"
    if not found.folders:
        yield "kernel cache", f"none: every process compiles anew; {variable} names a folder to keep kernels in"
    pattern = "*" if backend == "triton" else "*.nb[ic]"
    for folder in sorted(found.folders):
        yield "kernel cache", f"{folder}, {megabytes(folder, pattern):.1f} MB ({variable} names another folder)"


def in_words(found: Kernels) -> str:
    """Say what became of the kernels."""
    total = found.compiled + found.loaded
    if not total:
        return "in this process already"
    if not found.compiled:
        return f"from the cache in {found.seconds:.1f} s ({total} kernels)"
    some = f"{found.compiled} of {total} kernels" if found.loaded else f"{total} kernels"
    return f"compiled in {found.seconds:.1f} s ({some})"


def with_triton(device: torch.device) -> Kernels:
    """Run the scan on a GPU and count what Triton's listener hears of."""
    from triton import knobs

    hits: list[bool] = []
    call = scan_call(device, torch.bfloat16, "triton")
    before = knobs.compilation.listener

    def listen(*, cache_hit: bool, **more: Any) -> None:
        hits.append(cache_hit)
        if before is not None:
            before(cache_hit=cache_hit, **more)

    knobs.compilation.listener = listen
    try:
        seconds = timed(call, device)
    finally:
        knobs.compilation.listener = before
    return Kernels(hits.count(False), hits.count(True), seconds, frozenset({Path(knobs.cache.dir)}))


def with_numba(device: torch.device) -> Kernels:
    """Run the scan on the CPU and count what Numba did for its kernels."""
    from mamba_seq.kernels.selective_scan import _cpu_kernels

    kernels = (_cpu_kernels.scan_forward, _cpu_kernels.scan_backward)

    def counts() -> tuple[int, int]:
        stats = [kernel.dispatcher.stats for kernel in kernels]
        return sum(sum(s.cache_misses.values()) for s in stats), sum(sum(s.cache_hits.values()) for s in stats)

    before = counts()
    seconds = timed(scan_call(device, torch.float32, "cpu"), device)
    compiled, loaded = (after - earlier for after, earlier in zip(counts(), before, strict=True))
    paths = {kernel.dispatcher.stats.cache_path for kernel in kernels} - {None}
    return Kernels(compiled, loaded, seconds, frozenset(map(Path, paths)))


def scan_call(device: torch.device, dtype: torch.dtype, backend: str) -> Callable[[], None]:
    """Return a call of the scan, forward and backward."""
    B, L, D = SHAPE
    N = 16
    u, delta, z = (torch.zeros(B, L, D, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    B_, C = (torch.zeros(B, L, N, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    A = -torch.ones(D, N, device=device)
    D_, bias = torch.ones(D, device=device), torch.zeros(D, device=device)

    def call() -> None:
        y = selective_scan(u, delta, A, B_, C, D_, z, bias, delta_softplus=True, backend=backend)
        assert isinstance(y, torch.Tensor)
        y.sum().backward()

    return call


def timed(call: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that a call takes to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def megabytes(folder: Path, pattern: str) -> float:
    """Return the size of the files of a folder and those in it."""
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file()) / 1e6
