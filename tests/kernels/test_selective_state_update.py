"""One step of the scan: against the definition, on every backend, changing the state in place."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan import selective_state_update
from tests.kernels.compare import BACKENDS, DEVICE, DTYPES, Tolerance, allowed, assert_close, to_double
from tests.kernels.serial import serial_scan

# rtol and atol: state-spaces/mamba, tests/ops/triton/test_selective_state_update.py
STATE = Tolerance(3e-4, 1e-3, 2e-6)
TOLERANCES = {
    "fp32": {"y": Tolerance(3e-4, 1e-3, 2e-6), "state": STATE},
    "fp16": {"y": Tolerance(5e-3, 1e-2, 6e-4), "state": STATE},
    "bf16": {"y": Tolerance(1e-2, 5e-2, 4.5e-3), "state": STATE},
}
SWITCHES = ("D", "z", "delta_bias", "softplus")
Step = dict[str, Any]


def draw(D: int, N: int, dtype: torch.dtype, on: tuple[str, ...] = SWITCHES, batch: int = 2) -> Step:
    """Draw one step as published: delta_bias = rand - 4, A = -rand - 1, the rest randn."""
    generator = torch.Generator().manual_seed(D * 1000 + N)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    step: Step = {
        "state": randn(batch, D, N),
        "u": randn(batch, D).to(dtype),
        "delta": randn(batch, D).to(dtype),
        "A": -torch.rand((D, N), generator=generator) - 1,
        "B": randn(batch, N).to(dtype),
        "C": randn(batch, N).to(dtype),
    }
    optional = {"D": randn(D), "z": randn(batch, D).to(dtype)}
    optional["delta_bias"] = torch.rand((D,), generator=generator) - 4
    return step | {name: t for name, t in optional.items() if name in on} | {"delta_softplus": "softplus" in on}


def moved(step: Step, to: Callable[[Tensor], Tensor]) -> Step:
    return {name: to(t) if isinstance(t, Tensor) else t for name, t in step.items()}


def run(step: Step, backend: str) -> dict[str, Tensor]:
    """Run a step on a copy of its state."""
    step = moved(step, lambda t: t.to(DEVICE[backend]))
    state = step.pop("state").clone()
    return {"y": selective_state_update(state, **step, backend=backend), "state": state}


def check(step: Step, backend: str, dtype: str) -> None:
    got = run(step, backend)
    assert got["y"].dtype == DTYPES[dtype]
    assert_close(got, run(moved(step, to_double), "reference"), allowed(TOLERANCES[dtype], dtype, backend))


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("on", [(), SWITCHES, ("z",), ("delta_bias", "D")], ids="-".join)
@pytest.mark.parametrize("kind", ["one", "groups", "constant"])
def test_reference_is_the_serial_definition(kind: str, on: tuple[str, ...], complex_A: bool) -> None:
    """A step is a scan of length 1 from the state."""
    step = moved(draw(4, 3, torch.float32, on), to_double)
    generator = torch.Generator().manual_seed(1)
    dtype = torch.complex128 if complex_A else torch.float64
    if complex_A:
        step |= {name: step[name] * (1 + 0.5j) for name in ("A", "B", "C", "state")}
    shape = {"one": (2, 3), "groups": (2, 2, 3), "constant": (4, 3)}[kind]
    step |= {name: torch.randn(shape, generator=generator, dtype=dtype) for name in ("B", "C")}

    whole = {
        n: t.numpy()[:, None] if n in ("u", "delta", "z") else t.numpy()
        for n, t in step.items()
        if n != "delta_softplus"
    }
    if kind != "constant":
        whole |= {name: whole[name][:, None] for name in ("B", "C")}
    whole["initial_state"] = whole.pop("state")
    optional = dict.fromkeys(("D", "z", "delta_bias"))
    want_y, want_state = serial_scan(**(optional | whole), delta_softplus="softplus" in on, bounds=None)
    got = run(step, "reference")
    np.testing.assert_allclose(got["y"].numpy(), want_y[:, 0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got["state"].numpy(), want_state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("on", [(), ("D",), ("z",), ("delta_bias",), ("softplus",), SWITCHES], ids="-".join)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_switch(backend: str, on: tuple[str, ...]) -> None:
    check(draw(5, 4, torch.float32, on), backend, "fp32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "N"), [(1, 1), (3, 16), (17, 3), (130, 64)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes(backend: str, D: int, N: int, dtype: str) -> None:
    check(draw(D, N, DTYPES[dtype]), backend, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [16, 32, 64])
@pytest.mark.parametrize("D", [2048, 2064, 4096])
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=pytest.mark.gpu)])
def test_published_sizes(backend: str, D: int, N: int, dtype: str) -> None:
    check(draw(D, N, DTYPES[dtype]), backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_group_written_out(backend: str) -> None:
    step = draw(5, 4, torch.float32)
    grouped = step | {name: step[name][:, None] for name in ("B", "C")}
    assert_close(run(grouped, backend), run(step, backend), STATE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_as_large_as_D(backend: str) -> None:
    """A matrix B could be read both ways then; it is read as (B, N), one row an item of the batch."""
    step = draw(4, 3, torch.float32, batch=4)
    alone = [moved(step, lambda t, i=i: t[i : i + 1] if t.shape[0] == 4 else t) for i in range(4)]
    for i, one in enumerate(alone):
        one |= {name: step[name] for name in ("A", "D", "delta_bias")}
        alone[i] = run(one, backend)
    want = {name: torch.cat([r[name] for r in alone]) for name in ("y", "state")}
    assert_close(run(step, backend), want, STATE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_changes_in_place_and_nothing_else_does(backend: str) -> None:
    step = moved(draw(5, 4, torch.float32), lambda t: t.to(DEVICE[backend]))
    before = moved(step, Tensor.clone)
    want = run(step, backend)
    y = selective_state_update(**step, backend=backend)
    assert torch.equal(step["state"], want["state"])
    assert torch.equal(y, want["y"])
    assert all(
        torch.equal(step[name], before[name]) for name in step if isinstance(step[name], Tensor) and name != "state"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_that_is_a_view_of_a_cache(backend: str) -> None:
    """The state of one layer lies inside a cache of all layers; the rest of the cache stays as it is."""
    step = moved(draw(5, 4, torch.float32), lambda t: t.to(DEVICE[backend]))
    want = run(step, backend)
    for cache in (torch.full((2, 5, 12), 9.0), torch.full((4, 15, 2), 9.0).permute(2, 1, 0)):
        cache = cache.to(DEVICE[backend])
        view = cache[:, 5:10, :4] if cache.shape[1] == 15 else cache[:, :, 4:8]
        view.copy_(step["state"])
        y = selective_state_update(**(step | {"state": view}), backend=backend)
        assert_close({"y": y, "state": view}, want, STATE)
        view.fill_(9.0)
        assert torch.equal(cache, torch.full_like(cache, 9.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs(backend: str) -> None:
    step = moved(draw(5, 4, torch.float32), lambda t: t.to(DEVICE[backend]))
    strided = moved(step, lambda t: torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0])
    assert_close(run_in_place(strided, backend), run(step, backend), Tolerance(0, 0, 1e-7))


def run_in_place(step: Step, backend: str) -> dict[str, Tensor]:
    return {"y": selective_state_update(**step, backend=backend), "state": step["state"]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient(backend: str) -> None:
    """Stepping with a model's parameters, without no_grad, builds no graph: it would grow with every token."""
    step = moved(draw(5, 4, torch.float32), lambda t: t.to(DEVICE[backend]))
    for name in ("A", "D", "delta_bias", "B"):
        step[name].requires_grad_()
    got = run_in_place(step, backend)
    assert not got["y"].requires_grad
    assert not got["state"].requires_grad


