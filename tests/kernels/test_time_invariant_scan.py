"""The time-invariant scan against its definition: both methods, whole, chunked and stepped, values and gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan import selective_scan
from mamba_seq.kernels.time_invariant_scan import ssm_kernel, time_invariant_scan
from tests.kernels.compare import DTYPES, Tolerance, assert_close, one_thread, relative_error
from tests.kernels.time_invariant_cases import (
    LENGTHS,
    METHODS,
    Inputs,
    doubled,
    draw,
    run_chunked,
    run_steps,
    run_whole,
    scaled,
    with_gradients,
)

both_numbers = pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
both_methods = pytest.mark.parametrize("method", METHODS)
both_rules = pytest.mark.parametrize("discretisation", ["zoh", "euler"])
EXACT = scaled(1e-12)
EXACT_GRADIENT = scaled(1e-10)


def serial(inputs: Inputs, discretisation: str) -> dict[str, Tensor]:
    """The definition in numpy, of its own: no function of the package is called."""
    n = {name: t.numpy() for name, t in inputs.items()}
    dA = n["delta"][:, None] * n["A"]
    weight = n["delta"][:, None] * n["B"] if discretisation == "euler" else (np.exp(dA) - 1) / n["A"] * n["B"]
    h, outputs = n["initial_state"], []
    for t in range(n["u"].shape[1]):
        h = np.exp(dA) * h + weight * n["u"][:, t, :, None]
        y = (n["C"] * h).sum(-1)
        y = 2 * y.real if np.iscomplexobj(y) else y
        gate = n["z"][:, t] / (1 + np.exp(-n["z"][:, t]))
        outputs.append((y + n["D"] * n["u"][:, t]) * gate)
    return {"y": torch.from_numpy(np.stack(outputs, axis=1)), "final_state": torch.from_numpy(h)}


@both_rules
@both_methods
@both_numbers
@pytest.mark.parametrize("L", LENGTHS)
def test_is_the_serial_definition(L: int, complex_A: bool, method: str, discretisation: str) -> None:
    inputs = doubled(draw(L, complex_A))
    with one_thread():
        got = run_whole(inputs, method=method, discretisation=discretisation)
    assert_close(got, serial(inputs, discretisation), EXACT)


@both_numbers
@pytest.mark.parametrize("L", [1, 3, 63, 500])
def test_gradients_of_the_methods_agree(L: int, complex_A: bool) -> None:
    inputs = doubled(draw(L, complex_A))
    with one_thread():
        want = with_gradients(run_whole, inputs, method="recurrence")
        got = with_gradients(run_whole, inputs, method="convolution")
    assert_close(got, want, EXACT_GRADIENT)


@both_numbers
@pytest.mark.parametrize(
    ("L", "method"), [*((L, "convolution") for L in LENGTHS), *((L, "recurrence") for L in LENGTHS[:-1])]
)
def test_single_precision(L: int, method: str, complex_A: bool) -> None:
    inputs = draw(L, complex_A)
    with one_thread():
        want = with_gradients(run_whole, doubled(inputs), method="convolution")
        got = with_gradients(run_whole, inputs, method=method)
    # the loop adds up the gradients of its parameters in single precision, a step after the other
    allowed = {name: scaled(2e-5 if name.startswith("d") and method == "recurrence" else 1e-5) for name in want}
    assert_close(got, want, allowed)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@both_numbers
def test_16_bits(complex_A: bool, dtype: str) -> None:
    """Computed in single precision: only the result is rounded, by half a unit in the last place."""
    inputs = draw(1000, complex_A)
    inputs |= {name: inputs[name].to(DTYPES[dtype]) for name in ("u", "z")}
    got = run_whole(inputs)
    assert got["y"].dtype == DTYPES[dtype]
    half_unit = {"fp16": 2**-11, "bf16": 2**-8}[dtype]
    rounded = Tolerance(1.01 * half_unit, 1e-4, 1.01 * half_unit)
    assert_close(got, run_whole(doubled(inputs)), {"y": rounded, "final_state": scaled(1e-5)})


@both_methods
@both_numbers
def test_16_bit_gradients(complex_A: bool, method: str) -> None:
    inputs = draw(63, complex_A)
    inputs |= {name: inputs[name].bfloat16() for name in ("u", "z")}
    got = with_gradients(run_whole, inputs, method=method)
    assert got["du"].dtype == got["dz"].dtype == torch.bfloat16
    assert got["dA"].dtype == inputs["A"].dtype
    assert_close(got, with_gradients(run_whole, doubled(inputs)), scaled(5e-3))


@both_methods
@both_numbers
@pytest.mark.parametrize(("L", "lengths"), [(3, (1, 2)), (63, (1, 0, 31, 31)), (500, (1, 2, 0, 63, 300, 134))])
def test_chunks(L: int, lengths: tuple[int, ...], complex_A: bool, method: str) -> None:
    """The state is all that a chunk needs of those before it, and gradients go through it."""
    inputs = doubled(draw(L, complex_A))
    with one_thread():
        want = with_gradients(run_whole, inputs, method=method)
        got = with_gradients(run_chunked, inputs, lengths, method=method)
    assert_close(got, want, EXACT_GRADIENT)


@both_numbers
def test_chunks_in_single_precision(complex_A: bool) -> None:
    inputs = draw(2049, complex_A)
    with one_thread():
        want = with_gradients(run_whole, inputs)
        got = with_gradients(run_chunked, inputs, (1, 2, 0, 127, 1000, 129, 790))
    assert_close(got, want, scaled(2e-5))


@both_rules
@both_numbers
@pytest.mark.parametrize("L", [1, 3, 63])
def test_steps(L: int, complex_A: bool, discretisation: str) -> None:
    inputs = draw(L, complex_A)
    how = {"discretisation": discretisation}
    assert_close(run_steps(doubled(inputs), **how), run_whole(doubled(inputs), method="convolution", **how), EXACT)
    assert_close(run_steps(inputs, **how), run_whole(inputs, method="convolution", **how), scaled(1e-5))


def test_a_prompt_then_steps() -> None:
    """Generation: the prompt as one convolution, then a step at a time from its final state."""
    inputs = doubled(draw(100, complex_A=True))
    whole = run_whole(inputs)
    head = {k: t[:, :80] if k in ("u", "z") else t for k, t in inputs.items()}
    prompt = run_whole(head)
    tail = {k: t[:, 80:] if k in ("u", "z") else t for k, t in inputs.items()}
    steps = run_steps(tail | {"initial_state": prompt["final_state"]})
    got = {"y": torch.cat([prompt["y"], steps["y"]], dim=1), "final_state": steps["final_state"]}
    assert_close(got, whole, EXACT)


@both_methods
@both_numbers
def test_is_the_selective_scan_with_constant_parameters(complex_A: bool, method: str) -> None:
    def constant(inputs: Inputs) -> dict[str, Tensor]:
        delta = inputs["delta"].expand(inputs["u"].shape)
        y, state = selective_scan(**(inputs | {"delta": delta}), return_final_state=True, backend="reference")
        return {"y": y, "final_state": state}

    inputs = doubled(draw(200, complex_A))
    with one_thread():
        want = with_gradients(constant, inputs)
        got = with_gradients(run_whole, inputs, method=method, discretisation="euler")
    assert_close(got, want, EXACT_GRADIENT)


@both_methods
@both_numbers
def test_finite_differences(complex_A: bool, method: str) -> None:
    inputs = {name: t.requires_grad_() for name, t in doubled(draw(4, complex_A, D=2, N=2, batch=1)).items()}
    # states at rest and nearly so, and on either side of where the series for the weight of an input ends
    with torch.no_grad():
        inputs["A"][0, 0], inputs["A"][0, 1] = 0, -1e-7
        inputs["A"][1, 0], inputs["A"][1, 1] = -0.0999 / inputs["delta"][1], -0.1001 / inputs["delta"][1]

    def function(*arguments: Tensor) -> Any:
        given = dict(zip(inputs, arguments, strict=True))
        return time_invariant_scan(**given, return_final_state=True, method=method)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@both_methods
def test_second_derivative(method: str) -> None:
    inputs = {k: t.requires_grad_() for k, t in doubled(draw(4, D=1, N=2, batch=1)).items() if k in ("delta", "A", "u")}
    fixed = {k: t for k, t in doubled(draw(4, D=1, N=2, batch=1)).items() if k in ("B", "C")}

    def function(*arguments: Tensor) -> Tensor:
        return time_invariant_scan(**dict(zip(inputs, arguments, strict=True)), **fixed, method=method)

    assert torch.autograd.gradgradcheck(function, tuple(inputs.values()))


@both_numbers
@pytest.mark.parametrize("L", [0, *LENGTHS])
def test_kernel_is_the_response_to_an_impulse(L: int, complex_A: bool) -> None:
    inputs = doubled(draw(L, complex_A))
    p = {name: inputs[name] for name in ("delta", "A", "B", "C")}
    impulse = torch.zeros(1, L, 3, dtype=torch.float64)
    impulse[:, :1] = 1
    want = time_invariant_scan(impulse, **p, method="recurrence")[0].T
    kernel = ssm_kernel(**p, length=L)
    assert kernel.dtype == torch.float64
    assert_close({"K": kernel}, {"K": want}, EXACT)


@both_numbers
@pytest.mark.parametrize("memory", [3e4, 3e6])
def test_long_memory(memory: float, complex_A: bool) -> None:
    """|Abar| of 1 - 1e-5 and less over 16384 steps: errors of a power must not grow with its exponent."""
    inputs = draw(16384, complex_A, D=2, batch=1, memory=memory)
    if complex_A:  # frequencies of thousands of radians in all, so that a rounded angle would show
        inputs["A"] = torch.complex(inputs["A"].real, inputs["A"].imag + 2)
    with one_thread():
        want = with_gradients(run_whole, doubled(inputs), method="convolution")
        got = with_gradients(run_whole, inputs, method="convolution")
    assert_close(got, want, scaled(2e-5))


def test_long_memory_step_by_step() -> None:
    """A real state that keeps nearly all: the loop's error is rounding, not a factor that is wrong at every step."""
    inputs = draw(4096, D=1, N=1, batch=1)
    inputs |= {"A": torch.full((1, 1), -1e-5), "delta": torch.ones(1), "initial_state": torch.full((1, 1, 1), 100.0)}
    inputs["u"] = torch.zeros_like(inputs["u"])
    with one_thread():
        want, got = run_whole(doubled(inputs)), run_whole(inputs, method="recurrence")
    assert relative_error(got["final_state"], want["final_state"]) < 1e-5


