"""How a time is taken: minimum, median and maximum of several calls, in milliseconds."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

SLOW_MS, VERY_SLOW_MS = 250.0, 2000.0
"""A call that takes longer on a GPU is made three times, or once: `do_bench` would make eight of it."""
SECONDS, QUICK_SECONDS = 3.0, 0.4
"""On a CPU, what the calls of a case may take together before no further round begins."""
ROUNDS = 9


Call = Callable[[], Any]


class Times(NamedTuple):
    """Of several calls, in milliseconds."""

    least: float
    median: float
    most: float


def time_in_turns(calls: Mapping[str, Call], device: torch.device, quick: bool = False) -> dict[str, Times]:
    """Time calls of one case; what they compile or set up at their first call should be done before.

    On a GPU one after the other, the L2 cache emptied before each call. On a CPU in rounds, so that what else the
    machine does meanwhile meets all of them alike; quick ones several times a round.
    """
    if device.type == "cuda":
        return {name: _on_gpu(call) for name, call in calls.items()}
    return _on_cpu(calls, QUICK_SECONDS if quick else SECONDS)


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Return how much GPU memory a call allocates at most, beyond its inputs; None on a CPU, where nobody counts."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def _on_gpu(call: Call) -> Times:
    from triton.testing import do_bench

    first = _wall_ms(call)
    if first > SLOW_MS:
        again = [first, *(_wall_ms(call) for _ in range(2 if first < VERY_SLOW_MS else 0))]
        return Times(min(again), statistics.median(again), max(again))
    low, middle, high = do_bench(call, warmup=10, rep=60, quantiles=[0.0, 0.5, 1.0])
    return Times(low, middle, high)


def _wall_ms(call: Call) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _on_cpu(calls: Mapping[str, Call], seconds: float) -> dict[str, Times]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    once = {name: _milliseconds(call) for name, call in calls.items()}
    # a slow call is its own first one: it has nothing to warm up that would show
    for name, first in once.items():
        if first > 1e3 * seconds / 2:
            taken[name].append(first)
    repeats = {name: max(1, min(20, int(20 / first))) for name, first in once.items()}
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            if once[name] <= 1e3 * seconds / 2:
                taken[name] += [_milliseconds(call) for _ in range(repeats[name])]
        gc.collect()
        if time.perf_counter() - began > seconds:
            break
    return {name: Times(min(each), statistics.median(each), max(each)) for name, each in taken.items()}


def _milliseconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
