"""Times of the selective scan on a GPU beside every peer that is installed, after a check of what is timed.

    PYTHONPATH=. python benchmarks/gpu_scan.py [table] [lengths] [--dry]

`table`: the shapes of the README, against mamba_ssm's CUDA kernel (its extension `selective_scan_cuda`, in its own
(B, D, L) layout). `lengths`: one sequence from 512 to 1,048,576 steps with 1,024 channels, against FlashAttention
(torch's SDPA restricted to it, causal, 16 heads of 64) and a scan in plain PyTorch (log-depth doubling over the pairs
(a, b), all states in memory, as long as it fits). bf16, N 16, softplus, bias, D and z on.

Rows are appended to results/scan_<gpu>.csv: medians, with minimum and maximum, in milliseconds; `ratio` is the peer's
time over ours in the same run. The floors are the least that a GPU of these figures could take: bytes of the inputs and
outputs over the bandwidth of a copy, N exponentials an element over the rate of a loop of them, both measured first.
"""

import argparse
import csv
import datetime
import gc
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

from mamba_seq.kernels import selective_scan
from mamba_seq.kernels.selective_scan.reference import selective_scan_reference

RESULTS = Path(__file__).parent / "results"
TABLE = [
    (8, 2048, 1536),
    (64, 2048, 256),
    (8, 16384, 512),
    (1, 131072, 512),
    (1, 1048576, 256),
    (1, 1048576, 128),
    (32, 16000, 256),
]
N = 16
Times = tuple[float, float, float]


class Floors(NamedTuple):
    """What the GPU can do at most, measured."""

    bytes_s: float
    exps_s: float


def main() -> int:
    """Check, then run what the arguments ask for; the exit code is 1 when the check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["table", "lengths"], choices=["table", "lengths"])
    parser.add_argument("--dry", action="store_true", help="save nothing")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    worst = check()
    print(f"largest error of outputs and gradients, relative to the largest element: {worst:.1e}")
    if not worst < 1e-5:
        print("too large: nothing is timed")
        return 1
    floors = measure_floors()
    print(f"{torch.cuda.get_device_name()}: copy {floors.bytes_s / 1e12:.2f} TB/s, {floors.exps_s / 1e12:.2f} T exp2/s")
    rows: list[dict[str, Any]] = []
    for name, run in (("table", run_table), ("lengths", run_lengths)):
        if name in arguments.what:
            rows += run(floors)
    if not arguments.dry:
        save(rows)
    return 0


def check() -> float:
    """Return the worst relative error of outputs and gradients in float32 against the float64 reference."""
    torch.manual_seed(0)
    worst = 0.0
    for B, L, D in ((2, 257, 96), (1, 1000, 64), (64, 65, 256)):
        scan = make_inputs(B, L, D, torch.float32)
        wide = {k: v.detach().double().requires_grad_() if isinstance(v, Tensor) else v for k, v in scan.items()}
        dy = torch.randn(B, L, D, device="cuda")
        y = selective_scan(**scan, backend="triton")
        y.backward(dy)
        expected, _ = selective_scan_reference(**wide)
        expected.backward(dy.double())
        pairs = [(y, expected)] + [(v.grad, wide[k].grad) for k, v in scan.items() if isinstance(v, Tensor)]
        worst = max([worst, *(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)])
    return worst


def make_inputs(B: int, L: int, D: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Draw inputs as a model at its initialisation has them: A = -1 to -N, step sizes of 0.001 to 0.1."""
    torch.manual_seed(0)
    draw = {"device": "cuda"}
    steps = torch.exp(torch.rand(D, **draw) * 4.6 - 6.9)
    tensors = {
        "u": torch.randn(B, L, D, **draw).to(dtype),
        "delta": (torch.randn(B, L, D, **draw) * 0.5).to(dtype),
        "A": -torch.arange(1.0, N + 1, **draw).repeat(D, 1),
        "B": torch.randn(B, L, N, **draw).to(dtype),
        "C": torch.randn(B, L, N, **draw).to(dtype),
        "D": torch.randn(D, **draw),
        "z": torch.randn(B, L, D, **draw).to(dtype),
        "delta_bias": steps + torch.log(-torch.expm1(-steps)),
    }
    return {**{k: v.requires_grad_() for k, v in tensors.items()}, "delta_softplus": True}