@pytest.mark.gpu
@both_methods
@both_numbers
@pytest.mark.parametrize("L", [1, 63, 2049])
def test_on_a_gpu(L: int, complex_A: bool, method: str) -> None:
    inputs = draw(L, complex_A)
    want = with_gradients(run_whole, doubled(inputs), method="convolution")
    got = with_gradients(run_whole, {name: t.cuda() for name, t in inputs.items()}, method=method)
    assert got["y"].is_cuda
    assert_close(got, want, scaled(2e-5))


@both_numbers
def test_zero_order_hold_is_exact(complex_A: bool) -> None:
    """Two half steps of the same input end where one step does; with Euler they do not."""
    inputs = {k: t for k, t in doubled(draw(50, complex_A)).items() if k not in ("D", "z")}
    halves = inputs | {"delta": inputs["delta"] / 2, "u": inputs["u"].repeat_interleave(2, dim=1)}
    whole, twice = run_whole(inputs), run_whole(halves)
    assert_close({"y": twice["y"][:, 1::2], "final_state": twice["final_state"]}, whole, EXACT)
    rough = [run_whole(i, discretisation="euler")["final_state"] for i in (inputs, halves)]
    assert relative_error(*rough) > 1e-3


def test_a_state_at_rest_integrates() -> None:
    u = torch.randn(1, 40, 2, dtype=torch.float64)
    A = torch.zeros(2, 1, dtype=torch.float64)
    delta = torch.tensor([0.1, 2.0], dtype=torch.float64)
    for method in METHODS:
        y = time_invariant_scan(u, delta, A, A + 1, A + 1, method=method)
        torch.testing.assert_close(y, delta * u.cumsum(1), rtol=1e-12, atol=1e-12)
