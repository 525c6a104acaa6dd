"""Hold the scan and the convolution on a GPU to a float64 oracle: a part of the published grid, and what it leaves out.

    PYTHONPATH=. python benchmarks/gpu_conformance.py [--cases 1500] [--variants 120] [--device cuda] [--seconds LIMIT]
        [--workers N] [--output FOLDER]

Cases of the grid are stratified: every pair of values of its factors is among them, and lengths, types, real and
complex come equally often. They are of `--variants` sets of switches and types, each of which is compiled, at all
lengths. Every output, state and gradient is compared by name. All runs are on memory that was filled
with NaN before. `--workers` processes share the cases, those of the same compiled kernels together, since compiling is
what takes the time; with `--seconds` no case starts after that time, and the rows say how many ran.

`--device cpu` runs the CPU kernels, with shorter special cases. The exit code is 1 when anything failed.
"""

import argparse
import contextlib
import csv
import datetime
import functools
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mamba_seq.kernels import causal_conv1d, selective_scan
from tests.kernels.compare import Tolerance, one_thread
from tests.kernels.oracle import parallel_scan
from tests.kernels.published_grid import (
    Error,
    GridCase,
    compare_with_oracle,
    draw_case,
    errors,
    gradients_by_name,
    run_case,
    stratified,
)
from tests.kernels.scan_cases import BF16
from tests.kernels.test_causal_conv1d import ACTIVATIONS, PARAMETERS
from tests.kernels.test_cpu_contract import boundaries, draw
from tests.kernels.test_selective_scan_contract import sliced, split_of_a_projection, transposed
from tests.kernels.test_selective_scan_gradients import test_more_than_2_to_the_31_elements_gpu as check_huge
from tests.poison import poisoned_memory

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = (
    *("group", "factors", "tensor", "cases", "passed", "failed", "worst_relative", "worst_absolute"),
    *("scaled_tolerance", "rtol", "atol", "device", "torch", "triton", "date"),
)
WITHIN = Tolerance(float("inf"), float("inf"), 1.0)  # for errors that are already a ratio to what is allowed


