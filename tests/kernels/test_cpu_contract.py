"""The rest of the contract on the CPU kernels, forward and backward: packed sequences, groups, constants, complex A.

`test_triton_contract.py` runs the same checks, and on a GPU the same cases.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.causal_conv1d import causal_conv1d
from mamba_seq.kernels.selective_scan import selective_scan, selective_state_update
from tests.kernels.compare import DEVICE, DTYPES, Tolerance, allowed, assert_close, one_thread, to_double
from tests.kernels.scan_cases import TOLERANCES
from tests.kernels.test_causal_conv1d import ACTIVATIONS, PARAMETERS

THOUSAND = [0, 1, 2, *range(3, 1999, 2), 2049]
BOUNDS = {
    "one": [0, 63],
    "ones": [0, 1, 2, 3],
    "odd": [0, 1, 64, 127, 128, 192, 1192],
    "thousand": THOUSAND,
}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def draw(
    L: int = 63,
    D: int = 18,
    N: int = 3,
    batch: int = 2,
    groups: int = 0,
    constant: str = "",
    sequences: int = 0,
    dtype: str = "fp32",
    complex_A: bool = False,
) -> dict[str, Tensor]:
    """Draw the arguments of a scan; `constant` names which of B and C are (D, N), 0 groups is the form (B, L, N)."""
    torch.manual_seed(L + 7 * D + 31 * N)
    parameter = torch.complex64 if complex_A else torch.float32
    projection = parameter if complex_A else DTYPES[dtype]
    over_time = (batch, L, groups, N) if groups else (batch, L, N)
    A = -0.5 * torch.rand(D, N)
    arguments = {"u": randn(batch, L, D), "delta": 0.5 * torch.rand(batch, L, D), "z": randn(batch, L, D)}
    arguments = {name: t.to(DTYPES[dtype]) for name, t in arguments.items()}
    arguments["A"] = torch.complex(A, 3 * randn(D, N)) if complex_A else A
    for name in "BC":
        is_constant = name in constant
        values = randn(*((D, N) if is_constant else over_time), dtype=parameter)
        arguments[name] = values if is_constant else values.to(projection)
    state = randn(sequences or batch, D, N, dtype=parameter)
    return arguments | {"D": randn(D), "delta_bias": 0.5 * torch.rand(D), "initial_state": state}


def with_gradients(function: Any, arguments: dict[str, Tensor], upstream: list[Tensor], **extra: Any) -> Any:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in arguments.items()}
    y, state = function(**leaves, return_final_state=True, **extra)
    gradients = torch.autograd.grad([y, state], list(leaves.values()), upstream)
    named = {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"y": y.detach(), "final_state": state.detach()} | named


def check_scan(
    arguments: dict[str, Tensor], dtype: str = "fp32", backend: str = "cpu", cut: list[int] | None = None
) -> None:
    """Compare results and every gradient with the reference in float64, and the forward pass alone with itself."""
    upstream = [torch.randn_like(arguments["u"]), torch.randn_like(arguments["initial_state"])]
    got = compare_with_truth(
        selective_scan, arguments, upstream, dtype, backend, cut, tolerances(dtype, arguments["A"].is_complex()),
        delta_softplus=True,
    )  # fmt: skip
    given = {name: t.to(DEVICE[backend]) for name, t in arguments.items()}
    packed = {} if cut is None else {"cu_seqlens": boundaries(cut).to(DEVICE[backend])}
    y, state = selective_scan(**given, backend=backend, return_final_state=True, delta_softplus=True, **packed)
    assert torch.equal(y, got["y"])
    assert torch.equal(state, got["final_state"])


def compare_with_truth(
    function: Any,
    arguments: dict[str, Tensor],
    upstream: list[Tensor],
    dtype: str,
    backend: str,
    cut: list[int] | None,
    close: dict[str, Tolerance],
    **extra: Any,
) -> dict[str, Tensor]:
    """Hold results and gradients of a backend to the reference in float64; returns the former."""
    packed = {} if cut is None else {"cu_seqlens": boundaries(cut)}
    with one_thread():
        exact = {name: to_double(t) for name, t in arguments.items()}
        exact_upstream = [to_double(t) for t in upstream]
        want = with_gradients(function, exact, exact_upstream, backend="reference", **extra, **packed)
    given, above = {n: t.to(DEVICE[backend]) for n, t in arguments.items()}, [t.to(DEVICE[backend]) for t in upstream]
    packed = {name: t.to(DEVICE[backend]) for name, t in packed.items()}
    got: dict[str, Tensor] = with_gradients(function, given, above, backend=backend, **extra, **packed)
    assert {name: got[f"d{name}"].dtype for name in arguments} == {name: t.dtype for name, t in arguments.items()}
    assert_close(got, want, allowed(close, dtype, backend))
    return got


def tolerances(dtype: str, complex_A: bool) -> dict[str, Tolerance]:
    """Return those of the real scan; what stays float32 beside a complex A of 16-bit inputs is no closer for that.

    A turning state cancels more in its sums, most in that of ddelta_bias over all states and steps (6e-5 measured over
    1,192 steps); the published rtol and atol hold as they are.
    """
    table = TOLERANCES[dtype]
    if not complex_A:
        return table
    wider = {n: t._replace(scaled=4 * t.scaled) if t.scaled < 1e-4 else t for n, t in table.items()}
    return wider | {"ddelta_bias": table["ddelta_bias"]._replace(scaled=1.5e-4)}


def boundaries(bounds: list[int]) -> Tensor:
    return torch.tensor(bounds, dtype=torch.int32)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_scan(dtype: str, bounds: str) -> None:
    cut = BOUNDS[bounds]
    check_scan(draw(cut[-1], batch=1, sequences=len(cut) - 1, dtype=dtype), dtype, cut=cut)


def test_packed_is_every_sequence_by_itself_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the sequences are walked in segments that end inside one of them."""
    cut = [0, 700, 701, 3500, 4000, 4321]
    arguments = draw(cut[-1], batch=1, sequences=5)
    monkeypatch.setattr("mamba_seq.kernels._segments._ELEMENTS", 1)
    y, state = selective_scan(**arguments, cu_seqlens=boundaries(cut), return_final_state=True, backend="cpu")
    for s, (start, end) in enumerate(itertools.pairwise(cut)):
        alone = {n: t[:, start:end] if n in ("u", "delta", "z", "B", "C") else t for n, t in arguments.items()}
        alone["initial_state"] = arguments["initial_state"][s : s + 1]
        y_alone, state_alone = selective_scan(**alone, return_final_state=True, backend="cpu")
        assert torch.equal(y[:, start:end], y_alone)
        assert torch.equal(state[s : s + 1], state_alone)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_segments_do_not_change_a_packed_gradient(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = [0, 700, 701, 3500, 4000, 4321]
    arguments = draw(cut[-1], batch=1, sequences=5, dtype=dtype)
    conv = {"x": arguments["u"], "weight": randn(18, 4), "initial_state": randn(5, 18, 3).to(arguments["u"].dtype)}
    results = []
    for elements in (1 << 22, 1):
        monkeypatch.setattr("mamba_seq.kernels._segments._ELEMENTS", elements)
        torch.manual_seed(0)
        for function, given in ((selective_scan, arguments), (causal_conv1d, conv)):
            upstream = [torch.randn_like(arguments["u"]), torch.randn_like(given["initial_state"])]
            found = with_gradients(function, given, upstream, backend="cpu", cu_seqlens=boundaries(cut))
            results.append(found)
    assert_close(results[2], results[0], Tolerance(1e-5, 1e-4, 1e-5))
    assert_close(results[3], results[1], Tolerance(1e-5, 1e-4, 1e-5))


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("dtype", "K"), [("fp32", 2), ("fp32", 7), ("fp16", 4), ("bf16", 4)])
def test_packed_convolution(dtype: str, K: int, bounds: str) -> None:
    check_packed_convolution(dtype, K, BOUNDS[bounds], "cpu")


