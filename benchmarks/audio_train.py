"""Training steps of the SC09 waveform model on a GPU: batch 16 x 16,000, forward, backward and AdamW, bf16 autocast.

    PYTHONPATH=. python benchmarks/audio_train.py

The peer is the same model with mamba_ssm's fused block (`mamba_inner_fn`) inside, where its extensions are installed;
the loss and the gradients of both are compared first. Rows go to benchmarks/results/audio_train_<gpu>.csv.
"""

import contextlib
import csv
import datetime
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from mamba_ssm_block import has_peer, peer_block

from mamba_seq.block import Mamba
from mamba_seq.config import ModelConfig, SaShiMiConfig
from mamba_seq.heads.language_model import LanguageModel
from mamba_seq.normed import normed

B, L, V = 16, 16000, 256
STEPS = 5
BF16 = torch.bfloat16


def main() -> int:
    """Compare, measure, save; the exit code is 1 when the two models differ."""
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    torch.manual_seed(0)
    backbone = SaShiMiConfig(d_model=64, n_layer=8, pool=[4, 4], norm="layer")
    config = ModelConfig(task="language-model", backbone=backbone, vocab_size=V, tie_embeddings=False)
    model = LanguageModel(config).cuda().train()
    tokens = torch.randint(0, V, (B, L), device="cuda")
    peer = has_peer()
    if peer:
        ours = gradients(model, tokens[:2, :4000])
        with theirs_inside():
            other = gradients(model, tokens[:2, :4000])
        worst = max(float((ours[n] - g).norm() / g.norm()) for n, g in other.items() if g.norm() > 0)
        print(f"gradients, ours against mamba_ssm's blocks: {worst:.1e} of their norm at most")
        if not worst < 0.15:  # bf16 through 40 blocks
            return 1
    rows = [row("ours", *measure(model, tokens))]
    if peer:
        with theirs_inside():
            rows.append(row("mamba_ssm blocks", *measure(model, tokens)))
        print(f"{float(rows[0]['samples_per_s']) / float(rows[1]['samples_per_s']):.2f} times the peer")
    short = re.sub(r"\W+", "_", torch.cuda.get_device_name().lower()).strip("_")
    path = Path(__file__).parent / "results" / f"audio_train_{short}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"saved {path}")
    return 0


def row(what: str, step: float, peak: int) -> dict[str, Any]:
    """Return a row of the table, and print it."""
    print(f"{what:18} {1e3 * step:8.1f} ms a step, {B * L / step:12,.0f} samples/s, {peak / 1e9:.2f} GB", flush=True)
    return {
        "gpu": torch.cuda.get_device_name(), "what": what, "B": B, "L": L, "step_ms": f"{1e3 * step:.2f}",
        "samples_per_s": round(B * L / step), "peak_bytes": peak, "torch": torch.__version__,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }  # fmt: skip


def loss_of(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Return the loss of the next level."""
    with torch.autocast("cuda", BF16):
        logits = model(F.pad(tokens[:, :-1], (1, 0), value=V // 2))
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def gradients(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss_of(model, tokens), parameters)
    return dict(zip(names, (g.float() for g in found), strict=True))


def measure(model: LanguageModel, tokens: Tensor) -> tuple[float, int]:
    """Return the median seconds of a step and the peak of memory."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    found = []
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss_of(model, tokens).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:]), torch.cuda.max_memory_allocated()


@contextlib.contextmanager
def theirs_inside() -> Iterator[None]:
    """Let every block of a model run mamba_ssm's fused function, behind our normalisation."""

    def forward_normed(block: Mamba, residual: Tensor, norm: Any, *others: Any) -> tuple[Tensor, Tensor]:
        return residual, peer_block(block, normed(residual, norm, BF16))

    with mock.patch.object(Mamba, "forward_normed", forward_normed):
        yield


if __name__ == "__main__":
    sys.exit(main())