class Check(NamedTuple):
    """One case: where it is counted, its name, and how it is run."""

    group: str
    factors: str
    name: str
    run: Callable[[], dict[str, Error]]
    variant: tuple[Any, ...] | None = None
    """Checks with the same one run on the same compiled kernels."""


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, print and save a table; return the exit code."""
    asked = parse(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; --device cpu runs the CPU kernels.")
        return 2
    began = time.monotonic()
    deadline = time.time() + (asked.seconds or float("inf"))  # processes have no other clock in common
    everything = (asked.cases, asked.variants, asked.device)
    checks = list(all_checks(*everything))
    tasks = together(checks)
    results: list[tuple[Check, dict[str, Error]]] = []
    if asked.device == "cuda" and asked.workers > 1:
        # what takes the time is compiling, and that goes on side by side
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(asked.workers, spawn, initializer=prepare, initargs=everything) as pool:
            for done in pool.map(run_prepared, [(task, deadline) for task in tasks], chunksize=1):
                results += [(checks[i], found) for i, found in done]
    else:
        with poisoned_memory(), contextlib.nullcontext() if asked.device == "cuda" else one_thread():
            for task in tasks:
                results += [(checks[i], found) for i, found in run_task(checks, task, deadline)]
    ran = len(results)
    rows = summarise(results, asked.device)
    save(rows, asked.output / f"conformance_{slug(device_name(asked.device))}.csv")
    show(rows)
    failed = sum(any(e.message for e in found.values()) for _, found in results)
    print(f"{ran} of {len(checks)} cases ran, {ran - failed} passed, {failed} failed; {time.monotonic() - began:.0f} s")
    return 1 if failed or not ran else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=1500, help="how many of the grid's 12,480 cases")
    parser.add_argument(
        "--variants",
        type=int,
        default=120,
        help="of how many of the 480 sets of switches and types (a compilation each)",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, help="start no case after this time")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that share the cases of a GPU"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the table")
    return parser.parse_args(arguments)


def all_checks(cases: int, variants: int, device: str) -> Iterator[Check]:
    """Yield every check, in an order that depends on the arguments alone; the specials first."""
    backend = "triton" if device == "cuda" else "cpu"
    yield from special_checks(backend, device)
    for case in stratified(cases, variants=variants):
        yield grid_check(case, backend, device)


def together(checks: list[Check]) -> list[list[int]]:
    """Return the numbers of the checks that one process runs one after another: those that share compiled kernels."""
    tasks: dict[Any, list[int]] = defaultdict(list)
    for i, check in enumerate(checks):
        tasks[check.variant or i].append(i)
    return list(tasks.values())


def prepare(cases: int, variants: int, device: str) -> None:
    """Make a process of the pool ready: the same checks again, and memory filled with NaN for good."""
    global _prepared
    torch.set_num_threads(1)
    _prepared = list(all_checks(cases, variants, device))
    poisoned_memory().__enter__()


_prepared: list[Check] = []


def run_prepared(task: tuple[list[int], float]) -> list[tuple[int, dict[str, Error]]]:
    """Run a task in a process of the pool."""
    return run_task(_prepared, *task)


def run_task(checks: list[Check], task: list[int], deadline: float) -> list[tuple[int, dict[str, Error]]]:
    """Run checks by their numbers; none begins after the deadline."""
    return [(i, outcome(checks[i])) for i in task if time.time() < deadline]


def outcome(check: Check) -> dict[str, Error]:
    """Run a check; what it raises is a failure like any other."""
    try:
        found = check.run()
    except Exception as problem:  # a compiler's or a launch's failure too
        nothing = Tolerance(0, 0, 0)
        found = {"error": Error(float("nan"), float("nan"), nothing, f"{type(problem).__name__}: {problem}"[-600:])}
    for tensor, error in found.items():
        if error.message:
            print(f"FAILED {check.group}, {check.name}, {tensor}: {error.message}", flush=True)
    return found


def grid_check(case: GridCase, backend: str, device: str) -> Check:
    """Make the check of a case of the grid."""
    group = f"grid {'complex' if case.complex_A else 'real'} {case.dtype}"
    factors = "B 2, D 4, N 8, all lengths and switches"
    return Check(group, factors, str(case), lambda: run_case(case, backend, device), case.variant())


def special_checks(backend: str, device: str) -> Iterator[Check]:
    """Yield what the published grid leaves out."""
    gpu = device == "cuda"

    def scan(group: str, factors: str, inputs: dict[str, Tensor], dtype: str = "fp32", **options: Any) -> Check:
        torch.manual_seed(0)
        state = inputs.get("initial_state")
        state = inputs["A"].new_zeros((len(inputs["u"]), *inputs["A"].shape)) if state is None else state
        upstream = [torch.randn_like(inputs["u"]), torch.randn_like(state)]
        options = {k: v.to(device) for k, v in options.items()} | {"delta_softplus": True}
        # a state that turns by several radians a step cancels more in its sums than those of the grid
        wider = 4 if inputs["A"].is_complex() else 1
        run = functools.partial(compare_with_oracle, inputs, upstream, dtype, backend, device, wider=wider, **options)
        return Check(group, factors, factors, run)

    long = 131_073 if gpu else 2049
    for complex_A, kind in ((False, "real"), (True, "complex")):
        yield scan("long", f"L {long}, {kind}", draw(long, D=4, N=8, complex_A=complex_A))
        for groups in (1, 2):
            inputs = draw(372, D=4, N=8, complex_A=complex_A, groups=groups)
            yield scan("complex gradients" if complex_A else "groups", f"{groups} groups, {kind}", inputs)
        for dtype in ("fp32", "fp16", "bf16"):
            yield scan("one base", f"L 1, {kind}, {dtype}", draw(1, complex_A=complex_A, dtype=dtype), dtype)
            for name, cut in (("1,000 boundaries", many_boundaries()), ("every step a sequence", list(range(66)))):
                inputs = draw(cut[-1], 4, 8, 1, sequences=len(cut) - 1, complex_A=complex_A, dtype=dtype)
                yield scan(name, f"L {cut[-1]}, {kind}, {dtype}", inputs, dtype, cu_seqlens=boundaries(cut))
    for layout in (transposed, sliced, split_of_a_projection):
        for length in (63, 372):
            name = layout.__name__.replace("_", " ")
            inputs = {k: layout(t.to(device)) for k, t in draw(length, D=40, N=4).items()}
            yield scan("non-contiguous", f"{name}, L {length}", inputs)
    for case in stratified(12, seed=2) if gpu else stratified(4, seed=2, longest=512):
        yield Check("ten runs the same", "to the bit", str(case), lambda case=case: ten_runs(case, backend, device))
    for length in (2**17, 2**20 + 1) if gpu else (2**11,):
        yield Check(
            "near-constant state",
            "error over that of a serial float32 loop",
            f"L {length}",
            lambda length=length: near_constant(length, backend, device),
        )
    for K, dtype in itertools.product((2, 3, 4, 5), ("fp32", "fp16", "bf16")):
        factors = "K 2 to 5, packed, every type"
        yield Check(
            "convolution", factors, f"K {K}, {dtype}", lambda K=K, dtype=dtype: convolution(K, dtype, backend, device)
        )
    if gpu and torch.cuda.get_device_properties(0).total_memory >= 80 * 10**9:
        yield Check("more than 2^31 elements", "L 2^25 + 1025, D 64, bf16", "forward and backward", huge)


def many_boundaries() -> list[int]:
    """Return 1,001 sequences, 1 to 9 steps long and one of 700."""
    lengths = [1 + (7 * i * i + i) % 9 for i in range(1000)]
    return [0, *itertools.accumulate([*lengths[:500], 700, *lengths[500:]])]


def ten_runs(case: GridCase, backend: str, device: str) -> dict[str, Error]:
    """Compare ten runs bit by bit."""
    inputs, upstream = draw_case(case)
    moved = {name: t if t is None else t.to(device) for name, t in inputs.items()}
    options = {"delta_softplus": case.softplus, "return_final_state": True, "backend": backend}
    above = [t.to(device) for t in upstream]
    first, *others = (gradients_by_name(selective_scan, moved, above, **options) for _ in range(10))
    found = {}
    for name, one in first.items():
        same = all(torch.equal(one, other[name]) for other in others)
        found[name] = Error(1.0 - same, 1.0 - same, Tolerance(0, 0, 0), None if same else "bits differ between runs")
    return found


def near_constant(length: int, backend: str, device: str) -> dict[str, Error]:
    """Compare y, the final state and du where the state hardly decays with float64; errors over those of a loop."""
    torch.manual_seed(length)
    D, N = 4, 8
    u, delta = torch.randn(1, length, D), 0.5 * torch.rand(1, length, D)
    A = -1e-6 * torch.rand(D, N)
    B, C = torch.randn(1, length, N), torch.randn(1, length, N)
    dy = torch.randn(1, length, D)
    given = [t.to(device) for t in (u, delta, A, B, C)]
    exact = [t.double() for t in given]
    x = exact[0].requires_grad_()
    y, state = parallel_scan(x, *exact[1:])
    truth = {"y": y, "final_state": state, "du": torch.autograd.grad(y, x, dy.to(device).double())[0]}
    x = given[0].clone().requires_grad_()
    y, state = selective_scan(x, *given[1:], return_final_state=True, backend=backend)
    got = {"y": y, "final_state": state, "du": torch.autograd.grad(y, x, dy.to(device))[0]}
    serial = serial_float32(u[0], delta[0], A, B[0], C[0], dy[0])
    ours = errors({k: v.detach() for k, v in got.items()}, {k: v.detach() for k, v in truth.items()}, WITHIN)
    theirs = errors(serial, {k: v.detach() for k, v in truth.items()}, WITHIN)
    found = {}
    for name, error in ours.items():
        limit = 1.1 * theirs[name].relative  # a tenth is chance: which roundings meet at the largest error
        worse = not error.relative <= limit
        message = f"relative error {error.relative:.2e}, a serial loop has {limit:.2e}" if worse else None
        found[name] = Error(error.relative, error.absolute, Tolerance(0, 0, limit), message)
    return found


def serial_float32(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Run the recurrence and its adjoint one step after another, in float32; arguments without the batch."""
    a = torch.exp(delta[..., None] * A).numpy()  # (L, D, N)
    b = ((delta * u)[..., None] * B[:, None]).numpy()
    from_above = (dy[..., None] * C[:, None]).numpy()
    h, states = np.zeros_like(a[0]), np.empty_like(a)
    for t in range(len(a)):
        np.multiply(h, a[t], out=h)
        np.add(h, b[t], out=h)
        states[t] = h
    y = (torch.from_numpy(states) * C[:, None]).sum(-1)
    final_state = torch.from_numpy(h.copy())
    g, adjoints = np.zeros_like(a[0]), np.empty_like(a)
    for t in range(len(a) - 1, -1, -1):
        np.add(g, from_above[t], out=g)
        adjoints[t] = g
        np.multiply(g, a[t], out=g)
    du = delta * (torch.from_numpy(adjoints) * B[:, None]).sum(-1)
    return {"y": y[None], "final_state": final_state[None], "du": du[None]}


