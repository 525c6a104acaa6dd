"""Times and memory of the Mamba block and of training steps on a GPU, after a check of what is timed.

    PYTHONPATH=. python benchmarks/gpu_block.py [block] [parts] [steps] [--quick] [--dry]

`block`: one block in bf16, forward and backward, for everything that `Mamba.forward` can keep, beside mamba_ssm's fused
block (`mamba_inner_fn`, with the product in front of it as its module makes it), where its extensions
`selective_scan_cuda` and `causal_conv1d_cuda` are installed. `parts`: the kernels of every part of a block alone,
summed up. `steps`: a training step of language models on one DNA sequence of 1,048,576 bases (float32 weights, bf16
autocast, 16-bit residual, fused AdamW), for every `Backbone.recompute`; what does not fit has no time. `--quick`: the
block alone, as autograd keeps it and as it is by default.

Rows are appended to results/block_<gpu>.csv: medians, with minimum and maximum, in milliseconds; `ratio` is the peer's
time over ours in the same run; `peak_bytes` is what was allocated at most beyond what was there before, for a step all
of it.
"""

import argparse
import csv
import datetime
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
import triton
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from triton.testing import do_bench

sys.path.insert(0, str(Path(__file__).parent))
from mamba_ssm_block import has_peer, peer_block

from mamba_seq import LanguageModel, Mamba, MambaConfig, ModelConfig
from mamba_seq.inner import Keep
from mamba_seq.kernels import causal_conv1d, selective_scan

RESULTS = Path(__file__).parent / "results"
SHAPES = [(1, 1048576, 128), (1, 1048576, 256), (1, 131072, 256), (8, 2048, 768)]
"""B, L, d_model."""
MODELS = [(12, 128), (16, 256)]
"""n_layer, d_model."""
STEP_LENGTH = 1048576
ROUNDS = 3
OPTIONS: list[tuple[str, bool]] = [("nothing", False), ("nothing", True), ("inner", False), ("segments", False)]
"""`recompute` and `gradient_checkpointing`."""
BF16 = torch.bfloat16
Times = tuple[float, float, float]
Row = dict[str, Any]


def main() -> int:
    """Check, then run what the arguments ask for; the exit code is 1 when the check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs: dict[str, Callable[[], list[Row]]] = {"block": run_blocks, "parts": run_parts, "steps": run_steps}
    parser.add_argument("what", nargs="*", help="block, parts or steps; all of them if none is given")
    parser.add_argument("--quick", action="store_true", help="nothing but the block, with keep autograd and little")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - runs.keys():
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(runs)}")
    if arguments.quick:
        if arguments.what:
            parser.error(f"--quick runs the block alone, not {', '.join(arguments.what)}: leave one of them out")
        runs = {"block": lambda: run_blocks(("autograd", "little"))}
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    print(f"{torch.cuda.get_device_name()}, driver {driver_version()}")
    for what, (got, name, most) in check().items():
        print(f"{what}: largest error {got:.1e} of the largest element, in {name}")
        if not got <= most:
            print(f"more than {most:.0e}: nothing is timed")
            return 1
    rows: list[Row] = []
    for name, run in runs.items():
        if name in arguments.what or not arguments.what:
            started = time.perf_counter()
            rows += run()
            print(f"{name} took {time.perf_counter() - started:.0f} s", flush=True)
    if not arguments.dry:
        save(rows)
    return 0


def check() -> dict[str, tuple[float, str, float]]:
    """Return the worst relative errors against the float64 reference, and against mamba_ssm in bf16.

    With the name of the tensor, and what is allowed.
    """
    found: dict[str, tuple[float, str, float]] = {}
    for keep in get_args(Keep)[1:]:
        block, hidden, dout = make_block(2, 515, 64, torch.float32)
        got = gradients(block, lambda x, b=block, k=keep: b(x, keep=k), hidden, dout)
        wide = gradients(block.double(), block, hidden.double(), dout.double())
        found[f"float32, {keep}"] = (*worst(got, wide), 2e-5)
    if has_peer():
        block, hidden, dout = make_block(2, 2048, 128, BF16)
        theirs = gradients(block, lambda x: peer_block(block, x), hidden, dout)
        found["bf16, mamba_ssm"] = (*worst(gradients(block, block, hidden, dout), theirs), 3e-2)
    return found


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest error relative to the largest element of its tensor, and the tensor's name."""
    return max(
        (float((found[n].double() - t.double()).abs().max() / t.double().abs().max()), n) for n, t in expected.items()
    )


