"""The published conformance grid of the scan: every value in state-spaces/mamba, tests/ops/test_selective_scan.py.

The file there runs 12 combinations; these are all of its values, those it has commented out included: complex A, 16-bit
inputs, lengths that no block size divides, constant B and C. That is 19,968 combinations, 12,480 of them valid (two
groups need B and C of every step). Inputs are drawn as there, results compared by name with a float64 oracle.
"""

import itertools
import random
import zlib
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan import selective_scan
from tests.kernels.compare import DTYPES, Tolerance, difference, relative_error, to_double
from tests.kernels.oracle import parallel_scan
from tests.kernels.scan_cases import Inputs

BATCH, DIM, DSTATE = 2, 4, 8
FACTORS: dict[str, tuple[Any, ...]] = {
    "complex_A": (False, True),
    "dtype": ("fp32", "fp16", "bf16"),
    "L": (8, 16, 32, 64, 128, 256, 372, 512, 784, 1024, 1134, 2048, 4096),
    "final": (False, True),
    "bias": (False, True),
    "softplus": (False, True),
    "z": (False, True),
    "D": (False, True),
    "variable_B": (False, True),
    "variable_C": (False, True),
    "groups": (1, 2),
}

# Errors to the largest element of a tensor. Of float32 tensors: 1e-5, which all 12,480 cases keep to on the CPU kernels
# but for sums over batch and length that nearly cancel; there about one and a half times the largest error of any case.
MEASURED = dict.fromkeys(("y", "final_state", "du", "ddelta", "dB", "dC", "dD", "dz", "dinitial_state"), 1e-5)
MEASURED |= {"dA": 1e-4, "ddelta_bias": 5e-4}
CONSTANT = 3e-5  # of B and C constant over time, whose gradients are such sums too
# Of 16-bit tensors: a little more than half a unit in the last place, which one rounding costs.
ROUNDED = {"fp16": 6e-4, "bf16": 4.5e-3}


class GridCase(NamedTuple):
    """One combination of the grid, in the order of `FACTORS`."""

    complex_A: bool
    dtype: str
    L: int
    final: bool
    bias: bool
    softplus: bool
    z: bool
    D: bool
    variable_B: bool
    variable_C: bool
    groups: int

    def variant(self) -> "GridCase":
        """Return the case without what needs no kernel of its own."""
        return self._replace(L=0, final=False)

    def __str__(self) -> str:
        on = [name for name in ("final", "bias", "softplus", "z", "D") if getattr(self, name)]
        on += [f"constant_{p}" for p in "BC" if not getattr(self, f"variable_{p}")]
        kind = "complex" if self.complex_A else "real"
        return "-".join([f"L{self.L}", kind, self.dtype, *(["groups2"] if self.groups == 2 else []), *on])


@cache
def whole_grid() -> list[GridCase]:
    """Return every valid combination."""
    cases = (GridCase(*values) for values in itertools.product(*FACTORS.values()))
    return [case for case in cases if case.groups == 1 or (case.variable_B and case.variable_C)]


def stratified(n: int, seed: int = 0, longest: int = 4096, variants: int | None = None) -> list[GridCase]:
    """Return n cases of at most `longest` steps: first those that cover every pair of values, then evenly the rest.

    "Evenly" is over length, type, and real or complex; inside such a stratum cases come in random order, none twice.
    With `variants` the cases are of no more sets of switches and types than that, which cover every pair as well.
    """
    draw = random.Random(seed)
    pool = [case for case in whole_grid() if longest >= case.L]
    if variants is not None:
        kinds = list(dict.fromkeys(case.variant() for case in pool))
        cover = _covering(kinds, variants, draw)
        cover += draw.sample([kind for kind in kinds if kind not in cover], min(variants, len(kinds)) - len(cover))
        among = set(cover)
        pool = [case for case in pool if case.variant() in among]
    chosen = dict.fromkeys(_covering(pool, n, draw))
    strata: dict[tuple[Any, ...], list[GridCase]] = defaultdict(list)
    for case in draw.sample(pool, len(pool)):
        if case not in chosen:
            strata[case[:3]].append(case)
    evenly = itertools.chain.from_iterable(itertools.zip_longest(*draw.sample(list(strata.values()), len(strata))))
    return [*chosen, *itertools.islice((case for case in evenly if case is not None), max(0, n - len(chosen)))]


