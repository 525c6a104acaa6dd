"""The reference scan against the serial definition, its gradients against finite differences."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan import selective_scan
from tests.kernels.compare import to_double
from tests.kernels.scan_cases import SWITCHES, Inputs, ScanCase, draw_inputs, factorial
from tests.kernels.serial import serial_scan

KINDS = ("one", "one-4d", "groups", "constant-B", "constant-C", "constant-BC")
ALL = tuple(s for s in SWITCHES if s != "final")


def draw_kind(case: ScanCase, kind: str, complex_A: bool, packed: list[int] | None = None) -> Inputs:
    """Draw float64 inputs with B and C of a kind; `packed` turns a batch of 1 into sequences with a state each."""
    inputs = draw_inputs(case, complex_A)
    generator = torch.Generator().manual_seed(len(kind) + case.L)
    dtype = inputs["A"].dtype
    grouped = (case.batch, case.L, 1 if kind == "one-4d" else 2, case.N)
    for name in ("B", "C"):
        if kind in ("one-4d", "groups"):
            inputs[name] = torch.randn(grouped, generator=generator, dtype=dtype)
        elif kind.startswith("constant") and name in kind:
            inputs[name] = torch.randn((case.D, case.N), generator=generator, dtype=dtype)
    if packed and inputs["initial_state"] is not None:
        inputs["initial_state"] = torch.randn((len(packed) - 1, case.D, case.N), generator=generator, dtype=dtype)
    return {name: t if t is None else to_double(t) for name, t in inputs.items()}


def check_serial(inputs: Inputs, softplus: bool, bounds: list[int] | None = None, tolerance: float = 1e-10) -> None:
    arrays: dict[str, Any] = {name: t if t is None else t.numpy() for name, t in inputs.items()}
    want_y, want_state = serial_scan(**arrays, delta_softplus=softplus, bounds=bounds)
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    y, state = selective_scan(
        **inputs, delta_softplus=softplus, cu_seqlens=cu_seqlens, return_final_state=True, backend="reference"
    )
    torch.testing.assert_close(y, torch.from_numpy(want_y), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state, torch.from_numpy(want_state), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("case", [c for c in factorial(L=5, D=4, N=3) if "final" not in c.on], ids=str)
def test_every_switch(case: ScanCase, complex_A: bool) -> None:
    kind = KINDS[sum(map(ord, str(case))) % len(KINDS)]
    check_serial(draw_kind(case, kind, complex_A), "softplus" in case.on)


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_B_and_C(kind: str, complex_A: bool) -> None:
    check_serial(draw_kind(ScanCase(9, D=6, N=3, on=ALL), kind, complex_A), softplus=True)


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", [ALL, ("z", "softplus")], ids=["states", "no-states"])
def test_packed(kind: str, complex_A: bool, on: tuple[str, ...]) -> None:
    bounds = [0, 1, 4, 11]
    case = ScanCase(11, D=4, N=3, on=on, batch=1)
    check_serial(draw_kind(case, kind, complex_A, bounds), "softplus" in on, bounds)


@pytest.mark.parametrize(
    ("draw", "softplus"),
    [
        ("mamba", True),
        ("remembering", True),
        ("remembering", False),
        ("forgetting", True),
        ("forgetting", False),
        ("padded", True),
    ],
)
def test_other_distributions(draw: str, softplus: bool) -> None:
    # torch's softplus is the identity above 20, which is off by 2e-9 there
    tolerance = 1e-8 if draw == "forgetting" else 1e-10
    inputs = draw_kind(ScanCase(17, D=3, N=5, on=ALL, draw=draw), "one", False)
    check_serial(inputs, softplus, tolerance=tolerance)


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(("kind", "on"), [*((kind, ALL) for kind in KINDS), ("one", ()), ("one", ("bias",))])
def test_gradcheck(kind: str, on: tuple[str, ...], complex_A: bool) -> None:
    inputs = draw_kind(ScanCase(3, D=2, N=2, on=on), kind, complex_A)
    _gradcheck(inputs, "softplus" in on, None)


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
def test_gradcheck_packed(complex_A: bool) -> None:
    bounds = [0, 1, 3]
    inputs = draw_kind(ScanCase(3, D=2, N=2, on=ALL, batch=1), "groups", complex_A, bounds)
    _gradcheck(inputs, True, torch.tensor(bounds, dtype=torch.int32))


def _gradcheck(inputs: Inputs, softplus: bool, cu_seqlens: Tensor | None) -> None:
    """Check y and the final state against finite differences in every argument, the initial state included."""
    names = [name for name, t in inputs.items() if t is not None]

    def scan(*tensors: Tensor) -> Any:
        given = dict.fromkeys(inputs) | dict(zip(names, tensors, strict=True))
        return selective_scan(
            **given, delta_softplus=softplus, cu_seqlens=cu_seqlens, return_final_state=True, backend="reference"
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs[name].clone().requires_grad_() for name in names))


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
def test_packed_is_a_loop_over_sequences(complex_A: bool) -> None:
    """Forward and backward: packing may not let anything, value or gradient, cross a boundary."""
    bounds = [0, 63, 64, 67, 130]
    case = ScanCase(130, D=4, N=3, on=ALL, batch=1)
    inputs = {k: t.requires_grad_() for k, t in draw_kind(case, "groups", complex_A, bounds).items() if t is not None}
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    options: dict[str, Any] = {"delta_softplus": True, "return_final_state": True, "backend": "reference"}
    packed = selective_scan(**inputs, cu_seqlens=cu_seqlens, **options)

    pieces = []
    for s, (start, end) in enumerate(itertools.pairwise(bounds)):
        piece = {name: t[:, start:end] if name in ("u", "delta", "B", "C", "z") else t for name, t in inputs.items()}
        piece["initial_state"] = inputs["initial_state"][s : s + 1]
        pieces.append(selective_scan(**piece, **options))
    looped = (torch.cat([y for y, _ in pieces], dim=1), torch.cat([state for _, state in pieces]))

    upstream = [torch.randn_like(t) for t in packed]
    for ours, theirs in (
        (packed, looped),
        (
            torch.autograd.grad(packed, list(inputs.values()), upstream),
            torch.autograd.grad(looped, list(inputs.values()), upstream),
        ),
    ):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
