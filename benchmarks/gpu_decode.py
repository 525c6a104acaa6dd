"""Tokens per second of decoding on a GPU, beside every peer that is installed, after a check of what is timed.

    PYTHONPATH=. python benchmarks/gpu_decode.py [rows] [settings] [--dry]

`rows`: language models of 256 tokens in bf16, a stack of 14 blocks of width 256 (6.2 M parameters) and one of 40
blocks of width 64 (1.3 M), at batch 1, 64 and 1,024: our loop of steps as a CUDA graph, greedy and drawing, against the
same step called from Python; our separate operators, called from Python and as a graph; the block written in plain
torch operations ("torch", a step called from Python); transformers' MambaForCausalLM with its cache, where it is
installed.
`settings`: times of a step of the stack alone for several numbers of channels and warps a program.

Rows are appended to results/decode_<gpu>.csv: a step in microseconds (median of 5 runs of many steps each, of 3 where a
step takes 5 ms, with minimum and maximum), tokens a second, and the ratio to the eager step in plain torch in the same
run.
"""

import argparse
import csv
import datetime
import functools
import gc
import importlib.util
import itertools
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from mamba_seq import LanguageModel, MambaConfig, ModelConfig
from mamba_seq.decoding import TokenLoop
from mamba_seq.fused_step import weights_of
from mamba_seq.kernels.block_step import FinalNorm, block_step_reference
from mamba_seq.kernels.block_step.triton import Launch, Prepared

RESULTS = Path(__file__).parent / "results"
STACKS = {"14 x 256": (14, 256), "40 x 64": (40, 64)}
BATCHES = (1, 64, 1024)
GREEDY = (0.0, None, None)
BASE = "torch, eager"