def _covering(pool: list[GridCase], n: int, draw: random.Random) -> list[GridCase]:
    """Return at most n cases that together hold every pair of values in `pool`, or as many as they can."""
    missing = set[tuple[int, Any, int, Any]]().union(*(_pairs(case) for case in pool))
    chosen: list[GridCase] = []
    while missing and len(chosen) < n:
        best = max(draw.sample(pool, min(200, len(pool))), key=lambda case: len(_pairs(case) & missing))
        if not _pairs(best) & missing:  # a rare pair: look at everything
            best = max(pool, key=lambda case: len(_pairs(case) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


@cache
def _pairs(case: GridCase) -> frozenset[tuple[int, Any, int, Any]]:
    return frozenset((i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(case)), 2))


def draw_case(case: GridCase) -> tuple[Inputs, list[Tensor]]:
    """Draw the arguments as published, and the gradients from above, of y and of the final state; on the CPU."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    dtype, parameter = DTYPES[case.dtype], torch.complex64 if case.complex_A else torch.float32

    def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype)

    inputs: Inputs = {"A": -0.5 * rand(DIM, DSTATE, dtype=parameter)}
    for name in "BC":
        over_time = (BATCH, case.L, case.groups, DSTATE) if case.groups > 1 else (BATCH, case.L, DSTATE)
        if not getattr(case, f"variable_{name}"):
            inputs[name] = randn(DIM, DSTATE, dtype=parameter)
        elif case.complex_A:  # there, real and imaginary part lie side by side in the inputs' type
            inputs[name] = torch.view_as_complex(randn(*over_time, 2).to(dtype).float())
        else:
            inputs[name] = randn(*over_time).to(dtype)
    inputs["D"] = randn(DIM) if case.D else None
    inputs["z"] = randn(BATCH, case.L, DIM).to(dtype) if case.z else None
    inputs["delta_bias"] = 0.5 * rand(DIM) if case.bias else None
    inputs["u"] = randn(BATCH, case.L, DIM).to(dtype)
    inputs["delta"] = (0.5 * rand(BATCH, case.L, DIM)).to(dtype)
    upstream = [randn(BATCH, case.L, DIM).to(dtype), randn(BATCH, DIM, DSTATE, dtype=parameter)]
    return inputs, upstream[: 1 + case.final]


class Error(NamedTuple):
    """How far a tensor is from the truth."""

    relative: float
    """To the largest element."""
    absolute: float
    tolerance: Tolerance
    message: str | None
    """What is wrong, None where the tensor is within its tolerance."""


def run_case(case: GridCase, backend: str | None, device: str = "cpu") -> dict[str, Error]:
    """Run a case forward and backward; return the error of y, the final state and every gradient by name."""
    inputs, upstream = draw_case(case)
    return compare_with_oracle(inputs, upstream, case.dtype, backend, device, delta_softplus=case.softplus)


def compare_with_oracle(
    inputs: Inputs,
    upstream: list[Tensor],
    dtype: str,
    backend: str | None,
    device: str,
    wider: float = 1,
    **options: Any,
) -> dict[str, Error]:
    """Run the scan and the oracle on the same numbers; `upstream` holds the gradient of y, maybe of the state.

    `wider` multiplies what is allowed of the largest error of a float32 tensor.
    """
    moved = {name: t if t is None else t.to(device) for name, t in inputs.items()}
    above = [t.to(device) for t in upstream]
    exact = {name: t if t is None else to_double(t) for name, t in moved.items()}
    want = gradients_by_name(parallel_scan, exact, [to_double(t) for t in above], **options)

    def scan(**arguments: Any) -> tuple[Tensor, Tensor]:
        return selective_scan(**arguments, return_final_state=True, backend=backend)

    got = gradients_by_name(scan, moved, above, **options)
    tolerances = allowed(dtype, moved)
    for name, t in tolerances.items():
        if t.scaled not in ROUNDED.values():
            tolerances[name] = t._replace(scaled=wider * t.scaled)
    return errors(got, want, tolerances)


def gradients_by_name(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs, upstream: list[Tensor], **options: Any
) -> dict[str, Tensor]:
    """Return y, final_state where it has a gradient from above, and the gradient of every argument (du, ...)."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items() if t is not None}
    results = function(**leaves, **options)
    outputs = {name: results[i] for i, name in enumerate(("y", "final_state")[: len(upstream)])}
    found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), upstream)
    return {k: t.detach() for k, t in outputs.items()} | {f"d{k}": g for k, g in zip(leaves, found, strict=True)}


def errors(
    got: dict[str, Tensor], want: dict[str, Tensor], tolerances: dict[str, Tolerance] | Tolerance
) -> dict[str, Error]:
    """Compare by name."""
    found = {}
    for name, truth in want.items():
        tolerance = tolerances if isinstance(tolerances, Tolerance) else tolerances[name]
        one, other = to_double(got[name].cpu()), to_double(truth.cpu())
        absolute = (one - other).abs().max().item() if other.numel() else 0.0
        found[name] = Error(relative_error(one, other), absolute, tolerance, difference(one, other, tolerance))
    return found


def published(dtype: str, z: bool = True, constant: str = "") -> dict[str, tuple[float, float]]:
    """Return the published (rtol, atol) of every tensor; `constant` names which of B and C are."""
    rtol, atol = {"fp32": (6e-4, 2e-3), "fp16": (3e-3, 5e-3), "bf16": (3e-2, 5e-2)}[dtype]
    rtol_weights, atol_weights = (max(1e-3, rtol), max(1e-3, atol)) if z else (1e-3, 1e-3)
    weights, activations = (rtol_weights, atol_weights), (rtol, atol)
    return {
        **dict.fromkeys(("y", "final_state", "dinitial_state"), activations),
        "du": (2 * rtol, 2 * atol),
        "ddelta": (5 * rtol, 10 * atol),
        "dA": (rtol_weights, 5 * atol_weights),
        **{f"d{name}": weights if name in constant else activations for name in "BC"},
        **dict.fromkeys(("dD", "dz", "ddelta_bias"), weights),
    }


def allowed(dtype: str, inputs: Inputs) -> dict[str, Tolerance]:
    """Return the tolerances of a case: the published ones for every element, and those measured for a whole tensor."""
    A, z = inputs["A"], inputs.get("z")
    assert A is not None
    constant = "".join(name for name in "BC" if (p := inputs[name]) is not None and p.dim() == 2)
    kept = {"final_state", "dA", "dD", "ddelta_bias", "dinitial_state", *(f"d{name}" for name in constant)}
    kept |= {"dB", "dC"} if A.is_complex() else set()  # what stays float32 beside 16-bit inputs
    measured = MEASURED | {f"d{name}": CONSTANT for name in constant}
    return {
        name: Tolerance(*outer, measured[name] if dtype == "fp32" or name in kept else ROUNDED[dtype])
        for name, outer in published(dtype, z is not None, constant).items()
    }
