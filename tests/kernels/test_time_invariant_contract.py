"""What the time-invariant operator promises besides its values: what it takes, refuses and leaves alone."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels import ssm_kernel, time_invariant_scan, time_invariant_update
from mamba_seq.kernels.time_invariant_scan import convolution, step_parameters
from mamba_seq.kernels.time_invariant_scan.convolution import fast_transform_size, split_length
from tests.kernels.compare import assert_close
from tests.kernels.time_invariant_cases import METHODS, doubled, draw, run_steps, run_whole, scaled

both_numbers = pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
both_methods = pytest.mark.parametrize("method", METHODS)
Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("on", list(itertools.product((False, True), repeat=3)), ids=str)
@both_methods
def test_every_switch(method: str, on: tuple[bool, ...]) -> None:
    """An argument that is not given is one that changes nothing."""
    inputs = doubled(draw(20))
    neutral = {"D": torch.zeros(3), "initial_state": torch.zeros(2, 3, 4)}
    given = {k: t for k, t in inputs.items() if k not in ("D", "z", "initial_state")}
    given |= {k: inputs[k] for k, chosen in zip(("D", "initial_state", "z"), on, strict=True) if chosen}
    full = {k: v.double() for k, v in neutral.items()} | given
    alone = time_invariant_scan(**given, method=method)
    assert isinstance(alone, Tensor)
    assert_close({"y": alone}, {"y": run_whole(full, method=method)["y"]}, scaled(1e-14))
    if not on[2]:
        gated = time_invariant_scan(**given, z=inputs["z"], method=method)
        assert_close({"y": gated}, {"y": alone * torch.nn.functional.silu(inputs["z"])}, scaled(1e-14))


@pytest.mark.parametrize("method", [None, *METHODS])
@both_numbers
def test_empty_sequence(complex_A: bool, method: str | None) -> None:
    inputs = draw(0, complex_A)
    got = run_whole(inputs, method=method)
    assert got["y"].shape == (2, 0, 3)
    assert torch.equal(got["final_state"], inputs["initial_state"])
    del inputs["initial_state"]
    assert torch.equal(run_whole(inputs, method=method)["final_state"], torch.zeros(2, 3, 4, dtype=inputs["A"].dtype))


@both_methods
def test_empty_batch(method: str) -> None:
    got = run_whole(draw(7, batch=0), method=method)
    assert got["y"].shape == (0, 7, 3)
    assert got["final_state"].shape == (0, 3, 4)


@both_methods
@both_numbers
def test_inputs_stay_and_strides_do_not_matter(complex_A: bool, method: str) -> None:
    inputs = draw(63, complex_A)
    before = {name: t.clone() for name, t in inputs.items()}
    want = run_whole(inputs, method=method)
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)
    strided = {name: torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0] for name, t in inputs.items()}
    assert_close(run_whole(strided, method=method), want, scaled(1e-6))


def test_batch_items_do_not_mix() -> None:
    inputs = doubled(draw(300, complex_A=True, batch=3))
    want = run_whole(inputs)
    for i in range(3):
        one = {k: t[i : i + 1] if k in ("u", "z", "initial_state") else t for k, t in inputs.items()}
        assert_close(run_whole(one), {name: t[i : i + 1] for name, t in want.items()}, scaled(1e-13))


def test_short_sequences_run_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_transform(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a transform for a sequence of a few steps")

    with monkeypatch.context() as patched:
        patched.setattr(convolution.torch.fft, "rfft", no_transform)
        run_whole(draw(1))
        with pytest.raises(AssertionError, match="a transform"):
            run_whole(draw(500))


@both_methods
def test_autocast_does_not_round(method: str) -> None:
    inputs = draw(200, complex_A=True)
    want = run_whole(inputs, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run_whole(inputs, method=method)
        kernel = ssm_kernel(**{k: inputs[k] for k in ("delta", "A", "B", "C")}, length=200)
    assert_close(got, want, scaled(1e-7))
    assert kernel.dtype == torch.float32


def test_no_table_of_all_powers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table of powers comes near (D, N, L); the bound is N sqrt(B L) entries a channel."""
    largest = 0

    def watched(log_decay: Tensor, exponents: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, exponents.numel())
        return torch.exp(log_decay[..., None] * exponents)

    monkeypatch.setattr(convolution, "powers", watched)
    run_whole(draw(40000, complex_A=True, D=1, batch=1))
    assert 0 < largest <= 200


@both_numbers
def test_update_changes_the_state_in_place_and_builds_no_graph(complex_A: bool) -> None:
    inputs = draw(1, complex_A)
    want = run_whole(inputs)
    step = {k: t[:, 0] if k in ("u", "z") else t for k, t in inputs.items() if k != "initial_state"}
    step["A"].requires_grad_()
    cache = torch.full((2, 9, 4), 9.0).to(inputs["A"].dtype)
    state = cache[:, 3:6]
    state.copy_(inputs["initial_state"])
    y = time_invariant_update(state, **step)
    assert not y.requires_grad
    assert not state.requires_grad
    assert_close({"y": y[:, None], "final_state": state}, want, scaled(1e-6))
    assert torch.equal(cache[:, :3], torch.full_like(cache[:, :3], 9.0))
    assert torch.equal(cache[:, 6:], torch.full_like(cache[:, 6:], 9.0))


@pytest.mark.parametrize("least", [1, 2, 7, 11, 127, 1001, 4097, 131071])
def test_transform_sizes(least: int) -> None:
    def smooth(size: int) -> bool:
        for prime in (2, 3, 5):
            while size % prime == 0:
                size //= prime
        return size == 1

    assert fast_transform_size(least) == next(size for size in itertools.count(least) if smooth(size))