def make_block(B: int, L: int, d_model: int, dtype: torch.dtype) -> tuple[Mamba, Tensor, Tensor]:
    """Draw a block, its input, which wants a gradient, and the gradient of its output."""
    torch.manual_seed(0)
    block = Mamba(MambaConfig(d_model=d_model, n_layer=1)).cuda().to(dtype)
    hidden = torch.randn(B, L, d_model, device="cuda").to(dtype).requires_grad_()
    return block, hidden, torch.randn(B, L, d_model, device="cuda").to(dtype)


def gradients(block: Mamba, run: Callable[[Tensor], Any], hidden: Tensor, dout: Tensor) -> dict[str, Tensor]:
    """Return the output of `run`, and the gradients of its input and of the block's parameters."""
    hidden = hidden.detach().requires_grad_()
    out = run(hidden)
    names, parameters = zip(*block.named_parameters(), strict=True)
    found = torch.autograd.grad(out, [hidden, *parameters], dout)
    return {"out": out.detach(), "hidden": found[0], **dict(zip(names, found[1:], strict=True))}


def run_blocks(keeps: tuple[Keep, ...] = get_args(Keep)[1:]) -> list[Row]:
    """Time a block for everything it can keep, or for some of it."""
    rows: list[Row] = []
    peer = has_peer()
    for B, L, d_model in SHAPES:
        block, hidden, dout = make_block(B, L, d_model, BF16)
        if peer:
            compare = gradients(block, lambda x, b=block: peer_block(b, x), hidden, dout)
            got = worst(gradients(block, block, hidden, dout), compare)
            print(f"{B} x {L} x {d_model}, against mamba_ssm: {got[0]:.1e} in {got[1]}")
            if not got[0] < 5e-2:
                raise SystemExit("ours and mamba_ssm differ: nothing is timed")
            del compare
        contenders: dict[str, Callable[[Tensor], Any]] = {k: lambda x, b=block, k=k: b(x, keep=k) for k in keeps}  # type: ignore[misc]
        if peer:
            contenders["mamba_ssm"] = lambda x, b=block: peer_block(b, x)
        found = measure_in_turn(block, contenders, hidden, dout)
        theirs = found.pop("mamba_ssm", None)
        for keep, mine in found.items():
            for direction in ("forward", "backward", "both"):
                row = {"what": "block", "part": "", "direction": direction, "B": B, "L": L, "d_model": d_model}
                row |= {"n_layer": 1, "keep": keep, **as_columns(spread(mine[direction]))}
                if theirs is not None:
                    low, middle, high = spread(theirs[direction])
                    row |= {"peer": "mamba_ssm", "peer_ms": f"{middle:.4f}", "peer_min": f"{low:.4f}"}
                    row |= {"peer_max": f"{high:.4f}", "ratio": f"{middle / spread(mine[direction])[1]:.2f}"}
                    row |= {"peer_peak_bytes": int(theirs["peak"][0])}
                rows.append(row | {"peak_bytes": int(mine["peak"][0])})
                show(rows[-1])
        del block, hidden, dout, contenders, found
        clear()
    return rows


