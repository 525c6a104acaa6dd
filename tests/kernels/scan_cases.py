"""Cases of the selective scan: what is varied, how the inputs are drawn, and how close a result has to be.

The truth of a case is the reference in float64 on the same (rounded) inputs, so an error here is the backend's own.
"""

import itertools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan import selective_scan
from tests.kernels.compare import DTYPES, Tolerance, one_thread, to_double

# rtol and atol are the published ones (state-spaces/mamba, tests/ops/test_selective_scan.py). `scaled`, against the
# largest element of a tensor, is about four times the largest error measured over all cases, or for a tensor of 16 bits
# a little more than the half unit in the last place that one rounding costs. Where batch and length are summed, few and
# cancelling terms may leave a small sum of large ones: the largest such error on a GPU was 5e-6 (biases).
FP32 = {
    "y": Tolerance(6e-4, 2e-3, 4e-6),
    "final_state": Tolerance(6e-4, 2e-3, 6e-6),
    "du": Tolerance(1.2e-3, 4e-3, 5e-6),
    "ddelta": Tolerance(3e-3, 2e-2, 5e-6),
    "dA": Tolerance(1e-3, 5e-3, 1e-5),
    "dB": Tolerance(6e-4, 2e-3, 4e-6),
    "dC": Tolerance(6e-4, 2e-3, 4e-6),
    "dD": Tolerance(1e-3, 1e-3, 2e-6),
    "dz": Tolerance(1e-3, 1e-3, 3e-6),
    "ddelta_bias": Tolerance(1e-3, 1e-3, 1.5e-5),
    "dinitial_state": Tolerance(6e-4, 2e-3, 4e-6),
}
FP16 = {
    "y": Tolerance(3e-3, 5e-3, 6e-4),
    "final_state": Tolerance(3e-3, 5e-3, 6e-6),
    "du": Tolerance(6e-3, 1e-2, 6e-4),
    "ddelta": Tolerance(1.5e-2, 5e-2, 6e-4),
    "dA": Tolerance(3e-3, 2.5e-2, 1e-5),
    "dB": Tolerance(3e-3, 5e-3, 6e-4),
    "dC": Tolerance(3e-3, 5e-3, 6e-4),
    "dD": Tolerance(3e-3, 5e-3, 2e-6),
    "dz": Tolerance(3e-3, 5e-3, 6e-4),
    "ddelta_bias": Tolerance(3e-3, 5e-3, 1.5e-5),
    "dinitial_state": Tolerance(3e-3, 5e-3, 4e-6),
}
BF16 = {
    "y": Tolerance(3e-2, 5e-2, 4.5e-3),
    "final_state": Tolerance(3e-2, 5e-2, 6e-6),
    "du": Tolerance(6e-2, 1e-1, 4.5e-3),
    "ddelta": Tolerance(1.5e-1, 5e-1, 4.5e-3),
    "dA": Tolerance(3e-2, 2.5e-1, 4e-5),
    "dB": Tolerance(3e-2, 5e-2, 4.5e-3),
    "dC": Tolerance(3e-2, 5e-2, 4.5e-3),
    "dD": Tolerance(3e-2, 5e-2, 2e-6),
    "dz": Tolerance(3e-2, 5e-2, 4.5e-3),
    "ddelta_bias": Tolerance(3e-2, 5e-2, 1.5e-5),
    "dinitial_state": Tolerance(3e-2, 5e-2, 4e-6),
}
TOLERANCES = {"fp32": FP32, "fp16": FP16, "bf16": BF16}

SWITCHES = ("D", "z", "bias", "softplus", "init", "final")
ARGUMENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")

Inputs = dict[str, Tensor | None]


@dataclass(frozen=True)
class ScanCase:
    """One case: sizes, type, which optional arguments are there, and from which distribution the inputs come."""

    L: int
    D: int = 4
    N: int = 8
    dtype: str = "fp32"
    on: tuple[str, ...] = SWITCHES
    draw: str = "published"
    batch: int = 2

    def __str__(self) -> str:
        sizes = f"L{self.L}-D{self.D}-N{self.N}-{self.dtype}" + (f"-B{self.batch}" if self.batch != 2 else "")
        return "-".join([sizes, *([] if self.draw == "published" else [self.draw]), *self.on])


