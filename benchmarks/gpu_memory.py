"""Memory of a training step: a 125 M-parameter Mamba beside a Transformer of that size, at batch 1 to 32.

    PYTHONPATH=. python benchmarks/gpu_memory.py [--batches 1 2 4 8 16 32] [--dry]

It redoes table 15 of the Mamba paper (arXiv 2312.00752, section E.5), whose own figures, on an A100 with 80 GB, are
printed beside. Sequences have 2,048 tokens of a vocabulary of 50,280. Mamba has 24 blocks of width 768 (129 M
parameters), the Transformer 12 of width 768 with 12 heads (125 M, GPT-2's design), FlashAttention through torch's SDPA
and torch.compile on every block. All have one tied embedding, and the same compiled output layer and loss. Weights,
gradients and AdamW's two moments are float32, the rest runs under bfloat16 autocast, with a residual stream in float32.

A step is forward, backward and optimizer, and counted is the second one: `peak_gb` is what torch allocated at most,
`reserved_gb` what it held, both in 10^9 bytes. Rows are appended to results/memory_<gpu>.csv. Compiled and plain models
are compared before, and our scan with float64; when something differs, nothing is measured.
"""

import argparse
import functools
import gc
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mamba_seq import MambaConfig, ModelConfig
from mamba_seq.heads import LanguageModel
from mamba_seq.pipelines.bench.checks import check_ours, relative_error
from mamba_seq.pipelines.bench.plan import Plan
from mamba_seq.pipelines.bench.table import about, append_csv
from mamba_seq.pipelines.errors import CheckError

RESULTS = Path(__file__).parent / "results"
LENGTH, VOCABULARY, WIDTH = 2048, 50_280, 768
MODELS = ("mamba-seq", "mamba-seq, compiled", "mamba-seq, checkpointed", "Transformer")
PAPER = {
    "mamba-seq": {1: 4.8, 2: 5.8, 4: 7.3, 8: 12.3, 16: 23.1, 32: 38.2},
    "Transformer": {1: 4.6, 2: 5.2, 4: 6.9, 8: 11.5, 16: 20.7, 32: 34.5},
}
"""Gigabytes on an A100 80GB by batch, of the paper's Mamba and Transformer."""
COMPILE: dict[str, Any] = {"dynamic": True}  # one compilation for all batches but 1


def main(arguments: list[str] | None = None) -> int:
    """Check, measure, print and save; the exit code is 1 when the check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--dry", action="store_true", help="save nothing")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        check_ours("selective_scan", Plan(ops=(), shapes=(), dtype=torch.bfloat16), device)
        for name in asked.models:
            print(f"{name}: off by {check(name, device):.1e} of the plain model's largest gradient", flush=True)
    except CheckError as error:
        print(error)
        return 1
    rows = [row for name in asked.models for row in measure(name, asked.batches, device)]
    show(rows, asked.batches)
    if not asked.dry:
        gpu = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ").replace(" ", "_")
        path = RESULTS / f"memory_{gpu}.csv"
        machine = about(device)
        append_csv(path, [{**row, **machine} for row in rows])
        print(f"{len(rows)} rows added to {path}")
    return 0


class Attention(nn.Module):
    """A pre-norm Transformer block with causal attention (GPT-2, section 2.3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        split = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm_1(hidden)).view(split).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.down(F.gelu(self.up(self.norm_2(hidden)), approximate="tanh"))