def convolution(K: int, dtype: str, backend: str, device: str) -> dict[str, Error]:
    """Compare a packed convolution with the reference in float64."""
    cut = [0, 1, 2, 65, 130, 131, 633]
    torch.manual_seed(K)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    inputs = {
        "x": torch.randn(1, cut[-1], 40).to(kind),
        "weight": torch.randn(40, K),
        "bias": torch.randn(40),
        "initial_state": torch.randn(len(cut) - 1, 40, K - 1).to(kind),
    }
    inputs = {name: t.to(device) for name, t in inputs.items()}
    upstream = [torch.randn_like(inputs["x"]), torch.randn_like(inputs["initial_state"])]
    options = {"activation": "silu", "cu_seqlens": boundaries(cut).to(device), "return_final_state": True}
    exact = {name: t.double() for name, t in inputs.items()}
    above = [t.double() for t in upstream]
    want = gradients_by_name(causal_conv1d, exact, above, backend="reference", **options)
    got = gradients_by_name(causal_conv1d, inputs, upstream, backend=backend, **options)
    # a short sequence's gradient has two parts, through y and the final state: rounded, added, rounded
    activation = ACTIVATIONS[dtype]._replace(scaled=2 * ACTIVATIONS[dtype].scaled)
    names = ("y", "final_state", "dx", "dinitial_state")
    return errors(got, want, dict.fromkeys(names, activation) | dict.fromkeys(("dweight", "dbias"), PARAMETERS))