def factorial(**fixed: Any) -> list[ScanCase]:
    """Return every combination of the switches at one size."""
    choices = itertools.product((False, True), repeat=len(SWITCHES))
    return [ScanCase(on=tuple(s for s, on in zip(SWITCHES, chosen, strict=True) if on), **fixed) for chosen in choices]


def sampled(cases: Iterable[ScanCase], every: int) -> list[ScanCase]:
    """Keep about one case in `every`, chosen by its name, so that the choice stays when the list grows."""
    return [case for case in cases if zlib.crc32(str(case).encode()) % every == 0]


def some_switches(L: int, salt: str = "", **fixed: Any) -> ScanCase:
    """Return a case with a random choice of switches that depends only on its other properties."""
    bits = zlib.crc32(f"{L}{salt}{sorted(fixed.items())}".encode())
    return ScanCase(L, on=tuple(s for i, s in enumerate(SWITCHES) if bits >> (7 + i) & 1), **fixed)


LENGTHS = (1, 3, 63, 127, 128, 129, 372, 1134, 2049)
SIZES = ((1, 1), (1, 16), (3, 3), (17, 8), (17, 1), (48, 64), (3, 64), (48, 16))
DRAWS = ("mamba", "remembering", "forgetting", "padded")

SWITCH_CASES = factorial(L=7, D=3, N=4)
CPU_CASES = [
    *(some_switches(L, D=5, dtype=dtype) for L in LENGTHS for dtype in DTYPES),
    *(some_switches(65, D=D, N=N, batch=1 + i % 3) for i, (D, N) in enumerate(SIZES)),
    *(ScanCase(1134, D=7, N=16, draw=draw) for draw in DRAWS),
]
# Triton without a GPU is interpreted, a Python call an operation: few and small.
INTERPRETED_CASES = [
    *sampled(SWITCH_CASES, 6),
    *(ScanCase(L, D=2, N=3, batch=1, dtype=dtype) for L in (1, 3, 35) for dtype in DTYPES),
    ScanCase(129, D=2, N=3, batch=1),
    *(ScanCase(5, D=D, N=N) for D, N in ((1, 1), (3, 3), (8, 16), (1, 64))),
    *(ScanCase(37, D=3, N=5, draw=draw, batch=1) for draw in DRAWS),
    ScanCase(5, D=37, N=3),  # more than one block of channels
    ScanCase(4, D=3, N=2, batch=9),  # and enough of them to leave the sequence in one piece
]
# On a GPU every set of switches and every state size is compiled anew: long lists vary the rest.
GPU_CASES = [
    *sampled(SWITCH_CASES, 2),
    *(ScanCase(128, D=D, N=N) for D, N in SIZES if N != 16),
    *(ScanCase(L, D=D, N=16, dtype=dtype) for L in LENGTHS for D in (17, 48) for dtype in DTYPES),
    *(ScanCase(1134, D=7, N=16, dtype=dtype, draw=draw) for draw in DRAWS for dtype in DTYPES),
    *(ScanCase(L, N=16, dtype=dtype) for L in (4096, 16385) for dtype in DTYPES),
    *(ScanCase(300, D=1000, N=16, dtype=dtype, batch=40) for dtype in DTYPES),  # fills a device without chunks
]


