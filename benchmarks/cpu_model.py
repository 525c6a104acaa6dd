"""Tokens per second of whole models on the CPU, forward: our backbone beside transformers and mambapy, same sizes.

    pip install transformers mambapy
    python benchmarks/cpu_model.py

First the same weights go into ours and into transformers' model and the outputs are compared; nothing is timed when
they differ. A peer that is not installed is left out and named. Rows are appended to results/cpu_model.csv; `ratio` is
ours over the peer in tokens per second, medians of runs in turn. Torch's threads wait for work spinning, which takes
cores from the threads of our kernels: `spin` is the environment variable GOMP_SPINCOUNT, 1000 in `mamba-seq` and
unset ("default") in a Python that nobody told otherwise.
"""

import argparse
import csv
import datetime
import importlib.metadata
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from mamba_seq import Backbone, MambaConfig, __version__, from_pretrained
from mamba_seq.pipelines.info import cpu_name

RESULTS = Path(__file__).parent / "results" / "cpu_model.csv"
COLUMNS = [
    "d_model",
    "n_layer",
    "L",
    "peer",
    "ours_tokens_s",
    "peer_tokens_s",
    "ratio",
    "ours_min",
    "ours_max",
    "peer_min",
    "peer_max",
    "cpu",
    "threads",
    "spin",
    "torch",
    "peer_version",
    "version",
    "date",
]
Forward = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="save nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    check_against_transformers()
    ours = Backbone(MambaConfig(d_model=arguments.width, n_layer=arguments.layers)).eval()
    for length in arguments.lengths:
        hidden = torch.randn(1, length, arguments.width)
        for name, peer in peers(arguments.width, arguments.layers).items():
            mine, other = in_turn(ours, peer, hidden, arguments.runs)
            row = make_row(arguments, length, name, mine, other)
            print(
                f"L {length}: ours {row['ours_tokens_s']} tokens/s, {name} {row['peer_tokens_s']}, {row['ratio']}x",
                flush=True,
            )
            if not arguments.dry:
                save(row)


def check_against_transformers() -> None:
    """Load a random transformers model here and compare logits; refuse to go on when they differ."""
    from transformers import MambaConfig as TheirConfig
    from transformers import MambaForCausalLM

    theirs = MambaForCausalLM(TheirConfig(vocab_size=32, hidden_size=64, num_hidden_layers=3)).eval()
    tokens = torch.randint(0, 32, (2, 257))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        theirs.save_pretrained(folder)
        difference = (from_pretrained(folder)(tokens) - theirs(tokens).logits).abs().max().item()
    if not difference < 1e-4:
        raise SystemExit(f"logits differ from transformers' by {difference}: nothing is timed")
    print(f"logits agree with transformers' to {difference:.1e}")


def peers(width: int, layers: int) -> dict[str, Forward]:
    """Build the peers that are installed, each from vectors (B, L, d_model) to vectors."""
    found: dict[str, Forward] = {}
    try:
        from transformers import MambaConfig as TheirConfig
        from transformers import MambaModel

        for name, extra in (("transformers", {}), ("transformers, use_mambapy", {"use_mambapy": True})):
            config = TheirConfig(vocab_size=8, hidden_size=width, num_hidden_layers=layers, use_cache=False, **extra)
            model = MambaModel(config).eval()
            found[name] = lambda hidden, model=model: model(inputs_embeds=hidden).last_hidden_state  # type: ignore[misc]
    except ImportError as error:
        print(f"left out: transformers ({error})")
    try:
        from mambapy.mamba import Mamba
        from mambapy.mamba import MambaConfig as TheirMambapyConfig

        found["mambapy"] = Mamba(TheirMambapyConfig(d_model=width, n_layers=layers)).eval()
    except ImportError as error:
        print(f"left out: mambapy ({error})")
    return found


def in_turn(ours: Forward, peer: Forward, hidden: torch.Tensor, runs: int) -> tuple[list[float], list[float]]:
    """Time both in turn, after one run each that is not counted; tokens per second."""
    rates: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for run in range(runs + 1):
            for forward, kept in zip((ours, peer), rates, strict=True):
                started = time.perf_counter()
                forward(hidden)
                if run:
                    kept.append(hidden.shape[1] / (time.perf_counter() - started))
    return rates


def make_row(
    arguments: argparse.Namespace, length: int, name: str, mine: list[float], other: list[float]
) -> dict[str, object]:
    ours, theirs = statistics.median(mine), statistics.median(other)
    package = "mambapy" if name == "mambapy" else "transformers"
    return {
        "d_model": arguments.width,
        "n_layer": arguments.layers,
        "L": length,
        "peer": name,
        "ours_tokens_s": round(ours),
        "peer_tokens_s": round(theirs),
        "ratio": round(ours / theirs, 1),
        "ours_min": round(min(mine)),
        "ours_max": round(max(mine)),
        "peer_min": round(min(other)),
        "peer_max": round(max(other)),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "spin": os.environ.get("GOMP_SPINCOUNT", "default"),
        "torch": torch.__version__,
        "peer_version": importlib.metadata.version(package),
        "version": __version__,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def save(row: dict[str, object]) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
