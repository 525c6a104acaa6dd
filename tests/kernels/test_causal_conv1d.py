"""The causal convolution: the reference against the serial definition, every backend against the reference."""

import itertools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from tests.kernels.compare import BACKENDS, DEVICE, DTYPES, Tolerance, allowed, assert_close, one_thread, to_double
from tests.kernels.serial import serial_conv

# rtol and atol: causal-conv1d, tests/test_causal_conv1d.py; `scaled` is about four times the largest error seen here,
# against the largest element, or a little more than the half unit in the last place that rounding to 16 bits costs.
ACTIVATIONS = {
    "fp32": Tolerance(3e-4, 1e-3, 1.5e-6),
    "fp16": Tolerance(3e-3, 5e-3, 6e-4),
    "bf16": Tolerance(1e-2, 5e-2, 4.5e-3),
}
PARAMETERS = Tolerance(1e-3, 1e-3, 1.5e-5)
SWITCHES = ("bias", "silu", "init", "final")


@dataclass(frozen=True)
class ConvCase:
    """One case: sizes, types, and what is there besides x and weight."""

    L: int
    D: int = 5
    K: int = 4
    dtype: str = "fp32"
    on: tuple[str, ...] = SWITCHES
    weight16: bool = False
    batch: int = 2

    def __str__(self) -> str:
        return "-".join([f"L{self.L}-D{self.D}-K{self.K}-{self.dtype}", *(["w16"] if self.weight16 else []), *self.on])


def tolerances(case: ConvCase) -> dict[str, Tolerance]:
    activation = ACTIVATIONS[case.dtype]
    parameter = activation if case.weight16 else PARAMETERS
    names = ("y", "final_state", "dx", "dinitial_state")
    return dict.fromkeys(names, activation) | {"dweight": parameter, "dbias": parameter}


def some_switches(L: int, **fixed: Any) -> ConvCase:
    bits = zlib.crc32(f"{L}{sorted(fixed.items())}".encode())
    return ConvCase(L, on=tuple(s for i, s in enumerate(SWITCHES) if bits >> (5 + i) & 1), **fixed)


SWITCH_CASES = [
    ConvCase(9, D=3, K=K, on=tuple(s for s, on in zip(SWITCHES, chosen, strict=True) if on))
    for K in (2, 3, 4, 7)
    for chosen in itertools.product((False, True), repeat=len(SWITCHES))
]
LENGTHS = (1, 2, 3, 63, 129, 1000, 2049)
CPU_CASES = [
    *(
        some_switches(L, D=D, K=K, dtype=dtype)
        for L in LENGTHS
        for dtype, D, K in (("fp32", 1, 4), ("fp16", 17, 3), ("bf16", 48, 7), ("fp32", 17, 2))
    ),
    *(ConvCase(L, K=K) for L in (1, 2, 5) for K in (2, 4, 7)),
    *(ConvCase(40, dtype=dtype, weight16=True) for dtype in ("fp16", "bf16")),
]
INTERPRETED_CASES = [
    *(case for case in SWITCH_CASES if zlib.crc32(str(case).encode()) % 5 == 0),
    *(some_switches(L, dtype=dtype, batch=1) for L in (1, 2, 3, 35) for dtype in DTYPES),
    ConvCase(129, D=3, batch=1),
    *(ConvCase(L, K=7) for L in (1, 2, 5)),
    *(ConvCase(11, dtype=dtype, weight16=True) for dtype in ("fp16", "bf16")),
]
GPU_CASES = [
    *SWITCH_CASES,
    *CPU_CASES,
    *(
        some_switches(L, D=D, K=K, dtype=dtype)
        for L in LENGTHS
        for D in (1, 17, 64, 4128)
        for K in (2, 3, 4, 7)
        for dtype in DTYPES
    ),
]

Inputs = dict[str, Tensor | None]


