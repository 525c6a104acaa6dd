"""Who runs a call: a backend that is named runs it or says why not; without a name the fallback is announced, once."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mamba_seq.kernels import _dispatch
from mamba_seq.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from mamba_seq.kernels.selective_scan import selective_scan, selective_state_update


def scan(dtype: torch.dtype = torch.float32, complex_A: bool = False, groups: int = 0, constant: str = "") -> Any:
    """Return the arguments of a small scan of one kind."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    A = -torch.rand(4, 3, dtype=real)
    A = torch.complex(A, A) if complex_A else A
    projection = A.dtype if complex_A else dtype
    shape = (1, 6, groups, 3) if groups else (1, 6, 3)
    arguments = {"u": torch.randn(1, 6, 4, dtype=dtype), "delta": torch.rand(1, 6, 4, dtype=dtype), "A": A}
    for name in "BC":
        of = ((4, 3), A.dtype) if name == constant else (shape, projection)
        arguments[name] = torch.randn(of[0], dtype=of[1])
    return arguments


def step(dtype: torch.dtype = torch.float32, complex_A: bool = False, groups: int = 0, constant: str = "") -> Any:
    """Return the arguments of one step of such a scan."""
    whole = scan(dtype, complex_A, groups, constant)
    now = {name: t if t.dim() == 2 else t[:, 0] for name, t in whole.items()}
    return {"state": torch.zeros(1, 4, 3, dtype=whole["A"].dtype)} | now


def conv(dtype: torch.dtype = torch.float32) -> Any:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return {"x": torch.randn(1, 6, 4, dtype=dtype), "weight": torch.randn(4, 3, dtype=real)}


def conv_step(dtype: torch.dtype = torch.float32) -> Any:
    whole = conv(dtype)
    return {"x": whole["x"][:, 0], "state": torch.zeros(1, 4, 2, dtype=dtype), "weight": whole["weight"]}


def packed(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"cu_seqlens": torch.tensor([0, 2, 6], dtype=torch.int32)}


# Every other case of the contract: both compiled backends run it.
COMPILED: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "scan-complex": (selective_scan, lambda: scan(complex_A=True)),
    "scan-groups": (selective_scan, lambda: scan(groups=2)),
    "scan-constant-B": (selective_scan, lambda: scan(constant="B")),
    "scan-constant-C": (selective_scan, lambda: scan(constant="C")),
    "scan-packed": (selective_scan, lambda: packed(scan())),
    "step-complex": (selective_state_update, lambda: step(complex_A=True)),
    "step-groups": (selective_state_update, lambda: step(groups=2)),
    "step-constant-B": (selective_state_update, lambda: step(constant="B")),
    "conv-packed": (causal_conv1d, lambda: packed(conv())),
}
# Calls of the contract that only the reference runs. A compiled backend that learns one takes its line away.
REFERENCE_ONLY: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], str]] = {
    "scan-float64": (selective_scan, lambda: scan(torch.float64), "float64 runs on the reference only"),
    "step-float64": (selective_state_update, lambda: step(torch.float64), "float64 runs on the reference only"),
    "conv-float64": (causal_conv1d, lambda: conv(torch.float64), "float64 runs on the reference only"),
    "conv-step-float64": (causal_conv1d_update, lambda: conv_step(torch.float64), "float64 runs on the reference only"),
}
OPERATORS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "selective_scan": (selective_scan, scan),
    "selective_state_update": (selective_state_update, step),
    "causal_conv1d": (causal_conv1d, conv),
    "causal_conv1d_update": (causal_conv1d_update, conv_step),
}


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> Iterator[None]:
    _dispatch._say_fallback.cache_clear()
    yield
    _dispatch._say_fallback.cache_clear()


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("kind", REFERENCE_ONLY)
def test_a_named_backend_that_cannot_run_says_why(kind: str, backend: str) -> None:
    operator, arguments, reason = REFERENCE_ONLY[kind]
    given = arguments()
    if backend == "triton" and torch.cuda.is_available():
        given = {name: t.cuda() for name, t in given.items()}
    message = f"^{operator.__name__}: backend '{backend}' cannot run this call: {re.escape(reason)}$"
    with pytest.raises(RuntimeError, match=message):
        operator(**given, backend=backend)


