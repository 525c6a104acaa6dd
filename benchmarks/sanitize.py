"""Run each kernel once or twice at small odd shapes, for compute-sanitizer to watch; nothing is timed or saved.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=. compute-sanitizer --tool memcheck --error-exitcode 9 \\
        python benchmarks/sanitize.py
    PYTHONPATH=. compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/sanitize.py --only clips
    PYTHONPATH=. compute-sanitizer --tool racecheck --error-exitcode 9 python benchmarks/sanitize.py

Without torch's cache of freed memory every tensor is an allocation of its own, and memcheck sees what reaches beyond
it. A CUDA graph cannot be captured so, and clips, which run in one, are left out then. Run the script once by itself
before: with the kernels in Triton's cache the sanitizer watches nothing but them. What it watches is slow, so lengths
are short, and just long enough for several chunks where it says so. Outputs and gradients have to be finite; whether
they are right is for the tests and gpu_conformance.py.

`--device cpu` runs the same cases on the CPU kernels; `--only WORD` those whose names have the word.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mamba_seq import Backbone, LanguageModel, MambaConfig, ModelConfig, SaShiMiConfig
from mamba_seq.counted import Drawing
from mamba_seq.kernels import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from mamba_seq.kernels._dispatch import implementation
from mamba_seq.waveform_decoding import WaveformDecoder

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCANS: dict[str, dict[str, Any]] = {
    # on NVIDIA GPUs these run in Gluon; several chunks, one chunk, few steps, many channels, groups, every N it takes
    "gluon, several chunks": {"B": 2, "L": 517, "D": 96},
    "gluon, states kept sparsely": {"B": 1, "L": 389, "D": 64, "sparse": True},
    "gluon, one step": {"B": 1, "L": 1, "D": 32, "dtype": "bf16"},
    "gluon, 63 steps": {"B": 3, "L": 63, "D": 40, "dtype": "bf16"},
    "gluon, one chunk, narrow": {"B": 40, "L": 67, "D": 256, "dtype": "bf16"},
    "gluon, one chunk, middle": {"B": 40, "L": 67, "D": 512},
    "gluon, one chunk, wide": {"B": 40, "L": 67, "D": 1024, "dtype": "fp16"},
    "gluon, plain": {"B": 2, "L": 131, "D": 33, "full": False},
    "gluon, groups": {"B": 1, "L": 261, "D": 128, "G": 4, "dtype": "bf16"},
    "gluon, N 8": {"B": 1, "L": 131, "D": 128, "N": 8},
    "gluon, N 32": {"B": 1, "L": 131, "D": 48, "N": 32},
    "gluon, N 64": {"B": 1, "L": 131, "D": 24, "N": 64},
    # and these in Triton, on every GPU
    "triton, N 3": {"B": 2, "L": 131, "D": 20, "N": 3},
    "triton, N 200": {"B": 1, "L": 65, "D": 5, "N": 200},
    "triton, small groups": {"B": 1, "L": 131, "D": 12, "G": 4, "N": 5},
    "triton, packed": {"B": 1, "L": 300, "D": 40, "packed": True, "dtype": "bf16"},
    "triton, packed, groups": {"B": 1, "L": 133, "D": 40, "G": 2, "packed": True},
    "triton, constant B and C": {"B": 2, "L": 131, "D": 40, "constant": True},
    "triton, complex": {"B": 2, "L": 131, "D": 40, "complex": True},
    "triton, complex, groups, packed": {"B": 1, "L": 133, "D": 40, "G": 2, "packed": True, "complex": True},
    "triton, complex, constant": {"B": 1, "L": 67, "D": 24, "constant": True, "complex": True, "dtype": "bf16"},
}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "conv, 4 taps": {"B": 2, "L": 131, "D": 40},
    "conv, 2 taps, one step": {"B": 1, "L": 1, "D": 33, "K": 2, "dtype": "bf16"},
    "conv, 5 taps, no activation": {"B": 1, "L": 67, "D": 20, "K": 5, "full": False, "dtype": "fp16"},
    "conv, packed": {"B": 1, "L": 133, "D": 40, "packed": True, "dtype": "bf16"},
}
STEPS: dict[str, dict[str, Any]] = {
    "step": {"B": 3, "D": 40},
    "step, bf16, groups": {"B": 2, "D": 96, "G": 3, "dtype": "bf16"},
    "step, complex": {"B": 2, "D": 20, "complex": True},
    "step, constant, N 3": {"B": 5, "D": 33, "N": 3, "constant": True},
}

STACKS: dict[str, dict[str, Any]] = {
    # all kernels of a model, forwards, backwards and of a step
    "blocks, batch 1": {"B": 1, "width": 40},
    "blocks, bf16": {"B": 3, "width": 72, "dtype": "bf16"},
}
CLIPS: dict[str, dict[str, Any]] = {
    # the step of a U-Net, drawing included; on a GPU in a graph, as clips are generated
    "clips": {"B": 3, "pool": [2, 4]},
    "clips, guided, bf16": {"B": 2, "pool": [4, 4], "guidance": 2.0, "dtype": "bf16"},
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", metavar="WORD")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; --device cpu runs the CPU kernels.")
        return 2
    wrong = 0
    for name, run in cases(asked.device):
        if asked.only in name:
            strange = [key for key, tensor in run().items() if not bool(torch.isfinite(tensor).all())]
            wrong += bool(strange)
            print(f"{name}: {'not finite: ' + ', '.join(strange) if strange else 'ran'}", flush=True)
    return 1 if wrong else 0


def cases(device: str) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
    """Yield names and what runs them, which returns outputs and gradients by name."""
    for name, case in SCANS.items():
        yield name, lambda case=case, name=name: run_scan(device, gluon=name.startswith("gluon"), **case)
    graphs = CLIPS if device == "cpu" or "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ else {}
    for sizes, run in ((CONVOLUTIONS, run_convolution), (STEPS, run_step), (STACKS, run_stack), (graphs, run_clips)):
        for name, case in sizes.items():
            yield name, lambda run=run, case=case: run(device, **case)


def run_scan(
    device: str,
    gluon: bool,
    B: int,
    L: int,
    D: int,
    N: int = 16,
    G: int = 1,
    dtype: str = "fp32",
    full: bool = True,
    packed: bool = False,
    constant: bool = False,
    complex: bool = False,
    sparse: bool = False,
) -> dict[str, Tensor]:
    """Run the scan forwards and backwards; inputs are slices of wider tensors, as a block has them."""
    torch.manual_seed(L)
    draw = Draw(device, FLOATS[dtype], complex)
    u, z = draw.wide(B, L, D)
    delta = 0.5 * draw.wide(B, L, D)[0].abs()
    A = -torch.rand(D, N, device=device)
    B_, C = draw.projections(B, L, D, N, G, constant)
    cuts = [0, 1, 64, L // 2 + 9, L - 1, L] if packed else [0, L]
    states = len(cuts) - 1 if packed else B
    options = {
        "cu_seqlens": torch.tensor(cuts, dtype=torch.int32, device=device) if packed else None,
        "delta_softplus": full,
    }
    tensors: dict[str, Tensor] = {"u": u, "delta": delta, "A": draw.state(A), "B": B_, "C": C}
    if full:
        tensors |= {"D": torch.randn(D, device=device), "z": z, "delta_bias": torch.rand(D, device=device) - 5}
        tensors["initial_state"] = draw.state(torch.randn(states, D, N, device=device))
    if device == "cuda":
        module: Any = implementation("selective_scan", "gluon")
        if module.is_recent_nvidia(u.device):
            assert module.runs(u, tensors["A"], B_, C, options["cu_seqlens"]) == gluon, (
                "other kernels run than the name says"
            )
    with kept_sparsely() if sparse and device == "cuda" else contextlib.nullcontext():
        return run_with_gradients(lambda **t: selective_scan(**t, **options, return_final_state=True), tensors)


@contextlib.contextmanager
def kept_sparsely() -> Iterator[None]:
    """Leave no room for states at every tile, so that the backward pass fills them in, as for long sequences."""
    module: Any = implementation("selective_scan", "gluon")
    before, module.MOST_KEPT = module.MOST_KEPT, 0
    try:
        yield
    finally:
        module.MOST_KEPT = before


def run_convolution(
    device: str, B: int, L: int, D: int, K: int = 4, dtype: str = "fp32", full: bool = True, packed: bool = False
) -> dict[str, Tensor]:
    """Run the convolution forwards and backwards, and one step of it."""
    torch.manual_seed(L)
    draw = Draw(device, FLOATS[dtype], False)
    cuts = [0, 1, 3, L // 2, L]
    states = len(cuts) - 1 if packed else B
    boundaries = torch.tensor(cuts, dtype=torch.int32, device=device) if packed else None
    options = {"activation": "silu" if full else None, "cu_seqlens": boundaries}
    tensors = {"x": draw.wide(B, L, D)[0], "weight": torch.randn(D, K, device=device)}
    if full:
        tensors |= {"bias": torch.randn(D, device=device), "initial_state": draw.plain(states, D, K - 1)}
    found = run_with_gradients(lambda **t: causal_conv1d(**t, **options, return_final_state=True), tensors)
    state = draw.plain(B, D, K - 1)
    found["step"] = causal_conv1d_update(draw.plain(B, D), state, tensors["weight"].detach(), activation="silu")
    return {**found, "stepped": state}


def run_step(
    device: str,
    B: int,
    D: int,
    N: int = 16,
    G: int = 1,
    dtype: str = "fp32",
    constant: bool = False,
    complex: bool = False,
) -> dict[str, Tensor]:
    """Run one step of the scan."""
    torch.manual_seed(D)
    draw = Draw(device, FLOATS[dtype], complex)
    B_, C = (x if constant else x[:, 0] for x in draw.projections(B, 1, D, N, G, constant))
    state = draw.state(torch.randn(B, D, N, device=device))
    A = draw.state(-torch.rand(D, N, device=device))
    bias, skip = torch.rand(D, device=device) - 5, torch.randn(D, device=device)
    u, delta, z = (draw.plain(B, D) for _ in range(3))
    y = selective_state_update(state, u, delta, A, B_, C, skip, z, bias, delta_softplus=True)
    return {"y": y, "state": state}


def run_stack(device: str, B: int, width: int, dtype: str = "fp32") -> dict[str, Tensor]:
    """Run a stack of blocks over 33 positions, forwards and backwards, and then one step further."""
    torch.manual_seed(width)
    stack = Backbone(MambaConfig(d_model=width, n_layer=2)).to(device, FLOATS[dtype])
    hidden = Draw(device, FLOATS[dtype], False).plain(B, 33, width)
    stack(hidden).sum().backward()
    found = {f"d{name}": parameter.grad for name, parameter in stack.named_parameters() if parameter.grad is not None}
    with torch.no_grad():
        y, states = stack(hidden, return_state=True)
        found |= {"y": y, "step": stack.step(hidden[:, -1], states)}
    return found | {f"state {i}": state.ssm for i, state in enumerate(states)}


def run_clips(device: str, B: int, pool: list[int], guidance: float = 1.0, dtype: str = "fp32") -> dict[str, Tensor]:
    """Draw 33 levels of each clip, each from all before it."""
    torch.manual_seed(B)
    backbone = SaShiMiConfig(d_model=24, n_layer=1, pool=pool, norm="layer")
    config = ModelConfig(
        task="language-model", backbone=backbone, vocab_size=40, labels=["low", "high"], label_dropout=0.1
    )
    model = LanguageModel(config).eval().to(device, FLOATS[dtype])
    drawing = Drawing(0.9, 20, 0.95, seed=1, guidance=guidance)
    decoder = WaveformDecoder(model, silence=20)
    levels, likelihood = decoder.start(range(B), drawing, [i % 2 for i in range(B)]).advance(33)
    return {"levels": levels, "likelihood": likelihood}


class Draw:
    """Draws tensors of a device and a type."""

    def __init__(self, device: str, dtype: torch.dtype, is_complex: bool) -> None:
        self.device, self.dtype, self.is_complex = device, dtype, is_complex

    def plain(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def wide(self, B: int, L: int, D: int) -> tuple[Tensor, Tensor]:
        first, second = self.plain(B, L, 2 * D).chunk(2, -1)
        return first, second

    def state(self, real: Tensor) -> Tensor:
        return torch.complex(real, torch.randn_like(real)) if self.is_complex else real

    def projections(self, B: int, L: int, D: int, N: int, G: int, constant: bool) -> tuple[Tensor, Tensor]:
        if constant:
            first, second = (self.state(torch.randn(D, N, device=self.device)) for _ in range(2))
            return first, second
        shape = (B, L, N) if G == 1 else (B, L, G, N)
        if self.is_complex:
            first, second = (self.state(torch.randn(shape, device=self.device)) for _ in range(2))
            return first, second
        first, second = self.plain(*shape[:-1], 2 * N).chunk(2, -1)
        return first, second


def run_with_gradients(function: Callable[..., tuple[Tensor, Tensor]], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run a function forwards and backwards from both of its outputs."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y, state = function(**leaves)
    torch.autograd.backward((y, state), (torch.ones_like(y), torch.ones_like(state)))
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert len(gradients) == len(leaves), "a gradient is missing"
    return {"y": y.detach(), "final_state": state.detach(), **gradients}


if __name__ == "__main__":
    sys.exit(main())
