"""Time the CPU scan and convolution against step-by-step torch, on this machine: `python benchmarks/cpu_scan.py`.

First every timed function is compared with the reference in float64 on a small case; if one is off, nothing is timed.
Peers, on the same threads: "torch loop" is one step of the recurrence after another in plain torch, exponentials taken
inside the loop; "torch loop, exp ahead" takes them all before the loop, in (B, L, D, N) memory, as the plain path of
transformers' MambaModel does; "torch conv1d" is a grouped F.conv1d. "exps alone" is no peer but a floor: one
exponential a state update, the kernels' own, over data that stays in the first-level cache. Medians, with the least and
the most of ours; a row a case is added to results/cpu_scan.csv, where for the convolution N holds the width K. Run it
on a machine that does nothing else: threads that wait for a core hurt the peers more than they hurt the kernels.
"""

import csv
import datetime
import functools
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels import causal_conv1d, selective_scan
from mamba_seq.pipelines.bench._floor_cpu import EXPS, TASKS, loop_of_exponentials
from mamba_seq.pipelines.errors import CheckError
from mamba_seq.pipelines.info import cpu_name

RESULTS = Path(__file__).parent / "results" / "cpu_scan.csv"
COLUMNS = (
    *("op", "direction", "B", "L", "D", "N", "dtype", "peer", "ours_ms", "peer_ms", "ratio", "min_ms", "max_ms"),
    *("ns_per_update", "cpu", "threads", "torch", "numba", "date"),
)

FORWARD_CASES = ((1, 100_000, 256, 16), (8, 2048, 256, 16))
BACKWARD_CASES = ((1, 10_000, 256, 16), (8, 1024, 256, 16))
CONV_CASE = (1, 100_000, 256, 4)
ROUNDS, OURS_PER_ROUND = 3, 3


def main() -> None:
    scan = functools.partial(selective_scan, delta_softplus=True, backend="cpu")
    loop = functools.partial(selective_scan, delta_softplus=True, backend="reference")
    conv = functools.partial(causal_conv1d, activation="silu", backend="cpu")
    grouped = functools.partial(causal_conv1d, activation="silu", backend="reference")
    verify({"scan": scan, "loop": loop, "loop, exp ahead": loop_exp_ahead}, loop, scan_inputs(2, 150, 40, 16))
    verify({"conv": conv, "conv1d": grouped}, grouped, conv_inputs(2, 150, 40, 4))
    try:
        loop_of_exponentials()  # they are checked there
    except CheckError as error:
        sys.exit(str(error))
    for shape in FORWARD_CASES:
        ours, *peers = (functools.partial(time_forward, f, scan_inputs(*shape)) for f in (scan, loop, loop_exp_ahead))
        compare("selective_scan", "forward", shape, ours, "torch loop", peers[0])
        compare("selective_scan", "forward", shape, ours, "torch loop, exp ahead", peers[1])
        compare("selective_scan", "forward", shape, ours, "exps alone", functools.partial(time_exps, shape))
    for shape in BACKWARD_CASES:
        ours, peer = (functools.partial(time_backward, f, scan_inputs(*shape)) for f in (scan, loop))
        compare("selective_scan", "backward", shape, ours, "torch loop", peer)
        compare("selective_scan", "backward", shape, ours, "exps alone", functools.partial(time_exps, shape))
    for direction, measure in (("forward", time_forward), ("backward", time_backward)):
        ours, peer = (functools.partial(measure, f, conv_inputs(*CONV_CASE)) for f in (conv, grouped))
        compare("causal_conv1d", direction, CONV_CASE, ours, "torch conv1d", peer)


def scan_inputs(B: int, L: int, D: int, N: int) -> dict[str, Tensor]:
    """Return inputs with every switch on, sized as a trained model has them: steps of 0.001 to 0.1, A = -1 to -N."""
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    dt = torch.empty(D).uniform_(-6.9, -2.3, generator=generator).exp()
    return {
        "u": normal(B, L, D),
        "delta": 0.1 * normal(B, L, D),
        "A": -torch.arange(1.0, N + 1).repeat(D, 1),
        "B": normal(B, L, N),
        "C": normal(B, L, N),
        "D": torch.ones(D),
        "z": normal(B, L, D),
        "delta_bias": dt + torch.log(-torch.expm1(-dt)),
        "initial_state": normal(B, D, N),
    }


