"""Samples a second of `mamba-seq generate`'s engine, for the architecture of sashimi-mamba.sc09.

    python benchmarks/audio_generate.py             on the GPU if there is one, else on the CPU
    python benchmarks/audio_generate.py --device cpu

Correctness first: log-probabilities against the whole forward pass, and a clip alone against the same one in a batch.
Then against the same model stepped eagerly and, on a GPU, against a Transformer of the same size with a static KV cache
(SDPA, its step and draw a CUDA graph). Rows go to benchmarks/results/audio_generate_<device>.csv.
"""

import argparse
import csv
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_seq.config import ModelConfig, SaShiMiConfig
from mamba_seq.counted import Drawing
from mamba_seq.heads.language_model import LanguageModel
from mamba_seq.pipelines.bench.table import about
from mamba_seq.waveform_decoding import WaveformDecoder

V, SILENCE = 256, 128
ROUNDS = 3
MOST_CACHE = 40e9
"""Bytes of the Transformer's cache."""


def sc09(device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Return the model with weights that make its logits uneven."""
    torch.manual_seed(0)
    backbone = SaShiMiConfig(d_model=64, n_layer=8, pool=[4, 4], norm="layer")
    config = ModelConfig(task="language-model", backbone=backbone, vocab_size=V, tie_embeddings=False)
    model = LanguageModel(config).eval()
    assert model.output is not None
    nn.init.normal_(model.output.weight, std=0.3)
    return model.to(device, dtype)


@torch.no_grad()
def check(device: torch.device) -> None:
    """Raise AssertionError unless the engine does what the model does, and a clip is the same in any batch."""
    model = sc09(device, torch.float32)
    decoder = WaveformDecoder(model, SILENCE)
    levels, likelihood = decoder.start(range(40), Drawing(seed=1)).advance(70)
    inputs = F.pad(levels[:, :-1], (1, 0), value=SILENCE)
    expected = model(inputs).log_softmax(dim=-1).gather(-1, levels[..., None])[..., 0]
    worst = (likelihood - expected).abs().max().item()
    print(f"{decoder.engine} against the whole forward pass: {worst:.1e}")
    assert worst <= 1e-3
    for dtype in [torch.float32] if device.type == "cpu" else [torch.float32, torch.bfloat16]:
        decoder = WaveformDecoder(sc09(device, dtype), SILENCE)
        together = decoder.start(range(40), Drawing(seed=1)).advance(70)
        alone = decoder.start([17], Drawing(seed=1)).advance(70)
        assert torch.equal(together[0][17:18], alone[0]), f"a clip in {dtype} is another one alone"
        assert torch.equal(together[1][17:18], alone[1]), f"a clip in {dtype} has another likelihood alone"


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a call, after one that does not count."""
    found = []
    for _ in range(ROUNDS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def measure(model: LanguageModel, engine: str | None, batch: int, count: int, device: torch.device) -> float:
    """Return the samples a second of all clips together."""
    clips = WaveformDecoder(model, SILENCE, engine).start(range(batch), Drawing(seed=1))
    return batch * count / seconds(lambda: clips.advance(count), device)


class Transformer(nn.Module):
    """Eight layers of width 256, 6.4 M parameters: pre-norm, 4 heads, 1,024 wide inside; a step with a full cache."""

    def __init__(self, batch: int, context: int) -> None:
        super().__init__()
        M, layers = 256, 8
        self.embedding, self.head = nn.Embedding(V, M), nn.Linear(M, V, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(M) for _ in range(2 * layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(M, 3 * M, bias=False) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(M, M, bias=False) for _ in range(layers))
        self.wide = nn.ModuleList(nn.Linear(M, 4 * M, bias=False) for _ in range(layers))
        self.narrow = nn.ModuleList(nn.Linear(4 * M, M, bias=False) for _ in range(layers))
        self.cache = [torch.randn(2, batch, 4, context, 64).bfloat16().cuda() for _ in range(layers)]

    def step(self, tokens: Tensor) -> None:
        """Read tokens (B,), write the cache's last place, and draw the next."""
        x = self.embedding(tokens)
        for i, cache in enumerate(self.cache):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).view(len(x), 3, 4, 1, 64).unbind(1)
            cache[0, :, :, -1:] = k
            cache[1, :, :, -1:] = v
            y = F.scaled_dot_product_attention(q, cache[0], cache[1])
            x = x + self.out[i](y.reshape(len(x), -1))
            x = x + self.narrow[i](F.gelu(self.wide[i](self.norms[2 * i + 1](x))))
        p = self.head(self.norms[-1](x)).float().softmax(dim=-1)
        tokens.copy_((p / torch.empty_like(p).exponential_()).argmax(dim=-1))


@torch.no_grad()
def measure_transformer(batch: int, context: int, device: torch.device) -> float:
    """Return the tokens a second of its step as a CUDA graph."""
    torch.manual_seed(0)
    model = Transformer(batch, context).to(device, torch.bfloat16)
    tokens = torch.zeros(batch, dtype=torch.int64, device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.step(tokens)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.step(tokens)
    count = 20
    return batch * count / seconds(lambda: [graph.replay() for _ in range(count)], device)


def main() -> None:
    """Check, measure, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    on_gpu = device.type == "cuda"
    check(device)
    machine = about(device)
    model = sc09(device, torch.bfloat16 if on_gpu else torch.float32)
    rows: list[dict[str, object]] = []

    def note(what: str, batch: int, context: int, speed: float) -> None:
        rows.append({"what": what, "batch": batch, "context": context, "samples_per_s": round(speed), **machine})
        print(f"{what:32} batch {batch:5} context {context:6}: {speed:12,.0f} samples/s", flush=True)

    fast = "graph" if on_gpu else "compiled"
    for batch in (1, 64, 1024) if on_gpu else (1, 16, 64):
        note(
            f"SaShiMi {fast}", batch, 0, measure(model, None, batch, 1600 if on_gpu else 3200 // min(batch, 16), device)
        )
        note("SaShiMi eager", batch, 0, measure(model, "eager", batch, 32, device))
    if on_gpu:
        for batch in (1, 64, 1024):
            for context in (8000, 16000):
                fits = min(batch, int(MOST_CACHE / (8 * 2 * context * 256 * 2)))
                note("Transformer, KV cache, graph", fits, context, measure_transformer(fits, context, device))
                torch.cuda.empty_cache()
    short = re.sub(r"\W+", "_", str(machine["gpu"]).lower()).strip("_") if on_gpu else "cpu"
    path = Path(__file__).parent / "results" / f"audio_generate_{short}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