def check_packed_convolution(dtype: str, K: int, cut: list[int], backend: str) -> None:
    torch.manual_seed(cut[-1])
    x, state = randn(1, cut[-1], 18).to(DTYPES[dtype]), randn(len(cut) - 1, 18, K - 1).to(DTYPES[dtype])
    arguments = {"x": x, "weight": randn(18, K), "bias": randn(18), "initial_state": state}
    upstream = [torch.randn_like(x), torch.randn_like(state)]
    # in a sequence shorter than K - 1 a gradient has two parts, through y and the final state: rounded, added, rounded
    activation = ACTIVATIONS[dtype]._replace(scaled=2 * ACTIVATIONS[dtype].scaled)
    names = ("y", "final_state", "dx", "dinitial_state")
    close = dict.fromkeys(names, activation) | dict.fromkeys(("dweight", "dbias"), PARAMETERS)
    compare_with_truth(causal_conv1d, arguments, upstream, dtype, backend, cut, close, activation="silu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "groups"), [(18, 2), (18, 18), (66, 3), (5, 1)])
def test_groups(D: int, groups: int, dtype: str) -> None:
    check_scan(draw(127, D=D, groups=groups, dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("constant", ["B", "C", "BC"])
def test_constants(constant: str, groups: int, dtype: str) -> None:
    check_scan(draw(129, groups=groups, constant=constant, dtype=dtype), dtype)


@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
@pytest.mark.parametrize("groups", [0, 2])
def test_packed_with_groups_and_constants(groups: int, constant: str) -> None:
    cut = BOUNDS["odd"]
    arguments = draw(cut[-1], batch=1, sequences=len(cut) - 1, groups=groups, constant=constant)
    check_scan(arguments, cut=cut)


def test_the_same_bits_on_any_number_of_threads() -> None:
    cut = BOUNDS["odd"]
    arguments = draw(cut[-1], D=66, N=8, batch=1, sequences=len(cut) - 1, groups=3, constant="B")
    upstream = [torch.randn_like(arguments["u"]), torch.randn_like(arguments["initial_state"])]
    with one_thread():
        first = with_gradients(selective_scan, arguments, upstream, backend="cpu", cu_seqlens=boundaries(cut))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = with_gradients(selective_scan, arguments, upstream, backend="cpu", cu_seqlens=boundaries(cut))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["groups", "every-channel-a-group", "B", "C", "BC", "groups-B"])
def test_steps(kind: str, dtype: str) -> None:
    check_step(kind, dtype, complex_A=False)


def check_step(kind: str, dtype: str, complex_A: bool, backend: str = "cpu", D: int = 18, N: int = 3) -> None:
    groups = {"groups": 3, "every-channel-a-group": D, "groups-B": 3}.get(kind, 0)
    constant = kind.removeprefix("groups-") if kind[-1] in "BC" else ""
    whole = draw(1, D, N, groups=groups, constant=constant, dtype=dtype, complex_A=complex_A)
    step = {n: t[:, 0] if n in ("u", "delta", "z") or (n in "BC" and t.dim() > 2) else t for n, t in whole.items()}
    state = step.pop("initial_state")
    exact_state = to_double(state)
    exact = {name: to_double(t) for name, t in step.items()}
    want = selective_state_update(exact_state, **exact, delta_softplus=True, backend="reference")
    state, step = state.to(DEVICE[backend]), {name: t.to(DEVICE[backend]) for name, t in step.items()}
    got = selective_state_update(state, **step, delta_softplus=True, backend=backend)
    close = allowed(TOLERANCES[dtype], dtype, backend)
    found = {"y": got, "final_state": state}
    assert_close(found, {"y": want, "final_state": exact_state}, {name: close[name] for name in found})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("groups", "constant"), [(0, ""), (2, ""), (18, ""), (0, "B"), (0, "C"), (0, "BC"), (3, "B"), (3, "C")]
)
def test_complex(groups: int, constant: str, dtype: str) -> None:
    check_scan(draw(129, groups=groups, constant=constant, dtype=dtype, complex_A=True), dtype)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("constant", ["", "B"])
def test_packed_complex(constant: str, bounds: str) -> None:
    cut = BOUNDS[bounds]
    arguments = draw(cut[-1], batch=1, sequences=len(cut) - 1, constant=constant, complex_A=True)
    check_scan(arguments, cut=cut)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "groups", "every-channel-a-group", "B", "C", "BC", "groups-B"])