def main() -> int:
    """Check, then run what the arguments ask for; the exit code is 1 when the check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default="rows", choices=["rows", "settings"])
    parser.add_argument("--dry", action="store_true", help="save nothing, and go on where a check fails")
    arguments = parser.parse_args()
    wanted = arguments.what
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    started = time.time()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    worst = max(check_stack(), check_16_bits(), check_loop())
    print(f"largest error relative to the largest element: {worst:.1e} ({time.time() - started:.0f} s)", flush=True)
    if not worst < 1e-4:
        print("too large: nothing is timed")
        if not arguments.dry:
            return 1
    rows = run_rows() if "rows" in wanted else []
    if "settings" in wanted:
        run_settings()
    if rows and not arguments.dry:
        save(rows)
    print(f"{time.time() - started:.0f} s")
    return 0


def check_stack() -> float:
    """Return the worst relative error of outputs and states of the fused step in float32 against float64."""
    worst = 0.0
    for width, batch in ((64, 1), (64, 3), (100, 2), (256, 1), (256, 5), (24, 4)):
        model = make_model(2, width).float()
        wide = make_model(2, width).double()
        state, exact = model.allocate_state(batch), wide.allocate_state(batch)
        for _ in range(5):
            hidden = torch.randn(batch, width, device="cuda")
            got = model.backbone.step(hidden, state)
            want = plain_backbone_step(wide, hidden.double(), exact)
        pairs = [(got, want)] + [
            (a, b) for s, e in zip(state, exact, strict=True) for a, b in zip(s[:2], e[:2], strict=True)
        ]
        errors = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
        print(f"check {width} batch {batch}: {max(errors):.1e}", flush=True)
        worst = max(worst, *errors)
    return worst


def check_16_bits() -> float:
    """Return infinity unless bfloat16 is as near to float64 as it rounds; one case of each way to launch."""
    worst = 0.0
    for width, batch in ((64, 1), (64, 300), (256, 3), (256, 7), (256, 12), (256, 40)):
        layers = LAYERS[width]  # the kernels that are timed
        model, wide = make_model(layers, width).bfloat16(), make_model(layers, width).bfloat16().double()
        state, exact = model.allocate_state(batch), wide.allocate_state(batch)
        for _ in range(4):
            hidden = torch.randn(batch, width, device="cuda")
            got = model.backbone.step(hidden, state)
            want = plain_backbone_step(wide, hidden.double(), exact)
        error = float((got - want).abs().max() / want.abs().max())
        print(f"check {width} batch {batch} in bf16: {error:.1e}", flush=True)
        worst = max(worst, error)
    return 0.0 if worst < 6e-2 else float("inf")


def check_loop() -> float:
    """Return infinity unless the captured loop draws the tokens that steps called one by one do.

    In bfloat16 with the separate operators behind the stack, in float32 with the one launch there: its logits are sums
    in another order, which bfloat16 shows where two are nearly equal.
    """
    kinds = ((torch.bfloat16, False), (torch.float32, True))
    samplings = (GREEDY, (1.0, None, None), (0.8, 20, 0.9))
    for (layers, width), (kind, few), sampling in itertools.product(STACKS.values(), kinds, samplings):
        model = make_model(layers, width).to(kind)
        prompt = torch.randint(0, 256, (3, 40), device="cuda")
        given = dict(zip(("temperature", "top_k", "top_p"), sampling, strict=True))
        with mock.patch("mamba_seq.decoding.few_launches", return_value=few):
            ours = model.generate(prompt, 64, generator=1, **given)
        with mock.patch("mamba_seq.heads.language_model.FEWEST", 1000):
            eager = model.generate(prompt, 64, generator=1, **given)
        same = torch.equal(ours, eager)
        named = f"{layers} x {width} {sampling} {'one launch' if few else 'separate'}"
        print(f"check loop {named}: {'same tokens' if same else 'OTHER TOKENS'}", flush=True)
        if not same:
            return float("inf")
    return 0.0


def run_rows() -> list[dict[str, Any]]:
    """Time every contender on every stack and batch."""
    rows: list[dict[str, Any]] = []
    models = {width: make_model(layers, width).bfloat16() for layers, width in STACKS.values()}
    for (name, (_, width)), batch in itertools.product(STACKS.items(), BATCHES):
        model = models[width]
        parameters = sum(p.numel() for p in model.parameters())
        group = []
        for contender, call in contenders(model, batch):
            try:
                low, middle, high = times(call)
            except (RuntimeError, TypeError, ValueError) as error:  # of a peer of another version, or out of memory
                print(f"{name} batch {batch} {contender}: {type(error).__name__} {str(error)[:300]}", flush=True)
                continue
            group.append(
                {
                    "stack": name,
                    "parameters": parameters,
                    "dtype": "bf16",
                    "batch": batch,
                    "contender": contender,
                    "step_us": f"{middle:.2f}",
                    "step_us_min": f"{low:.2f}",
                    "step_us_max": f"{high:.2f}",
                    "tokens_s": f"{batch / middle * 1e6:.0f}",
                }
            )
            base = next((row for row in group if row["contender"] == BASE), None)
            group[-1]["ratio_to_torch_eager"] = f"{float(base['step_us']) / middle:.2f}" if base else ""
            print(" ".join(f"{k} {v};" for k, v in group[-1].items()), flush=True)
            clear()
        rows += group
    return rows


def contenders(model: LanguageModel, batch: int) -> Iterator[tuple[str, Callable[[int], None]]]:
    """Yield names and functions that take so many steps; what one needs is freed when the next is asked for."""
    first = torch.randint(0, 256, (batch,), device="cuda")

    def loop(sampling: tuple[Any, ...]) -> Callable[[int], None]:
        return TokenLoop(model, first, model.allocate_state(batch), 4096, sampling).advance

    yield BASE, eager(lambda token, state: plain_step(model, token, state), first, model.allocate_state(batch))
    if importlib.util.find_spec("transformers"):
        yield "transformers, eager", transformers_loop(model, first)
    yield "ours, graph, greedy", loop(GREEDY)
    yield "ours, graph, drawn", loop((1.0, None, None))
    yield "ours, graph, top-p", loop((1.0, 50, 0.9))
    yield "ours, eager", eager(model.step, first, model.allocate_state(batch))
    with separate_operators():
        yield "ours, separate operators, graph", loop(GREEDY)
        yield "ours, separate operators, eager", eager(model.step, first, model.allocate_state(batch))


def eager(step: Callable[[Tensor, Any], Tensor], first: Tensor, state: Any) -> Callable[[int], None]:
    """Return a loop of steps called from Python, greedy."""

    @torch.no_grad()
    def run(count: int) -> None:
        token = first
        for _ in range(count):
            token = step(token, state).argmax(dim=-1)

    return run


@functools.lru_cache(maxsize=1)
def transformers_model(model: LanguageModel) -> Any:
    """Return transformers' model with the same weights."""
    from transformers import MambaForCausalLM

    from mamba_seq.interop import export_hf

    with tempfile.TemporaryDirectory() as folder:
        export_hf(model, folder)
        return MambaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()