class Transformer(nn.Module):
    """Embedding, learned positions and blocks; gives vectors, as a backbone does."""

    def __init__(self, width: int, layers: int, heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            for layer in self.layers:
                hidden = layer(hidden)
        return self.norm(hidden)


class MambaVectors(nn.Module):
    """Our language model up to its output layer."""

    def __init__(self, width: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        backbone = MambaConfig(d_model=width, n_layer=layers)
        self.model = LanguageModel(ModelConfig(task="language-model", backbone=backbone, vocab_size=vocabulary))

    @property
    def embedding(self) -> nn.Module:
        return self.model.embedding

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.backbone.layers

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.backbone(self.model.embed(tokens))


def make(
    name: str,
    device: torch.device,
    width: int = WIDTH,
    layers: int = 24,
    vocabulary: int = VOCABULARY,
    length: int = LENGTH,
    compiled: bool = True,
) -> nn.Module:
    """Make one of the models; `layers` are Mamba's, and a Transformer has half as many."""
    torch.manual_seed(0)
    model: nn.Module
    if name == "Transformer":
        model = Transformer(width, layers // 2, width // 64, vocabulary, length)
    else:
        model = MambaVectors(width, layers, vocabulary)
        model.model.backbone.gradient_checkpointing = name.endswith("checkpointed")
    if compiled and (name == "Transformer" or name.endswith("compiled")):
        for layer in model.layers:
            layer.compile(**COMPILE)
    return model.to(device).train()


def loss_of(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the next token; compiled, it holds the logits in 16 bits only."""
    logits = F.linear(hidden, embedding)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@functools.cache
def compiled_loss() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(loss_of, **COMPILE)


def backward(model: nn.Module, tokens: Tensor, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Run forward and backward on tokens (batch, length + 1); return the loss."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        value = loss(model(tokens[:, :-1]), model.embedding.weight, tokens[:, 1:])
    value.backward()
    return value.detach()


def check(name: str, device: torch.device) -> float:
    """Compare a small model with the same one neither compiled nor checkpointed: the loss and every gradient.

    Raises:
        CheckError: when they differ by more than rounding to 16 bits does.
    """
    sizes: dict[str, int] = {"width": 128, "layers": 4, "vocabulary": 500, "length": 256}
    tokens = torch.randint(0, 500, (3, 257), generator=torch.Generator().manual_seed(1)).to(device)
    found = []
    for kind, compiled in ((name, True), ("Transformer" if name == "Transformer" else "mamba-seq", False)):
        model = make(kind, device, **sizes, compiled=compiled)
        value = backward(model, tokens, compiled_loss() if compiled else loss_of)
        found.append((value, {key: p.grad for key, p in model.named_parameters()}))
    (loss, gradients), (expected, wanted) = found
    largest = max(float(g.abs().max()) for g in wanted.values())
    worst = max(float((gradients[key] - g).abs().max()) / largest for key, g in wanted.items())
    if not (relative_error(loss[None], expected[None]) < 1e-2 and worst < 5e-2):
        raise CheckError(f"{name}: loss {loss:.4f}, plain {expected:.4f}; gradients off by {worst:.1e}")
    return worst


def measure(name: str, batches: list[int], device: torch.device) -> list[dict[str, Any]]:
    """Return a row a batch; memory is empty where it did not suffice."""
    rows = []
    model = make(name, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for batch in batches:
        row: dict[str, Any] = {
            "model": name,
            "batch": batch,
            "L": LENGTH,
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_gb": "",
            "reserved_gb": "",
            "step_ms": "",
        }
        tokens = torch.randint(0, VOCABULARY, (batch, LENGTH + 1), device=device)

        def step(tokens: Tensor = tokens) -> None:
            optimizer.zero_grad(set_to_none=True)
            backward(model, tokens, compiled_loss())
            optimizer.step()

        try:
            step()
            clear()
            torch.cuda.reset_peak_memory_stats(device)
            step()
            row["peak_gb"] = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}"
            row["reserved_gb"] = f"{torch.cuda.max_memory_reserved(device) / 1e9:.2f}"
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            step()
            torch.cuda.synchronize(device)
            row["step_ms"] = f"{1e3 * (time.perf_counter() - start):.1f}"
        except torch.OutOfMemoryError:
            print(f"{name} at batch {batch}: out of memory")
        row["paper_gb"] = PAPER.get(name, {}).get(batch, "")
        rows.append(row)
        print(f"{name}, batch {batch}: {row['peak_gb']} GB, {row['step_ms']} ms", flush=True)
        optimizer.zero_grad(set_to_none=True)
        clear()
    return rows


def clear() -> None:
    """Give memory back between batches."""
    gc.collect()
    torch.cuda.empty_cache()


def show(rows: list[dict[str, Any]], batches: list[int]) -> None:
    """Print the paper's table with ours: gigabytes by batch."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    peak = {(row["model"], row["batch"]): row["peak_gb"] or "-" for row in rows}
    heads = [*names, "paper: Mamba", "paper: Transformer"]
    print("\npeak memory of a training step, GB; the paper's on an A100 80GB")
    print("batch  " + "  ".join(heads))
    for batch in batches:
        published = [str(PAPER[model].get(batch, "-")) for model in ("mamba-seq", "Transformer")]
        cells = [*(peak[name, batch] for name in names), *published]
        print(f"{batch:5}  " + "  ".join(f"{cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