def draw(case: ConvCase) -> tuple[Inputs, list[Tensor]]:
    """Draw the arguments and the upstream gradients of y and the final state."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    dtype = DTYPES[case.dtype]
    parameter = dtype if case.weight16 else torch.float32
    state = (case.batch, case.D, case.K - 1)
    inputs: Inputs = {
        "x": randn(case.batch, case.L, case.D).to(dtype),
        "weight": randn(case.D, case.K).to(parameter),
        "bias": randn(case.D).to(parameter) if "bias" in case.on else None,
        "initial_state": randn(*state).to(dtype) if "init" in case.on else None,
    }
    return inputs, [randn(case.batch, case.L, case.D).to(dtype), randn(*state).to(dtype)]


def on_device(inputs: Mapping[str, Tensor | None], device: str) -> Inputs:
    return {name: t if t is None else t.to(device) for name, t in inputs.items()}


def run(inputs: Mapping[str, Tensor | None], case: ConvCase, backend: str) -> dict[str, Tensor]:
    final = "final" in case.on
    activation = "silu" if "silu" in case.on else None
    out = causal_conv1d(**inputs, activation=activation, return_final_state=final, backend=backend)
    return {"y": out[0], "final_state": out[1]} if final else {"y": out}


def run_with_gradients(
    inputs: Mapping[str, Tensor | None], upstream: list[Tensor], case: ConvCase, backend: str
) -> dict[str, Tensor]:
    leaves = {name: t if t is None else t.detach().clone().requires_grad_() for name, t in inputs.items()}
    results = run(leaves, case, backend)
    given = {name: t for name, t in leaves.items() if t is not None}
    gradients = torch.autograd.grad(list(results.values()), list(given.values()), upstream[: len(results)])
    return results | {f"d{name}": g for name, g in zip(given, gradients, strict=True)}


@lru_cache(maxsize=256)
def truth(case: ConvCase) -> dict[str, Tensor]:
    """Return results and gradients of the reference in float64."""
    inputs, upstream = draw(case)
    exact = {name: t if t is None else to_double(t) for name, t in inputs.items()}
    with one_thread():
        return run_with_gradients(exact, [to_double(t) for t in upstream], case, "reference")


def check(case: ConvCase, backend: str) -> None:
    """Compare the forward pass alone, then forward and backward."""
    inputs, upstream = draw(case)
    inputs, upstream = on_device(inputs, DEVICE[backend]), [t.to(DEVICE[backend]) for t in upstream]
    exact = truth(case)
    forward = run(inputs, case, backend)
    assert {t.dtype for t in forward.values()} == {DTYPES[case.dtype]}
    assert_close(forward, {name: exact[name] for name in forward}, allowed(tolerances(case), case.dtype, backend))
    assert_close(
        run_with_gradients(inputs, upstream, case, backend), exact, allowed(tolerances(case), case.dtype, backend)
    )


@pytest.mark.parametrize("case", SWITCH_CASES, ids=str)
def test_reference_is_the_serial_definition(case: ConvCase) -> None:
    inputs = {name: t if t is None else to_double(t) for name, t in draw(case)[0].items()}
    arrays: dict[str, Any] = {name: t if t is None else t.numpy() for name, t in inputs.items()}
    y, state = serial_conv(**arrays, silu="silu" in case.on, bounds=None)
    want = {"y": torch.from_numpy(y), "final_state": torch.from_numpy(state)}
    got = run(inputs, case, "reference")
    assert_close(got, {name: want[name] for name in got}, Tolerance(1e-12, 1e-12, 1e-12))


@pytest.mark.parametrize("K", [2, 4, 7])
@pytest.mark.parametrize("on", [(), SWITCHES], ids="-".join)
def test_packed_is_the_serial_definition(on: tuple[str, ...], K: int) -> None:
    bounds = [0, 1, 6, 8, 17]
    inputs = {name: t if t is None else to_double(t) for name, t in draw(ConvCase(17, K=K, on=on, batch=1))[0].items()}
    if "init" in on:
        generator = torch.Generator().manual_seed(K)
        inputs["initial_state"] = torch.randn((4, 5, K - 1), generator=generator, dtype=torch.float64)
    arrays: dict[str, Any] = {name: t if t is None else t.numpy() for name, t in inputs.items()}
    want_y, want_state = serial_conv(**arrays, silu="silu" in on, bounds=bounds)
    y, state = causal_conv1d(
        **inputs,
        activation="silu" if "silu" in on else None,
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        return_final_state=True,
        backend="reference",
    )
    want = {"y": torch.from_numpy(want_y), "final_state": torch.from_numpy(want_state)}
    assert_close({"y": y, "final_state": state}, want, Tolerance(1e-12, 1e-12, 1e-12))


@pytest.mark.parametrize("bounds", [None, [0, 1, 5]], ids=["", "packed"])
@pytest.mark.parametrize("silu", [False, True], ids=["", "silu"])
@pytest.mark.parametrize("K", [2, 4, 7])
def test_gradcheck(K: int, silu: bool, bounds: list[int] | None) -> None:
    inputs, _ = draw(ConvCase(5, D=2, K=K, batch=1 if bounds else 2))
    if bounds:
        inputs["initial_state"] = torch.randn((2, 2, K - 1), generator=torch.Generator().manual_seed(K))

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor) -> Any:
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32) if bounds else None
        activation = "silu" if silu else None
        return causal_conv1d(x, weight, bias, activation, initial_state, cu_seqlens, True, "reference")

    assert torch.autograd.gradcheck(convolve, tuple(to_double(t).requires_grad_() for t in inputs.values()))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", SWITCH_CASES, ids=str)
def test_every_switch(case: ConvCase, backend: str) -> None:
    check(case, backend)


@pytest.mark.parametrize("case", CPU_CASES, ids=str)
def test_cpu(case: ConvCase) -> None:
    check(case, "cpu")


@pytest.mark.parametrize("case", INTERPRETED_CASES, ids=str)
def test_triton(case: ConvCase) -> None:
    check(case, "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_triton_gpu(case: ConvCase) -> None:
    check(case, "triton")


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_gpu(needs_gpu_memory: Callable[[int], None]) -> None:
    """Offsets need 64 bits: the end of a huge input equals the same steps run on their own."""
    needs_gpu_memory(10)
    D, tail = 64, 1025
    L = 2**31 // D + tail
    x = torch.randn((1, L, D), device="cuda", dtype=torch.bfloat16)
    weight = torch.randn((D, 4), device="cuda")
    y, state = causal_conv1d(x, weight, return_final_state=True, backend="triton")
    before = x[:, L - tail - 3 : L - tail].transpose(1, 2)
    want, want_state = causal_conv1d(
        x[:, L - tail :], weight, None, None, before, return_final_state=True, backend="triton"
    )
    assert torch.equal(y[:, L - tail :], want)
    assert torch.equal(state, want_state)


RUNS = [
    ("reference", ConvCase(140, K=4), (1, 2, 0, 63, 64, 10)),
    ("cpu", ConvCase(2049, K=4), (1, 2, 0, 127, 1000, 129, 790)),
    ("cpu", ConvCase(63, D=17, K=7, on=("init", "final")), (1, 2, 3, 4, 5, 48)),
    ("triton", ConvCase(37, K=4, batch=1), (1, 2, 0, 33, 1)),
    ("triton", ConvCase(11, K=7, on=("bias", "final")), (1, 2, 8)),
]


@pytest.mark.parametrize(("backend", "case", "lengths"), RUNS, ids=[f"{backend}-{case}" for backend, case, _ in RUNS])
def test_chunks_and_their_gradient(backend: str, case: ConvCase, lengths: tuple[int, ...]) -> None:
    inputs, upstream = draw(case)
    inputs, upstream = on_device(inputs, DEVICE[backend]), [t.to(DEVICE[backend]) for t in upstream]
    whole = run_with_gradients(inputs, upstream, case, backend)

    leaves = {name: t if t is None else t.requires_grad_() for name, t in inputs.items()}
    state, outputs = leaves["initial_state"], []
    for chunk in leaves["x"].split(lengths, dim=1):
        y, state = run(leaves | {"x": chunk, "initial_state": state}, case, backend).values()
        outputs.append(y)
    results = {"y": torch.cat(outputs, dim=1), "final_state": state}
    given = {name: t for name, t in leaves.items() if t is not None}
    gradients = torch.autograd.grad(list(results.values()), list(given.values()), upstream)
    chunked = results | {f"d{name}": g for name, g in zip(given, gradients, strict=True)}
    assert_close(chunked, whole, Tolerance(1e-5, 1e-5, 2e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "on"), [(2, SWITCHES), (4, SWITCHES), (7, ("silu", "final")), (3, ("init", "final"))])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps(backend: str, K: int, on: tuple[str, ...], dtype: str) -> None:
    case = ConvCase(7, K=K, on=on, dtype=dtype)
    inputs = on_device(draw(case)[0], DEVICE[backend])
    whole = run(inputs, case, backend)
    before = inputs["initial_state"]
    state = torch.zeros_like(whole["final_state"]) if before is None else before.clone()
    activation = "silu" if "silu" in on else None
    outputs = [
        causal_conv1d_update(x, state, inputs["weight"], inputs["bias"], activation, backend=backend)
        for x in inputs["x"].unbind(1)
    ]
    close = Tolerance(1e-5, 1e-5, 1e-6) if dtype == "fp32" else ACTIVATIONS[dtype]
    assert_close({"y": torch.stack(outputs, dim=1)}, {"y": whole["y"]}, allowed({"y": close}, dtype, backend))
    assert torch.equal(state, whole["final_state"])
    assert outputs[0].dtype == DTYPES[dtype]