def transformers_loop(model: LanguageModel, first: Tensor) -> Callable[[int], None]:
    """Return the loop of transformers' model, its state in a cache."""
    theirs = transformers_model(model)

    @torch.no_grad()
    def run(count: int) -> None:
        token = first[:, None]
        cache = theirs(token, use_cache=True).cache_params
        for _ in range(count - 1):
            token = theirs(token, cache_params=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)

    return run


@contextmanager
def separate_operators() -> Iterator[None]:
    """Let the blocks take their steps by one operator after another."""
    with mock.patch("mamba_seq.backbone.fused_step", return_value=None):
        yield


def plain_step(model: LanguageModel, token: Tensor, state: Any) -> Tensor:
    """Step a language model in plain torch operations."""
    return model.read(plain_backbone_step(model, F.embedding(token, model.embedding.weight), state))


@torch.no_grad()
def plain_backbone_step(model: LanguageModel, hidden: Tensor, state: Any) -> Tensor:
    """Step a stack in plain torch operations, as one would write them."""
    kind = model.embedding.weight.dtype
    real = torch.float64 if kind == torch.float64 else torch.float32
    x = hidden.to(real)
    for block, (conv, ssm, _) in zip(model.backbone.blocks, state, strict=True):
        w = weights_of(block)
        assert w is not None
        u, z = F.linear(F.rms_norm(x.to(kind), x.shape[-1:], w.norm_weight, 1e-5), w.in_weight).chunk(2, dim=-1)
        window = torch.cat([conv, u[..., None]], dim=2)
        conv.copy_(window[..., 1:])
        u = F.silu((window * w.conv_weight).sum(-1) + w.conv_bias)
        N, R = w.A_log.shape[1], w.dt_weight.shape[1]
        low, B, C = F.linear(u, w.x_weight).split((R, N, N), dim=-1)
        delta = F.softplus(F.linear(low, w.dt_weight).to(real) + w.dt_bias)
        decay = torch.exp(delta[..., None] * -torch.exp(w.A_log))
        ssm.copy_(decay * ssm + (delta * u)[..., None] * B[:, None])
        y = (ssm * C[:, None]).sum(-1) + w.D * u
        x = x + F.linear((y * F.silu(z.to(real))).to(kind), w.out_weight)
    return F.rms_norm(x.to(kind), x.shape[-1:], model.backbone.norm.weight, 1e-5)