def draw_inputs(case: ScanCase, complex_A: bool = False) -> Inputs:
    """Draw the arguments of a case, on the CPU; the same case gives the same numbers."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    batch, L, D, N = case.batch, case.L, case.D, case.N
    A, delta, delta_bias = _dynamics(case, rand, randn)
    B, C, state = randn(batch, L, N), randn(batch, L, N), randn(batch, D, N)
    if complex_A:
        A = torch.complex(A, 3 * randn(D, N))
        B, C, state = (torch.complex(p, randn(*p.shape)) for p in (B, C, state))
    dtype = DTYPES[case.dtype]
    inputs: Inputs = {
        "u": randn(batch, L, D).to(dtype),
        "delta": delta.to(dtype),
        "A": A,
        "B": B if complex_A else B.to(dtype),
        "C": C if complex_A else C.to(dtype),
        "D": randn(D) if "D" in case.on else None,
        "z": randn(batch, L, D).to(dtype) if "z" in case.on else None,
        "delta_bias": delta_bias if "bias" in case.on else None,
        "initial_state": state if "init" in case.on else None,
    }
    return inputs


def _dynamics(case: ScanCase, rand: Any, randn: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Draw A, delta and delta_bias: they decide how fast the state decays."""
    batch, L, D, N = case.batch, case.L, case.D, case.N
    if case.draw == "mamba":  # the block's initialisation: A = -(1..N), softplus(delta_bias) log-uniform in 0.001..0.1
        dt = torch.exp(rand(D) * 4.6 - 6.9)
        return -torch.arange(1.0, N + 1).repeat(D, 1), 0.1 * randn(batch, L, D), dt + torch.log(-torch.expm1(-dt))
    A, delta, delta_bias = -0.5 * rand(D, N), 0.5 * rand(batch, L, D), 0.5 * rand(D)
    if case.draw == "remembering":  # a state that hardly decays: the errors of a whole sequence add up
        A = 1e-3 * A
    if case.draw == "forgetting":  # large steps: exp(delta A) underflows to zero
        delta = torch.where(rand(batch, L, D) < 0.5, 300 * delta, delta)
    if case.draw == "padded":  # softplus(-1e4) is zero: these steps change nothing
        delta[:, L // 3 : L // 2] = -1e4
        delta[:, L - L // 4 :] = -1e4
    return A, delta, delta_bias


def draw_upstream(case: ScanCase, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Draw the gradients that come from above: of y, in its type, and of the final state."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"upstream {case}".encode()))
    A = inputs["A"]
    assert A is not None
    dy = torch.randn((case.batch, case.L, case.D), generator=generator).to(DTYPES[case.dtype])
    return dy, torch.randn((case.batch, case.D, case.N), generator=generator, dtype=A.dtype)


def run_scan(inputs: Mapping[str, Tensor | None], case: ScanCase, backend: str, **extra: Any) -> dict[str, Tensor]:
    """Run the forward pass as the case says; returns y, and final_state where the case has one."""
    final = "final" in case.on
    out = selective_scan(
        **inputs, delta_softplus="softplus" in case.on, return_final_state=final, backend=backend, **extra
    )
    return {"y": out[0], "final_state": out[1]} if final else {"y": out}


def run_with_gradients(
    inputs: Mapping[str, Tensor | None], upstream: tuple[Tensor, Tensor], case: ScanCase, backend: str, **extra: Any
) -> dict[str, Tensor]:
    """Run forward and backward; returns y, final_state and the gradient of every given argument by name (du, ...)."""
    leaves = {name: t if t is None else t.detach().clone().requires_grad_() for name, t in inputs.items()}
    results = run_scan(leaves, case, backend, **extra)
    wanted = {name: t for name, t in leaves.items() if t is not None}
    gradients = torch.autograd.grad(list(results.values()), list(wanted.values()), upstream[: len(results)])
    return results | {f"d{name}": g for name, g in zip(wanted, gradients, strict=True)}


@lru_cache(maxsize=256)
def truth(case: ScanCase) -> dict[str, Tensor]:
    """Return results and gradients of the reference in float64."""
    inputs = draw_inputs(case)
    upstream = draw_upstream(case, inputs)
    exact = {name: t if t is None else to_double(t) for name, t in inputs.items()}
    with one_thread():
        results = run_with_gradients(exact, (to_double(upstream[0]), to_double(upstream[1])), case, "reference")
    return {name: t.detach() for name, t in results.items()}


def on_device(inputs: Inputs, device: str) -> Inputs:
    return {name: t if t is None else t.to(device) for name, t in inputs.items()}