@pytest.mark.parametrize("batch", [0, 1, 3, 5000])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 63, 1000, 2049])
def test_blocks_cover_the_length(length: int, batch: int) -> None:
    blocks, size = split_length(length, batch)
    assert (blocks - 1) * size < max(length, 1) <= max(blocks * size, 1)


WRONG: dict[str, tuple[Change, str]] = {
    "one step": (lambda s: {"u": s["u"][:, 0]}, "u has shape (2, 3), expected (B, L, D)"),
    "u of integers": (
        lambda s: {"u": s["u"].int()},
        "u has type int32, expected float32 or float16 or bfloat16 or float64",
    ),
    "A of other channels": (lambda s: {"A": s["A"][1:]}, "A has shape (2, 4), expected (D, N) with D = 3"),
    "A in 16 bits": (lambda s: {"A": s["A"].half()}, "A has type float16, expected float32 or complex64"),
    "A in double": (lambda s: {"A": s["A"].double()}, "A has type float64, expected float32 or complex64"),
    "B that varies": (
        lambda s: {"B": s["B"].expand(2, 7, 3, 4)},
        "B has shape (2, 7, 3, 4), expected (D, N) = (3, 4)",
    ),
    "C of another type": (lambda s: {"C": s["C"] * 1j}, "C has type complex64, expected float32"),
    "delta that varies": (
        lambda s: {"delta": s["delta"].expand(2, 7, 3)},
        "delta has shape (2, 7, 3), expected (D,) = (3,)",
    ),
    "delta in 16 bits": (lambda s: {"delta": s["delta"].half()}, "delta has type float16, expected float32"),
    "D of other channels": (lambda s: {"D": s["D"][1:]}, "D has shape (2,), expected (D,) = (3,)"),
    "z of another length": (lambda s: {"z": s["z"][:, 1:]}, "z has shape (2, 6, 3), expected (B, L, D) = (2, 7, 3)"),
    "z of another type": (lambda s: {"z": s["z"].half()}, "z has type float16, expected float32"),
    "a state of another batch": (
        lambda s: {"initial_state": s["initial_state"][1:]},
        "initial_state has shape (1, 3, 4), expected (B, D, N) = (2, 3, 4)",
    ),
    "a complex state": (
        lambda s: {"initial_state": s["initial_state"] * 1j},
        "initial_state has type complex64, expected float32",
    ),
    "another device": (lambda s: {"z": s["z"].to("meta")}, "z is on meta, expected cpu like u"),
    "another rule": (
        lambda s: {"discretisation": "bilinear"},
        "discretisation is 'bilinear', expected one of 'zoh', 'euler'",
    ),
    "another method": (lambda s: {"method": "fft"}, "method is 'fft', expected one of 'convolution', 'recurrence'"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_arguments(mistake: str) -> None:
    inputs = draw(7)
    change, message = WRONG[mistake]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        time_invariant_scan(**(inputs | change(inputs)))


@both_numbers
@pytest.mark.parametrize("discretisation", ["zoh", "euler"])
def test_step_parameters_computed_once(complex_A: bool, discretisation: str) -> None:
    inputs = draw(20, complex_A)
    parameters = step_parameters(inputs["delta"], inputs["A"], inputs["B"], discretisation)
    want = run_steps(inputs, discretisation=discretisation)
    got = run_steps(inputs, discretisation=discretisation, parameters=parameters)
    assert torch.equal(got["y"], want["y"])
    assert torch.equal(got["final_state"], want["final_state"])


WRONG_STEP: dict[str, tuple[Change, str]] = {
    "a sequence": (lambda s: {"u": s["u"][:, None]}, "u has shape (2, 1, 3), expected (B, D)"),
    "z of another batch": (lambda s: {"z": s["z"][1:]}, "z has shape (1, 3), expected (B, D) = (2, 3)"),
    "state in 16 bits": (lambda s: {"state": s["state"].half()}, "state has type float16, expected float32"),
    "state of another size": (
        lambda s: {"state": s["state"][..., 1:]},
        "state has shape (2, 3, 3), expected (B, D, N) = (2, 3, 4)",
    ),
    "parameters of other channels": (
        lambda s: {"parameters": (s["A"], s["B"][1:])},
        "parameters[1] has shape (2, 4), expected (D, N) = (3, 4)",
    ),
    "parameters in double": (
        lambda s: {"parameters": (s["A"].double(), s["B"])},
        "parameters[0] has type float64, expected float32",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_STEP)
def test_wrong_arguments_of_a_step(mistake: str) -> None:
    inputs: dict[str, Any] = {k: t[:, 0] if k in ("u", "z") else t for k, t in draw(1).items()}
    inputs["state"] = inputs.pop("initial_state")
    change, message = WRONG_STEP[mistake]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        time_invariant_update(**(inputs | change(inputs)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": -1}, "length is -1, expected 0 or more"),
        ({"delta": torch.ones(2, 3)}, "delta has shape (2, 3), expected (D,)"),
        ({"delta": torch.ones(2)}, "A has shape (3, 4), expected (D, N) with D = 2"),
        ({"delta": torch.ones(3).half()}, "delta has type float16, expected float32"),
        ({"discretisation": "ZOH"}, "discretisation is 'ZOH', expected one of 'zoh', 'euler'"),
    ],
)
def test_wrong_arguments_of_the_kernel(change: dict[str, Any], message: str) -> None:
    inputs = draw(1)
    p: dict[str, Any] = {name: inputs[name] for name in ("delta", "A", "B", "C")}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ssm_kernel(**({"length": 5} | p | change))