WRONG: dict[str, tuple[Callable[[Step], Step], str]] = {
    "a sequence": (lambda s: {"u": s["u"][:, None]}, "u has shape (2, 1, 5), expected (B, D)"),
    "u of integers": (
        lambda s: {"u": s["u"].int()},
        "u has type int32, expected float32 or float16 or bfloat16 or float64",
    ),
    "A of other channels": (lambda s: {"A": s["A"][1:]}, "A has shape (4, 4), expected (D, N) with D = 5"),
    "A in 16 bits": (lambda s: {"A": s["A"].half()}, "A has type float16, expected float32 or complex64"),
    "state of another size": (
        lambda s: {"state": s["state"][..., 1:]},
        "state has shape (2, 5, 3), expected (B, D, N) = (2, 5, 4)",
    ),
    "state in 16 bits": (lambda s: {"state": s["state"].half()}, "state has type float16, expected float32"),
    "delta of another shape": (
        lambda s: {"delta": s["delta"][:1]},
        "delta has shape (1, 5), expected (B, D) = (2, 5)",
    ),
    "delta of another type": (lambda s: {"delta": s["delta"].half()}, "delta has type float16, expected float32"),
    "z of another shape": (lambda s: {"z": s["z"][:, 1:]}, "z has shape (2, 4), expected (B, D) = (2, 5)"),
    "D of other channels": (lambda s: {"D": s["D"][1:]}, "D has shape (4,), expected (D,) = (5,)"),
    "delta_bias in 16 bits": (
        lambda s: {"delta_bias": s["delta_bias"].half()},
        "delta_bias has type float16, expected float32",
    ),
    "B of another size": (
        lambda s: {"B": s["B"][:, 1:]},
        "B has shape (2, 3), expected (B, N) = (2, 4), (B, G, N), or (D, N) = (5, 4) constant over time",
    ),
    "C of another type": (lambda s: {"C": s["C"].half()}, "C has type float16, expected float32"),
    "C with groups that do not divide D": (
        lambda s: {"C": s["C"][:, None].expand(2, 2, 4)},
        "C has 2 groups, which do not divide D = 5",
    ),
    "another device": (lambda s: {"z": s["z"].to("meta")}, "z is on meta, expected cpu like u"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_arguments(mistake: str) -> None:
    step = draw(5, 4, torch.float32)
    change, message = WRONG[mistake]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        selective_state_update(**(step | change(step)))