def huge() -> dict[str, Error]:
    """Run the test of offsets beyond 32 bits, which compares the end of a huge input with itself run alone."""
    torch.cuda.empty_cache()
    check_huge(lambda gib: None)
    return {"du, ddelta, dB, dC": Error(float("nan"), float("nan"), Tolerance(*BF16["du"]), None)}  # it passed


def summarise(results: list[tuple[Check, dict[str, Error]]], device: str) -> list[dict[str, Any]]:
    """Return a row for every group of cases and tensor."""
    found: dict[tuple[str, str], list[tuple[Check, Error]]] = defaultdict(list)
    for check, tensors in results:
        for tensor, error in tensors.items():
            found[check.group, tensor].append((check, error))
    versions = {
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": version("triton"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    rows = []
    for (group, tensor), list_ in found.items():
        failed = sum(error.message is not None for _, error in list_)
        factors = sorted({check.factors for check, _ in list_})
        rows.append(
            {
                "group": group,
                "factors": factors[0] if len(factors) == 1 else f"{factors[0]} and {len(factors) - 1} more",
                "tensor": tensor,
                "cases": len(list_),
                "passed": len(list_) - failed,
                "failed": failed,
                "worst_relative": f"{worst(e.relative for _, e in list_):.2e}",
                "worst_absolute": f"{worst(e.absolute for _, e in list_):.2e}",
                "scaled_tolerance": f"{max(e.tolerance.scaled for _, e in list_):.2g}",
                "rtol": f"{max(e.tolerance.rtol for _, e in list_):.2g}",
                "atol": f"{max(e.tolerance.atol for _, e in list_):.2g}",
                **versions,
            }
        )
    return rows


def worst(values: Iterator[float]) -> float:
    """Return the largest value, NaN where there is one."""
    return float(np.max(list(values)))


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"saved {path}")


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table, a line a group and tensor."""
    for row in rows:
        print(
            f"{row['group']:<24} {row['tensor']:<18} {row['passed']:>5} of {row['cases']:>5}"
            f"  relative {row['worst_relative']:>8} (allowed {row['scaled_tolerance']:>7})"
            f"  absolute {row['worst_absolute']:>8}"
        )


def device_name(device: str) -> str:
    """Return the GPU's name, or the processor's kind."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}"


def slug(name: str) -> str:
    """Return a name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def version(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