def test_complex_steps(kind: str, dtype: str) -> None:
    check_step(kind, dtype, complex_A=True)


def test_long_complex_memory() -> None:
    """A decay a little too short at every step would be far too short after 1,192."""
    with one_thread():
        check_scan(draw(1192, 18, 3, batch=1, constant="C", complex_A=True), "fp32", "cpu")


def test_fast_turns() -> None:
    check_fast_turns("cpu", 63)


def check_fast_turns(backend: str, L: int) -> None:
    """An angle of thousands of turns a step is as exact as float32 states it, and a huge decay is zero, not NaN."""
    arguments = draw(L, complex_A=True)
    arguments["A"] = torch.complex(-torch.rand(18, 3), 5000 * randn(18, 3))
    arguments["A"][0] = -1e6 + 1e5j
    given = {name: t.to(DEVICE[backend]) for name, t in arguments.items()}
    y, state = selective_scan(**given, return_final_state=True, backend=backend)
    assert torch.isfinite(y).all()
    exact = {name: to_double(t) for name, t in arguments.items()}
    want_y, want_state = selective_scan(**exact, return_final_state=True, backend="reference")
    # delta + delta_bias is rounded to float32 before it is multiplied
    close = Tolerance(1e-2, 2e-2, 2e-3)
    assert_close({"y": y, "state": state}, {"y": want_y, "state": want_state}, close)