def conv_inputs(B: int, L: int, D: int, K: int) -> dict[str, Tensor]:
    normal = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    return {"x": normal(B, L, D), "weight": normal(D, K), "bias": normal(D), "initial_state": normal(B, D, K - 1)}


def loop_exp_ahead(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
) -> Tensor:
    """The recurrence with decays and inputs of all steps computed at once before the loop."""
    dt = F.softplus(delta + delta_bias)
    decay = torch.exp(dt[..., None] * A)
    added = (dt * u)[..., None] * B[:, :, None]
    h, outputs = initial_state, []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + added[:, t]
        outputs.append(torch.matmul(h, C[:, t, :, None])[..., 0])
    return (torch.stack(outputs, dim=1) + D * u) * F.silu(z)


def verify(
    functions: dict[str, Callable[..., Tensor]], truth: Callable[..., Tensor], inputs: dict[str, Tensor]
) -> None:
    """Exit unless outputs and every gradient of each function agree with `truth` in float64."""
    expected = outputs_and_gradients(truth, {name: x.double() for name, x in inputs.items()})
    for label, function in functions.items():
        found = outputs_and_gradients(function, inputs)
        for name, value in expected.items():
            error = ((found[name] - value).abs().max() / value.abs().max()).item()
            if not error < 1e-5:
                sys.exit(f"{label}: {name} is off by {error:.1e} of its largest value; nothing was timed")


def outputs_and_gradients(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y = function(**leaves)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    return {"y": y.detach()} | {f"d{name}": x.grad for name, x in leaves.items() if x.grad is not None}


def time_forward(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        function(**inputs)
        return 1e3 * (time.perf_counter() - start)


def time_backward(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> float:
    y = function(**{name: x.clone().requires_grad_() for name, x in inputs.items()})
    dy = torch.ones_like(y)
    start = time.perf_counter()
    y.backward(dy)
    return 1e3 * (time.perf_counter() - start)


def time_exps(shape: tuple[int, ...]) -> float:
    """Time as many exponentials as a scan of this shape has state updates."""
    loop, _ = loop_of_exponentials(repeats=math.prod(shape) // (EXPS * TASKS))
    start = time.perf_counter()
    loop()
    return 1e3 * (time.perf_counter() - start)


def compare(
    op: str,
    direction: str,
    shape: tuple[int, ...],
    ours: Callable[[], float],
    peer_name: str,
    peer: Callable[[], float],
) -> None:
    """Time both in turns, each a call that returns its milliseconds; print the medians and add them to the results."""
    times, peer_times = [], []
    for _ in range(ROUNDS):
        times += [ours() for _ in range(OURS_PER_ROUND)]
        peer_times.append(peer())
        gc.collect()
    median, peer_median = statistics.median(times), statistics.median(peer_times)
    B, L, D, N = shape
    updates = B * L * D * (N if op == "selective_scan" else 1)
    row = (
        *(op, direction, B, L, D, N, "float32", peer_name, f"{median:.2f}", f"{peer_median:.2f}"),
        *(f"{peer_median / median:.2f}", f"{min(times):.2f}", f"{max(times):.2f}", f"{1e6 * median / updates:.3f}"),
        *(cpu_name(), torch.get_num_threads(), torch.__version__, numba.__version__, datetime.date.today().isoformat()),
    )
    print(f"{op} {direction} {shape}: {median:.1f} ms ({min(times):.1f} to {max(times):.1f}),", end=" ")
    print(f"{peer_name} {peer_median:.1f} ms ({min(peer_times):.1f} to {max(peer_times):.1f})", flush=True)
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(row)


if __name__ == "__main__":
    main()