@pytest.mark.parametrize("kind", COMPILED)
def test_the_rest_of_the_contract_falls_back_nowhere(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    operator, arguments = COMPILED[kind]
    given = arguments()
    assert torch.equal(operator(**_fresh(given)), operator(**_fresh(given), backend="cpu"))
    there = {name: t.cuda() if torch.cuda.is_available() else t for name, t in given.items()}
    by_name = operator(**_fresh(there), backend="triton")
    torch.testing.assert_close(by_name.cpu(), operator(**given, backend="reference"), rtol=1e-5, atol=1e-5)
    if torch.cuda.is_available():
        assert torch.equal(operator(**there), by_name)
    assert not caplog.records


@pytest.mark.parametrize("kind", REFERENCE_ONLY)
def test_without_a_name_the_reference_steps_in_and_says_so_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    operator, arguments, reason = REFERENCE_ONLY[kind]
    caplog.set_level(logging.INFO, logger="mamba_seq")
    results = [operator(**_fresh(arguments())) for _ in range(2)]
    assert all(torch.isfinite(torch.view_as_real(r) if r.is_complex() else r).all() for r in results)
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            "mamba_seq.kernels",
            logging.WARNING,
            f"{operator.__name__} runs on the slow reference instead of 'cpu': {reason}",
        )
    ]


def _fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: t.clone() for name, t in arguments.items()}


@pytest.mark.parametrize("operator", OPERATORS)
def test_plain_calls_on_the_cpu_run_on_numba_silently(
    operator: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, arguments = OPERATORS[operator]
    given = arguments()
    by_name = function(**_fresh(given), backend="cpu")
    chosen = function(**_fresh(given))
    assert torch.equal(by_name, chosen)
    assert not caplog.records


@pytest.mark.parametrize("operator", OPERATORS)
def test_unknown_backend(operator: str) -> None:
    function, arguments = OPERATORS[operator]
    with pytest.raises(ValueError, match=r"^backend is 'numba', expected None or one of 'reference', 'cpu', 'triton'$"):
        function(**arguments(), backend="numba")


@pytest.mark.parametrize("operator", OPERATORS)
def test_numba_not_installed(operator: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_installed", lambda module: module != "numba")
    function, arguments = OPERATORS[operator]
    with pytest.raises(RuntimeError, match=f"^{operator}: backend 'cpu' cannot run this call: numba is not installed$"):
        function(**arguments(), backend="cpu")
    function(**arguments())
    assert "instead of 'cpu': numba is not installed" in caplog.text


@pytest.mark.parametrize("operator", OPERATORS)
def test_triton_not_installed(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_installed", lambda module: module != "triton")
    function, arguments = OPERATORS[operator]
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run this call: triton is not installed"):
        function(**arguments(), backend="triton")


@pytest.mark.parametrize("operator", OPERATORS)
def test_triton_on_cpu_tensors_needs_its_interpreter(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "triton_interpreted", lambda: False)
    function, arguments = OPERATORS[operator]
    with pytest.raises(RuntimeError, match="the tensors are on cpu; Triton needs a GPU, or TRITON_INTERPRET=1 set"):
        function(**arguments(), backend="triton")


@pytest.mark.parametrize("operator", OPERATORS)
def test_cpu_needs_cpu_tensors(operator: str, caplog: pytest.LogCaptureFixture) -> None:
    """On a device that no compiled backend knows (meta stands for all of them) the reference runs, and says so."""
    function, arguments = OPERATORS[operator]
    given = {name: t.to("meta") for name, t in arguments().items()}
    with pytest.raises(RuntimeError, match="cannot run this call: the tensors are on meta, not on the CPU"):
        function(**given, backend="cpu")
    assert function(**given).device.type == "meta"
    assert f"{operator} runs on the slow reference" in caplog.text
    assert "meta" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("operator", OPERATORS)
def test_plain_calls_on_a_gpu_run_on_triton_silently(operator: str, caplog: pytest.LogCaptureFixture) -> None:
    function, arguments = OPERATORS[operator]
    given = {name: t.cuda() for name, t in arguments().items()}
    by_name = function(**_fresh(given), backend="triton")
    chosen = function(**_fresh(given))
    assert torch.equal(by_name, chosen)
    assert not caplog.records
