"""Inputs far from what models have, and the very numbers where exponentials leave float32: finite if the reference is.

The convolution of a trained model gave -411 and some -88.7 before its activation. At a single number in 10^8 there the
exponential of the CPU kernels was NaN.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from tests.kernels.compare import DEVICE, Tolerance, assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # numpy's, in Triton's interpreter
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]

L, D, N = 9, 17, 3
BACKENDS = ["cpu", "triton"]
ENDS = (88.02969360351562, -88.02969360351562, 88.72283935546875, -88.72283935546875)
"""log(2) times 127 and 128, to float32: e to these is where the smallest exponent ends, and the largest."""
FAR = (*ENDS, 0.0, -0.0, 1e-45, -1e-40, 104.0, -104.0, 1e4, -1e4, 1e20, -1e20, 1e30, -1e30)


def drawn(complex_A: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def coefficients(*shape: int) -> Tensor:
        return torch.complex(randn(*shape), randn(*shape)) if complex_A else randn(*shape)

    A = -torch.rand(D, N, generator=generator) - 0.1
    return {
        "u": randn(1, L, D),
        "delta": randn(1, L, D) - 1,
        "A": torch.complex(A, 3 * randn(D, N)) if complex_A else A,
        "B": coefficients(1, L, N),
        "C": coefficients(1, L, N),
        "D": randn(D),
        "z": randn(1, L, D),
        "delta_bias": torch.zeros(D),  # so that what is put into delta is what softplus sees
        "initial_state": coefficients(1, D, N),
    }


def scanned(inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    def run(**given: Tensor) -> Any:
        return selective_scan(**given, delta_softplus=True, return_final_state=True, backend=backend)

    return with_gradients(run, inputs, backend)


def with_gradients(run: Callable[..., Any], inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    given = {name: t.to(DEVICE[backend]).requires_grad_() for name, t in inputs.items()}
    outputs = run(**given)
    named = dict(zip(("y", "state"), outputs if isinstance(outputs, tuple) else (outputs,), strict=False))
    slopes = [torch.linspace(-1, 1, t.numel(), device=t.device).view_as(t).to(t.dtype) for t in named.values()]
    gradients = torch.autograd.grad(list(named.values()), list(given.values()), slopes)
    named |= {f"d{name}": gradient for name, gradient in zip(given, gradients, strict=True)}
    return {name: t.detach().cpu() for name, t in named.items()}


def assert_finite_as(want: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    lost = {name: int((want[name].isfinite() & ~got[name].isfinite()).sum()) for name in want}
    assert not any(lost.values()), f"not finite where the reference is: {lost}"
    assert all(want[name].isfinite().any() for name in ("y", "state")), "the reference itself is finite nowhere"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("name", ["z", "delta", "u"])
def test_a_far_input_of_the_scan(name: str, complex_A: bool, backend: str) -> None:
    """Each number has a channel; the steps after it are ordinary."""
    inputs = drawn(complex_A)
    inputs[name][0, 2, : len(FAR)] = torch.tensor(FAR)
    assert_finite_as(scanned(inputs, "reference"), scanned(inputs, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
def test_decays_far_from_one(complex_A: bool, backend: str) -> None:
    """A channel for every pair: no step or one without end, and no decay, or one that leaves nothing in any step.

    A complex A turns as fast as it decays, by more turns than float32 can tell apart.
    """
    pairs = list(itertools.product((-1e30, -104.0, 1e4, 1e30), (-0.0, -1e4, -1e20, -1e30)))
    steps, decays = torch.tensor(pairs).T
    inputs = drawn(complex_A)
    inputs["delta"][0, 2, : len(pairs)] = steps
    far = decays[:, None].expand(-1, N)
    inputs["A"][: len(pairs)] = torch.complex(far, -far) if complex_A else far
    assert_finite_as(scanned(inputs, "reference"), scanned(inputs, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_turns_without_decay(backend: str) -> None:
    """Any angle does where float32 cannot tell it, but of a state of the size that it had."""
    inputs = drawn(complex_A=True)
    inputs["A"] = torch.complex(torch.zeros(D, N), torch.logspace(6, 30, D)[:, None].expand(-1, N))
    inputs["B"].zero_()
    got = scanned(inputs, backend)
    assert_finite_as(scanned(inputs, "reference"), got)
    torch.testing.assert_close(got["state"].abs(), inputs["initial_state"].abs(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["z", "delta"])
def test_the_scan_where_exponentials_end(name: str, backend: str) -> None:
    inputs = drawn()
    inputs[name][0, 2, : len(ENDS)] = torch.tensor(ENDS)
    assert_close(scanned(inputs, backend), scanned(inputs, "reference"), Tolerance(1e-4, 1e-5, 1e-5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_convolution_where_exponentials_end(backend: str) -> None:
    """With inputs of zero the bias is what the activation sees."""
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.zeros(1, L, D),
        "weight": torch.randn(D, 4, generator=generator),
        "bias": torch.tensor([FAR[i % len(FAR)] for i in range(D)]),
    }
    got, want = (
        with_gradients(lambda b=b, **given: causal_conv1d(**given, activation="silu", backend=b), inputs, b)
        for b in (backend, "reference")
    )
    assert_close(got, want, Tolerance(1e-5, 1e-5, 1e-6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("name", ["z", "delta", "u"])
def test_a_far_input_of_a_step(name: str, complex_A: bool, backend: str) -> None:
    inputs = drawn(complex_A)
    inputs[name][0, 0, : len(FAR)] = torch.tensor(FAR)
    state = inputs.pop("initial_state")
    step = {key: t[:, 0] if t.dim() == 3 else t for key, t in inputs.items()}

    def run(backend: str) -> dict[str, Tensor]:
        given = {key: t.to(DEVICE[backend]) for key, t in step.items()}
        after = state.clone().to(DEVICE[backend])
        y = selective_state_update(after, **given, delta_softplus=True, backend=backend)
        return {"y": y.cpu(), "state": after.cpu()}

    assert_finite_as(run("reference"), run(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_the_convolution_where_exponentials_end(backend: str) -> None:
    x, weight, bias = torch.zeros(1, len(FAR)), torch.zeros(len(FAR), 4), torch.tensor(FAR)
    state = torch.zeros(1, len(FAR), 3)
    y = causal_conv1d_update(*(t.to(DEVICE[backend]) for t in (x, state, weight, bias)), "silu", backend=backend)
    torch.testing.assert_close(y.cpu()[0], torch.nn.functional.silu(bias), rtol=1e-6, atol=1e-30)
