"""The published conformance grid: what it holds, its oracle, and a part of it on every backend that runs here."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan.reference import selective_scan_reference
from tests.kernels.compare import DEVICE, Tolerance, one_thread, to_double
from tests.kernels.oracle import parallel_scan, scan_pairs
from tests.kernels.published_grid import (
    FACTORS,
    GridCase,
    draw_case,
    errors,
    gradients_by_name,
    run_case,
    stratified,
    whole_grid,
)
from tests.kernels.test_cpu_contract import draw

CASES = stratified(150)
# what Triton runs; in its interpreter, so few and short, and not in bfloat16, which that cuts off (see compare.py)
SHORT = [c for c in stratified(100, seed=1, longest=16) if c.variable_B and c.variable_C and c.groups == 1]
SHORT = [case for case in SHORT if not case.complex_A and case.dtype != "bf16"][:6]


def failures(case: GridCase, backend: str) -> dict[str, str]:
    with one_thread():
        found = run_case(case, backend, DEVICE[backend])
    names = {"y", "dA", "dB", "dC", "du", "ddelta"} | {
        name
        for name, on in {"final_state": case.final, "dD": case.D, "dz": case.z, "ddelta_bias": case.bias}.items()
        if on
    }
    assert set(found) == names
    return {name: error.message for name, error in found.items() if error.message}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu(case: GridCase) -> None:
    assert failures(case, "cpu") == {}


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_triton(case: GridCase) -> None:
    assert failures(case, "triton") == {}


def test_the_whole_grid_is_the_published_one() -> None:
    combinations = 1
    for values in FACTORS.values():
        combinations *= len(values)
    assert combinations == 19968
    cases = whole_grid()
    assert len(cases) == len(set(cases)) == 12480


@pytest.mark.parametrize("n", [60, 150, 1500])
def test_a_sample_holds_every_pair_of_values(n: int) -> None:
    cases = stratified(n)
    assert len(cases) == len(set(cases)) == n
    assert cases == stratified(n)
    assert cases != stratified(n, seed=1)
    whole = whole_grid()
    for a, b in itertools.combinations(range(len(FACTORS)), 2):
        assert {(c[a], c[b]) for c in cases} == {(c[a], c[b]) for c in whole}


def test_a_sample_of_few_variants_holds_every_pair_too() -> None:
    cases = stratified(1500, variants=120)
    assert len(cases) == len(set(cases)) == 1500
    assert len({case.variant() for case in cases}) == 120
    whole = whole_grid()
    for a, b in itertools.combinations(range(len(FACTORS)), 2):
        assert {(c[a], c[b]) for c in cases} == {(c[a], c[b]) for c in whole}


def test_a_small_sample_holds_every_value() -> None:
    cases = stratified(40)
    for i, values in enumerate(FACTORS.values()):
        assert {case[i] for case in cases} == set(values)


def test_inputs_are_drawn_as_published() -> None:
    case = GridCase(True, "bf16", 372, True, True, True, True, True, True, False, 1)
    inputs, upstream = draw_case(case)
    shapes = {name: tuple(t.shape) for name, t in inputs.items() if t is not None}
    assert shapes == {
        **{"A": (4, 8), "B": (2, 372, 8), "C": (4, 8), "D": (4,), "delta_bias": (4,)},
        **dict.fromkeys(("u", "delta", "z"), (2, 372, 4)),
    }
    assert [tuple(t.shape) for t in upstream] == [(2, 372, 4), (2, 4, 8)]
    A, B = inputs["A"], inputs["B"]
    assert A is not None
    assert B is not None
    assert A.real.max() <= 0
    assert A.real.min() >= -0.5
    assert A.is_complex()
    assert torch.equal(B.real, B.real.bfloat16().float())
    assert not torch.equal(draw_case(case._replace(L=512))[0]["A"], A)


def test_an_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient a little off in one element fails under its name, and only there."""
    case, (inputs, upstream) = CASES[0], draw_case(CASES[0])
    exact = {name: t if t is None else to_double(t) for name, t in inputs.items()}
    want = gradients_by_name(parallel_scan, exact, [to_double(t) for t in upstream], delta_softplus=case.softplus)
    close = Tolerance(1e-3, 1e-3, 1e-5)
    got = {name: t.clone() for name, t in want.items()}
    got["du"].view(-1)[3] += 2e-5 * got["du"].abs().max()
    assert [name for name, error in errors(got, want, close).items() if error.message] == ["du"]
    got["du"].view(-1)[3] = float("nan")
    assert [name for name, error in errors(got, want, close).items() if error.message] == ["du"]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"groups": 3},
    "constant": {"constant": "BC"},
    "constant-B": {"constant": "B", "groups": 2},
    "packed": {"cut": [0, 1, 2, 9, 64]},
    "packed-ones": {"cut": [0, 1, 2, 3]},
    "packed-groups": {"cut": [0, 17, 63], "groups": 2},
}


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_is_the_reference(kind: str, complex_A: bool) -> None:
    chosen = dict(KINDS[kind])
    cut = chosen.pop("cut", None)
    for L in (cut[-1],) if cut else (1, 2, 63, 200):
        sizes = {"batch": 1, "sequences": len(cut) - 1} if cut else {}
        inputs = {k: to_double(t) for k, t in draw(L, D=6, complex_A=complex_A, **sizes, **chosen).items()}
        options = {"cu_seqlens": torch.tensor(cut, dtype=torch.int32)} if cut else {}
        for left_out in ((), ("D", "z", "delta_bias", "initial_state")):
            given = {name: t for name, t in inputs.items() if name not in left_out}
            torch.manual_seed(2)
            upstream = [torch.randn_like(inputs["u"]), torch.randn_like(inputs["initial_state"])]
            want = gradients_by_name(selective_scan_reference, given, upstream, delta_softplus=True, **options)
            got = gradients_by_name(parallel_scan, given, upstream, delta_softplus=True, **options)
            for name, truth in want.items():
                torch.testing.assert_close(got[name], truth, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("L", [1, 2, 3, 4, 5, 63, 1000, 1023, 1025])
def test_pairs(L: int) -> None:
    a, b = torch.rand(2, L, 3, dtype=torch.float64), torch.randn(2, L, 3, dtype=torch.float64)
    h, states = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(L):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    got: Tensor = scan_pairs(a, b)
    torch.testing.assert_close(got, torch.stack(states, dim=1), rtol=1e-12, atol=1e-12)