def measure_in_turn(
    block: Mamba, contenders: dict[str, Callable[[Tensor], Any]], hidden: Tensor, dout: Tensor
) -> dict[str, dict[str, list[float]]]:
    """Return what `measure` does for every contender, each measured once in each round.

    What slows the machine down for a moment, Python above all, then slows no contender alone.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            clear()
            for what, samples in measure(block, run, hidden, dout).items():
                found[name].setdefault(what, []).extend(samples)
    return found


def measure(block: Mamba, run: Callable[[Tensor], Any], hidden: Tensor, dout: Tensor) -> dict[str, list[float]]:
    """Return the times of forward, backward and both, and the peak of memory of both."""
    inputs = [hidden, *block.parameters()]

    def both() -> Any:
        return torch.autograd.grad(run(hidden), inputs, dout)

    both()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    found = {"peak": [float(torch.cuda.max_memory_allocated() - before)]}
    found["both"] = times(both)
    found["forward"] = times(lambda: run(hidden))
    out = run(hidden)
    found["backward"] = times(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True))
    return found


def run_parts() -> list[Row]:
    """Sum up the kernels of every part of a block, forward and backward, each by itself on inputs of its own."""
    rows: list[Row] = []
    for B, L, d_model in SHAPES:
        block, hidden, _ = make_block(B, L, d_model, BF16)
        for part, run, inputs in parts_of(block, hidden.detach()):
            for direction, total in kernel_times(run, inputs).items():
                row = {"what": "part", "part": part, "direction": direction, "B": B, "L": L, "d_model": d_model}
                rows.append(row | {"n_layer": 1, "keep": "autograd", "ms": f"{total:.4f}"})
                show(rows[-1])
        del block, hidden, run, inputs
        clear()
    return rows


def parts_of(block: Mamba, hidden: Tensor) -> Any:
    """Give every part of a block: its name, a call of it, and the tensors whose gradients it makes."""
    with torch.no_grad():
        xz = block.in_proj(hidden)
        x, z = xz.chunk(2, dim=-1)
        u: Any = causal_conv1d(x, block.conv_weight, block.conv_bias, "silu")
        projected = block.x_proj(u)
        rank, N = block.config.rank, block.config.d_state
        delta = block.dt_proj(projected[..., :rank])
        A = -torch.exp(block.A_log)
    own = {name: t.detach().requires_grad_() for name, t in (("hidden", hidden), ("x", x), ("u", u), ("z", z))}
    u, x, z = own["u"], own["x"], own["z"]
    yield "in_proj", lambda: block.in_proj(own["hidden"]), [own["hidden"], block.in_proj.weight]
    taps = [block.conv_weight, block.conv_bias]
    yield "conv", lambda: causal_conv1d(x, *taps, "silu"), [x, *taps]
    yield "x_proj", lambda: block.x_proj(u), [u, block.x_proj.weight]
    low_rank = projected[..., :rank].detach().requires_grad_()
    yield "dt_proj", lambda: block.dt_proj(low_rank), [low_rank, block.dt_proj.weight]
    delta, A = delta.requires_grad_(), A.requires_grad_()
    B, C = (p.detach().requires_grad_() for p in projected[..., rank:].split(N, dim=-1))
    scan = [u, delta, A, B, C, block.D, z, block.dt_bias]
    yield "scan", lambda: selective_scan(*scan, delta_softplus=True), scan
    yield "out_proj", lambda: block.out_proj(u), [u, block.out_proj.weight]
    pair = xz.detach().requires_grad_()
    yield "chunk", lambda: pair.chunk(2, dim=-1), [pair]


def kernel_times(run: Callable[[], Any], inputs: list[Tensor]) -> dict[str, float]:
    """Return the milliseconds that the kernels of a call, and of its backward pass, take."""
    out = run()
    outs = out if isinstance(out, tuple) else (out,)
    douts = [torch.ones_like(o) for o in outs]
    calls = {"forward": run, "backward": lambda: torch.autograd.grad(outs, inputs, douts, retain_graph=True)}
    found = {}
    for direction, call in calls.items():
        call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
            for _ in range(3):
                call()
            torch.cuda.synchronize()
        kernels = [e for e in profiled.key_averages() if e.device_type == DeviceType.CUDA]
        found[direction] = sum(e.self_device_time_total for e in kernels) / 3e3
    return found


def run_steps() -> list[Row]:
    """Time a training step of language models at 1,048,576 bases, and its memory."""
    rows: list[Row] = []
    for n_layer, d_model in MODELS:
        for recompute, checkpointing in OPTIONS:
            torch.manual_seed(0)
            backbone = MambaConfig(d_model=d_model, n_layer=n_layer, residual_in_fp32=False)
            model = LanguageModel(ModelConfig(task="language-model", backbone=backbone, vocab_size=6)).cuda().train()
            model.backbone.recompute, model.backbone.gradient_checkpointing = recompute, checkpointing  # type: ignore[assignment]
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)
            tokens = torch.randint(0, 4, (1, STEP_LENGTH), device="cuda")
            row = {"what": "step", "part": f"{sum(p.numel() for p in model.parameters())} parameters"}
            row |= {"direction": "step", "B": 1, "L": STEP_LENGTH, "d_model": d_model, "n_layer": n_layer}
            row["keep"] = recompute + " and checkpoints" * checkpointing
            try:
                seconds = []
                for _ in range(4):
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    started = time.perf_counter()
                    with torch.autocast("cuda", BF16):
                        loss = model.loss(model(tokens), tokens)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - started)
                warm = sorted(1e3 * s for s in seconds[1:])
                row |= as_columns((warm[0], warm[1], warm[2])) | {"peak_bytes": torch.cuda.max_memory_allocated()}
            except torch.cuda.OutOfMemoryError:
                row |= {"ms": "", "peak_bytes": "does not fit"}
            rows.append(row)
            show(row)
            loss = None
            del model, optimizer, tokens
            clear()
    return rows


def as_columns(found: Times) -> Row:
    low, middle, high = found
    return {"ms": f"{middle:.4f}", "ms_min": f"{low:.4f}", "ms_max": f"{high:.4f}"}


def show(row: Row) -> None:
    """Print what is there of a row."""
    print(" ".join(f"{k} {v}" for k, v in row.items() if v != "" and not k.endswith(("_min", "_max"))), flush=True)


def times(call: Callable[[], Any]) -> list[float]:
    """Return what each of some calls took in milliseconds, the L2 cache emptied before each."""
    found: list[float] = do_bench(call, warmup=10, rep=60, return_mode="all")
    return found


def spread(samples: list[float]) -> Times:
    """Return minimum, median and maximum."""
    return min(samples), statistics.median(samples), max(samples)


def driver_version() -> str:
    """Ask nvidia-smi for the driver's version."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]


def clear() -> None:
    """Give memory back between shapes."""
    gc.collect()
    torch.cuda.empty_cache()


COLUMNS = [
    "what",
    "part",
    "direction",
    "B",
    "L",
    "d_model",
    "n_layer",
    "keep",
    "ms",
    "peer",
    "peer_ms",
    "ratio",
    "peak_bytes",
    "peer_peak_bytes",
    "ms_min",
    "ms_max",
    "peer_min",
    "peer_max",
    "gpu",
    "driver",
    "torch",
    "triton",
    "date",
]


def save(rows: list[Row]) -> None:
    """Append rows to the table of this GPU."""
    gpu = torch.cuda.get_device_name()
    about = {"gpu": gpu, "driver": driver_version(), "torch": torch.__version__, "triton": triton.__version__}
    about["date"] = datetime.date.today().isoformat()
    path = RESULTS / f"block_{gpu.lower().removeprefix('nvidia ').replace(' ', '_')}.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    print(f"{len(rows)} rows added to {path}")


if __name__ == "__main__":
    sys.exit(main())