def run_table(floors: Floors) -> list[dict[str, Any]]:
    """Time the shapes of the README against mamba_ssm."""
    rows = []
    for B, L, D in TABLE:
        scan = make_inputs(B, L, D)
        ours = {k: v.detach() if isinstance(v, Tensor) else v for k, v in scan.items()}
        theirs = mamba_ssm_calls(ours) if importlib.util.find_spec("selective_scan_cuda") else None
        if theirs is not None:
            compare("mamba_ssm", selective_scan(**ours), theirs["forward"]())
        mine = {"forward": lambda a=ours: selective_scan(**a), "backward": backward_of(scan)}
        for direction, call in mine.items():
            peers = {} if theirs is None else {"mamba_ssm": theirs[direction]}
            rows += time_row(direction, (B, L, D), call, peers, floors)
        del scan, ours, theirs, mine
        clear()
    return rows


def run_lengths(floors: Floors) -> list[dict[str, Any]]:
    """Time one sequence of growing length against FlashAttention and a scan in plain PyTorch."""
    rows = []
    for exponent in range(9, 21):
        L, D = 2**exponent, 1024
        ours = {k: v.detach() if isinstance(v, Tensor) else v for k, v in make_inputs(1, L, D).items()}
        peers: dict[str, Callable[[], Any]] = {}
        if L <= 2**18:  # 2^20 takes seconds a call
            heads = [torch.randn(1, 16, L, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
            peers["FlashAttention"] = lambda h=heads: flash(*h)
        if L <= 2**15:
            peers["PyTorch scan"] = lambda a=ours: plain_scan(**a)
            compare("PyTorch scan", selective_scan(**ours), plain_scan(**ours))
        rows += time_row("forward", (1, L, D), lambda a=ours: selective_scan(**a), peers, floors)
        del ours, peers
        clear()
    return rows


def backward_of(scan: dict[str, Any]) -> Callable[[], Any]:
    """Return a call of the backward pass alone."""
    y = selective_scan(**scan)
    dy = torch.randn_like(y)
    inputs = [v for v in scan.values() if isinstance(v, Tensor)]
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def mamba_ssm_calls(a: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the calls of mamba_ssm's extension on the same values in its layout."""
    import selective_scan_cuda

    u, delta, z = (a[k].transpose(1, 2).contiguous() for k in ("u", "delta", "z"))
    B, C = (a[k].transpose(1, 2).contiguous()[:, None] for k in ("B", "C"))
    dy = torch.randn_like(u)

    def forward() -> Tensor:
        return selective_scan_cuda.fwd(u, delta, a["A"], B, C, a["D"], z, a["delta_bias"], True)[-1].transpose(1, 2)

    out, x, _ = selective_scan_cuda.fwd(u, delta, a["A"], B, C, a["D"], z, a["delta_bias"], True)
    rest = (a["D"], z, a["delta_bias"], dy, x, out, None, True, False)
    return {"forward": forward, "backward": lambda: selective_scan_cuda.bwd(u, delta, a["A"], B, C, *rest)}


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run causal attention with FlashAttention."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def plain_scan(**a: Any) -> Tensor:
    """Run the scan as PyTorch can: every state in memory, log2 L rounds of doubling."""
    dt = F.softplus(a["delta"].float() + a["delta_bias"])
    decay = torch.exp(dt[..., None] * a["A"])
    h = (dt * a["u"].float())[..., None] * a["B"].float()[:, :, None]
    reach = 1
    while reach < h.shape[1]:
        h[:, reach:] = h[:, reach:] + decay[:, reach:] * h[:, :-reach]
        decay[:, reach:] = decay[:, reach:] * decay[:, :-reach]
        reach *= 2
    y = (h * a["C"].float()[:, :, None]).sum(-1) + a["D"] * a["u"].float()
    return (y * F.silu(a["z"].float())).bfloat16()


def compare(peer: str, ours: Tensor, theirs: Tensor) -> None:
    """Refuse to time two things that differ by more than bf16 does."""
    error = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    if not error < 1e-2:
        raise SystemExit(f"ours and {peer} differ by {error:.1e} of the largest element: nothing is timed")


def time_row(
    direction: str,
    shape: tuple[int, int, int],
    call: Callable[[], Any],
    peers: dict[str, Callable[[], Any]],
    floors: Floors,
) -> list[dict[str, Any]]:
    """Time a call and its peers in turn; return a row a peer, one with none where there is no peer."""
    B, L, D = shape
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    peak = torch.cuda.max_memory_allocated() - before
    moved = (4 * D + 2 * N) * 2 if direction == "forward" else (7 * D + 4 * N) * 2
    mine = times(call)
    rows = []
    for peer, other in [*peers.items()] or [("", None)]:
        theirs = times(other) if other else None
        rows.append(
            {
                "op": "selective_scan",
                "direction": direction,
                "B": B,
                "L": L,
                "D": D,
                "N": N,
                "dtype": "bf16",
                "peer": peer,
                "ours_ms": f"{mine[1]:.4f}",
                "peer_ms": f"{theirs[1]:.4f}" if theirs else "",
                "ratio": f"{theirs[1] / mine[1]:.2f}" if theirs else "",
                "byte_floor_ms": f"{B * L * moved / floors.bytes_s * 1e3:.4f}",
                "exp_floor_ms": f"{B * L * D * N / floors.exps_s * 1e3:.4f}",
                "peak_bytes": peak,
                "ours_min": f"{mine[0]:.4f}",
                "ours_max": f"{mine[2]:.4f}",
                "peer_min": f"{theirs[0]:.4f}" if theirs else "",
                "peer_max": f"{theirs[2]:.4f}" if theirs else "",
            }
        )
        print(" ".join(f"{k} {rows[-1][k]}" for k in list(rows[-1])[1:13]), flush=True)
    return rows


def times(call: Callable[[], Any]) -> Times:
    """Return minimum, median and maximum of a call in milliseconds, the L2 cache emptied before each."""
    low, middle, high = do_bench(call, warmup=10, rep=60, quantiles=[0.0, 0.5, 1.0])
    return low, middle, high


def measure_floors() -> Floors:
    """Measure a large copy, bytes read and written, and a loop of exponentials in registers."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = do_bench(lambda: target.copy_(source), return_mode="median")
    out = torch.empty(132 * 64 * 256, device="cuda")
    loop = do_bench(lambda: exponentials[(132 * 64,)](out, 4096, num_warps=8), return_mode="median")
    return Floors(2 * 2**30 / copy * 1e3, out.numel() * 4096 * 4 / loop * 1e3)


@triton.jit
def exponentials(out, rounds):
    at = tl.program_id(0) * 256 + tl.arange(0, 256)
    a = at * 1e-9 - 0.5
    b, c, d = a + 0.1, a + 0.2, a + 0.3
    for _ in range(rounds):
        a, b, c, d = fast_exp2(a), fast_exp2(b), fast_exp2(c), fast_exp2(d)
    tl.store(out + at, a + b + c + d)


@triton.jit
def fast_exp2(x):
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


def driver_version() -> str:
    """Ask nvidia-smi for the driver's version."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]


def clear() -> None:
    """Give memory back between shapes."""
    gc.collect()
    torch.cuda.empty_cache()


def save(rows: list[dict[str, Any]]) -> None:
    """Append rows to the table of this GPU."""
    gpu = torch.cuda.get_device_name()
    about = {
        "gpu": gpu,
        "driver": driver_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
    }
    path = RESULTS / f"scan_{gpu.lower().removeprefix('nvidia ').replace(' ', '_')}.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) + list(about))
        if new:
            writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    print(f"{len(rows)} rows added to {path}")


if __name__ == "__main__":
    sys.exit(main())
