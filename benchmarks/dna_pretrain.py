"""Tokens a second of pretraining the 1.4 M model on a GPU, beside the same model around mamba_ssm's fused block.

    PYTHONPATH=. python benchmarks/dna_pretrain.py [--lengths 1024 32768 1048576] [--tokens 1048576] [--dry]

A step is that of `mamba-seq train mamba-dna-lm.genomes`: 12 blocks of width 128, float32 weights, bf16 autocast, the
residual stream in float32, 1,048,576 bases in windows of one length, weighted cross-entropy, gradients clipped, fused
AdamW. Reading the data is not part of it.

The peer is what mamba_ssm builds: for every block its fused addition and RMSNorm (`rms_norm_fn`, stream in float32) and
its fused block (`mamba_inner_fn`, with the product in front of it as its module makes it), with the weights of ours;
embedding, loss and optimiser are ours. It runs where its extensions `selective_scan_cuda` and `causal_conv1d_cuda` are
installed. Where a step does not fit into memory it goes through in halves, quarters and so on, down to a window.

First the loss and every gradient of two small models are compared. Rows go to results/dna_pretrain_<gpu>.csv:
medians of `steps`, with minimum and maximum, in milliseconds; `ratio` is our tokens a second over the peer's in this
run, `per_token_2_15` our time a token over that at 32,768, and `peak_gb` 1e9 bytes allocated at most.
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
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from mamba_ssm_block import has_peer, peer_block

from mamba_seq import LanguageModel, Mamba, MambaConfig, ModelConfig
from mamba_seq.backbone import ResidualBlock
from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.pipelines.likelihood import shifted

RESULTS = Path(__file__).parent / "results"
LENGTHS = (1024, 32768, 1048576)
TOKENS = 1 << 20
SECONDS = 3.0
"""Of timed steps for every model and length, and at least 3 steps."""
BF16 = torch.bfloat16
COLUMNS = ["model", "L", "windows", "tokens", "parts", "steps", "step_ms", "step_ms_min", "step_ms_max"]
COLUMNS += ["tokens_per_s", "peak_gb", "ratio", "per_token_2_15", "gpu", "driver", "torch", "triton", "date"]
Forward = Callable[[Tensor], Tensor]
Row = dict[str, Any]


def main() -> int:
    """Check, time and save; the exit code is 1 when the check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a step")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    peer = has_peer()
    if peer and not check():
        print("ours and mamba_ssm differ: nothing is timed")
        return 1
    rows: list[Row] = []
    for length in arguments.lengths:
        ours = measure("mamba-seq", length, arguments.tokens)
        rows.append(ours)
        if peer:
            rows.append(measure("mamba_ssm", length, arguments.tokens))
            if rows[-1]["tokens_per_s"] and ours["tokens_per_s"]:
                ours["ratio"] = f"{ours['tokens_per_s'] / rows[-1]['tokens_per_s']:.2f}"
        at_2_15 = [row["tokens_per_s"] for row in rows if row["L"] == 32768 and row["model"] == "mamba-seq"]
        if at_2_15 and at_2_15[0] and ours["tokens_per_s"]:
            ours["per_token_2_15"] = f"{at_2_15[0] / ours['tokens_per_s']:.2f}"
        for row in rows[-1 - peer :]:
            print(" ".join(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
    if not arguments.dry:
        save(rows)
    return 0


def make(n_layer: int = 12) -> LanguageModel:
    """Make the model of the recipe `mamba-dna-lm.genomes`."""
    torch.manual_seed(0)
    backbone = MambaConfig(d_model=128, n_layer=n_layer)
    config = ModelConfig(task="language-model", backbone=backbone, vocab_size=DNA.size, alphabet=DNA.name)
    return LanguageModel(config).cuda().train()


def peer_of(model: LanguageModel) -> Forward:
    """Return the logits of tokens (B, L) by mamba_ssm's kernels and the model's weights."""
    from mamba_ssm.ops.triton.layer_norm import rms_norm_fn

    def forward(tokens: Tensor) -> Tensor:
        hidden, residual = model.embedding(tokens), None
        for layer in cast("nn.ModuleList", model.backbone.layers):
            block = cast("ResidualBlock", layer)
            norm = cast("nn.RMSNorm", block.norm)
            how: dict[str, Any] = {"residual": residual, "eps": norm.eps, "prenorm": True, "residual_in_fp32": True}
            hidden, residual = rms_norm_fn(hidden, norm.weight, None, **how)
            hidden = peer_block(cast("Mamba", block.mixer), hidden.to(BF16))
        norm = cast("nn.RMSNorm", model.backbone.norm)
        last = {"residual": residual, "eps": norm.eps, "prenorm": False, "residual_in_fp32": True}
        return model.read(rms_norm_fn(hidden, norm.weight, None, **last))

    return forward


def share(forward: Forward, tokens: Tensor, total: int) -> Tensor:
    """Return the sum of a part's cross-entropies, weighted as in training, over the number of a step's tokens."""
    with torch.autocast("cuda", BF16):
        logits = forward(shifted(tokens)).flatten(0, 1)
        nats = F.cross_entropy(logits.float(), tokens.flatten(), reduction="none")
        return torch.dot(nats, (tokens.flatten() != DNA.unknown_code).float()) / total


def check() -> bool:
    """Compare the loss and every gradient of four blocks by ours and by mamba_ssm; say what is furthest off."""
    model = make(n_layer=4)
    tokens = torch.randint(0, 4, (3, 4096), generator=torch.Generator().manual_seed(1)).cuda()
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for forward in (model, peer_of(model)):
        model.zero_grad(set_to_none=True)
        loss = share(forward, tokens, tokens.numel())
        loss.backward()
        found.append((loss.detach(), {n: cast("Tensor", p.grad).clone() for n, p in model.named_parameters()}))
    (ours, mine), (theirs, other) = found
    worst, name = max((float((mine[n] - g).norm() / g.norm()), n) for n, g in other.items())
    print(f"loss {ours:.5f} and {theirs:.5f}; gradients differ by {worst:.1e} of their norm at most, in {name}")
    return abs(float(ours - theirs)) < 2e-3 * float(theirs) and worst < 5e-2


def measure(name: str, length: int, tokens: int) -> Row:
    """Time steps of a model at one length; return a row."""
    model = make()
    forward = model if name == "mamba-seq" else peer_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    windows = max(1, tokens // length)
    batch = torch.randint(0, 4, (windows, length), device="cuda")
    row: Row = dict.fromkeys(COLUMNS, "") | {"model": name, "L": length, "windows": windows, "tokens": batch.numel()}

    def step(parts: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        for part in batch.chunk(parts):
            share(forward, part, batch.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    parts = 1
    while parts <= windows:
        clear()
        try:
            for _ in range(2):
                step(parts)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            times: list[float] = []
            while len(times) < 3 or sum(times) < SECONDS:
                started = time.perf_counter()
                step(parts)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
        except torch.cuda.OutOfMemoryError:
            parts *= 2
            continue
        middle = statistics.median(times)
        row |= {"parts": parts, "steps": len(times), "step_ms": f"{1e3 * middle:.2f}"}
        row |= {"step_ms_min": f"{1e3 * min(times):.2f}", "step_ms_max": f"{1e3 * max(times):.2f}"}
        row |= {"tokens_per_s": round(batch.numel() / middle)}
        row |= {"peak_gb": f"{torch.cuda.max_memory_allocated() / 1e9:.2f}"}
        break
    else:
        print(f"{name} at {length}: one window does not fit into memory")
    clear()
    return row


def clear() -> None:
    """Give memory back."""
    gc.collect()
    torch.cuda.empty_cache()


def save(rows: list[Row]) -> None:
    """Append rows to the table of this GPU."""
    import triton

    gpu = torch.cuda.get_device_name()
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    about = {"gpu": gpu, "driver": driver, "torch": torch.__version__, "triton": triton.__version__}
    about["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"dna_pretrain_{gpu.lower().removeprefix('nvidia ').replace(' ', '_')}.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    print(f"{len(rows)} rows added to {path}")


if __name__ == "__main__":
    sys.exit(main())