def times(run: Callable[[int], None]) -> tuple[float, float, float]:
    """Return minimum, median and maximum of a step in microseconds; of fewer runs where a step takes long."""

    def measure(count: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(count)
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count * 1e6

    count = min(400, max(3, int(0.06e6 / measure(3))))
    if count > 12:
        count = min(400, max(12, int(0.06e6 / measure(count))))
    found = sorted(measure(count) for _ in range(5 if count > 12 else 3))
    return found[0], found[len(found) // 2], found[-1]


# width, sequences; channels and warps a program, whether all is one launch, sequences a program; 0 channels are the
# separate operators
SETTINGS = [
    (256, 1, 8, 4, True, 1), (256, 1, 16, 4, True, 1), (256, 1, 32, 8, True, 1), (256, 4, 16, 4, True, 1),
    (256, 4, 32, 8, True, 1), (256, 8, 16, 4, True, 1), (256, 8, 32, 8, True, 1), (256, 16, 64, 8, True, 1),
    (256, 16, 16, 4, True, 16), (256, 32, 16, 4, True, 16), (256, 64, 16, 4, True, 16), (256, 64, 0, 0, True, 1),
    (256, 128, 16, 4, False, 16), (256, 128, 0, 0, True, 1),
    (64, 1, 128, 4, True, 1), (64, 64, 128, 4, True, 1), (64, 1024, 128, 4, True, 1), (64, 1024, 0, 0, True, 1),
    (128, 1, 32, 4, True, 1), (128, 1, 64, 8, True, 1), (128, 32, 64, 8, True, 1), (128, 32, 16, 4, True, 16),
    (128, 32, 0, 0, True, 1),
    (512, 1, 16, 4, True, 1), (512, 1, 16, 8, True, 1), (512, 1, 32, 8, True, 1), (512, 1, 0, 0, True, 1),
    (1024, 1, 16, 8, True, 1), (1024, 1, 0, 0, True, 1),
]  # fmt: skip
LAYERS = {64: 40, 128: 14, 256: 14, 512: 4, 1024: 4}


def run_settings() -> None:
    """Print what a step of the stack alone takes with each of many settings."""
    kinds = {(width, *rest): (width, min(batch, 64), *rest) for width, batch, *rest in SETTINGS}
    begin = time.time()
    with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_setting, kinds.values()))
    print(f"compiled in {time.time() - begin:.0f} s", flush=True)
    for setting in SETTINGS:
        try:
            took = time_setting(*setting)
        except Exception as error:  # one that does not fit the GPU is a row of the table too
            print(f"{setting}: {type(error).__name__} {str(error)[:200]}", flush=True)
            continue
        width, batch, channels, warps, resident, group = setting
        form = f"channels {channels} warps {warps} rows {group} {'one launch' if resident else 'more'}"
        print(
            f"width {width} batch {batch} {form if channels else 'separate operators'}: "
            f"{took:.2f} us a step, {took / LAYERS[width]:.3f} a block",
            flush=True,
        )


def compile_setting(setting: tuple[int, int, int, int, bool, int]) -> None:
    """Compile the kernels of a setting into Triton's cache."""
    try:
        time_setting(*setting, rounds=0)
    except Exception as error:
        print(f"{setting}: {type(error).__name__} {str(error)[:200]}", flush=True)


@torch.no_grad()
def time_setting(
    width: int, batch: int, channels: int, warps: int, resident: bool, group: int, rounds: int = 5
) -> float:
    """Return microseconds of a step of the stack, of 20 in a graph; 0 rounds only run it once."""
    model = make_model(LAYERS[width], width).bfloat16()
    state = model.allocate_state(batch)
    blocks = [weights_of(block) for block in model.backbone.blocks]
    states = [(s.conv, s.ssm) for s in state]
    x = torch.randn(batch, width, device="cuda")
    final = FinalNorm(model.backbone.norm.weight, None, 1e-5)
    if channels:
        step: Callable[[Tensor], Tensor] = Prepared(
            x, states, blocks, "rms", 1e-5, final, Launch(channels, warps, resident, group)
        )
    else:

        def step(x: Tensor) -> Tensor:
            with separate_operators():
                return model.backbone.step(x, state)

    kept = [(a.clone(), b.clone()) for a, b in states]
    got, want = step(x), block_step_reference(x, kept, blocks, "rms", 1e-5, final)
    torch.cuda.synchronize()
    error = float((got - want).abs().max() / want.abs().max())
    if not error < 6e-2:
        raise ValueError(f"the error is {error:.1e}")
    if not rounds:
        return 0.0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            step(x)

    def run(count: int) -> None:
        for _ in range(count):
            graph.replay()

    run(3)
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(10)
        torch.cuda.synchronize()
        found.append((time.perf_counter() - begin) / 200 * 1e6)
    return sorted(found)[rounds // 2]


def make_model(layers: int, width: int) -> LanguageModel:
    """Build a language model of 256 tokens on the GPU, the same at every call."""
    torch.manual_seed(0)
    backbone = MambaConfig(d_model=width, n_layer=layers)
    model = LanguageModel(ModelConfig(task="language-model", backbone=backbone, vocab_size=256))
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    return model.cuda().eval()


def clear() -> None:
    """Give memory back between contenders."""
    gc.collect()
    torch.cuda.empty_cache()


def driver_version() -> str:
    """Ask nvidia-smi for the driver's version."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]


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
    path = RESULTS / f"decode_{gpu.lower().removeprefix('nvidia ').replace(' ', '_')}.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) + list(about))
        if new:
            writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    print(f"{len(rows)} rows added to {path}")


if __name__ == "__main__":
    sys.exit(main())
