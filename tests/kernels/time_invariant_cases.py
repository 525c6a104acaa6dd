"""Cases of the time-invariant scan: how the inputs are drawn, run whole, in chunks and in steps, and compared."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mamba_seq.kernels.time_invariant_scan import time_invariant_scan, time_invariant_update
from tests.kernels.compare import Tolerance, to_double

METHODS = ("recurrence", "convolution")
LENGTHS = (1, 3, 63, 1000, 2049)
OVER_TIME = ("u", "z")

Inputs = dict[str, Tensor]


def scaled(error: float) -> Tolerance:
    """Compare by the largest element only: the error of a transform is spread over the whole of its result."""
    return Tolerance(0, math.inf, error)


def draw(L: int, complex_A: bool = False, D: int = 3, N: int = 4, batch: int = 2, memory: float = 300.0) -> Inputs:
    """Draw float32 inputs; the slowest states forget in `memory` steps, the fastest within one."""
    generator = torch.Generator().manual_seed(1000 * L + 10 * D + N + complex_A)

    def randn(*shape: int) -> Tensor:
        real = torch.randn(shape, generator=generator)
        return torch.complex(real, torch.randn(shape, generator=generator)) if complex_A else real

    def real(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    A = -torch.logspace(0, -math.log10(memory / 3), N).repeat(D, 1)
    if complex_A:
        A = torch.complex(A, 4 * torch.rand(D, N, generator=generator))
    return {
        "u": real(batch, L, D),
        "delta": 0.2 + 0.4 * torch.rand(D, generator=generator),
        "A": A,
        "B": randn(D, N),
        "C": randn(D, N),
        "D": real(D),
        "z": real(batch, L, D),
        "initial_state": randn(batch, D, N),
    }


def doubled(inputs: Mapping[str, Tensor]) -> Inputs:
    return {name: to_double(t) for name, t in inputs.items()}


def run_whole(inputs: Inputs, **how: Any) -> Inputs:
    y, state = time_invariant_scan(**inputs, return_final_state=True, **how)
    return {"y": y, "final_state": state}


def run_chunked(inputs: Inputs, lengths: tuple[int, ...], **how: Any) -> Inputs:
    assert sum(lengths) == inputs["u"].shape[1]
    state, start, outputs = inputs["initial_state"], 0, []
    for length in lengths:
        chunk = {k: t[:, start : start + length] if k in OVER_TIME else t for k, t in inputs.items()}
        y, state = time_invariant_scan(**(chunk | {"initial_state": state}), return_final_state=True, **how)
        outputs.append(y)
        start += length
    return {"y": torch.cat(outputs, dim=1), "final_state": state}


def run_steps(inputs: Inputs, **how: Any) -> Inputs:
    state, outputs = inputs["initial_state"].clone(), []
    for t in range(inputs["u"].shape[1]):
        now = {k: p[:, t] if k in OVER_TIME else p for k, p in inputs.items() if k != "initial_state"}
        outputs.append(time_invariant_update(state, **now, **how))
    return {"y": torch.stack(outputs, dim=1), "final_state": state}


def with_gradients(run: Any, inputs: Inputs, *arguments: Any, **how: Any) -> Inputs:
    """Run forward and backward with fixed upstream gradients; returns the results and every gradient (du, ...)."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    results = run(leaves, *arguments, **how)
    generator = torch.Generator().manual_seed(5)
    upstream = []
    for t in results.values():  # drawn in single precision, so that every precision gets the same numbers
        single = torch.complex64 if t.is_complex() else torch.float32
        upstream.append(torch.randn(t.shape, generator=generator, dtype=single).to(t))
    gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), upstream)
    return results | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}
