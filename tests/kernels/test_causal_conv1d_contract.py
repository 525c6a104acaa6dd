"""What the convolution promises besides numbers: layouts, empty inputs, untouched arguments, and errors that help."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from tests.kernels.compare import BACKENDS, DEVICE, Tolerance, assert_close

CLOSE = Tolerance(1e-5, 1e-5, 1e-6)
Arguments = dict[str, Any]


def draw(L: int = 13, D: int = 6, K: int = 4, batch: int = 2, device: str = "cpu") -> Arguments:
    generator = torch.Generator().manual_seed(L)
    shapes = {"x": (batch, L, D), "weight": (D, K), "bias": (D,), "initial_state": (batch, D, K - 1)}
    return {name: torch.randn(shape, generator=generator).to(device) for name, shape in shapes.items()}


def run(arguments: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    return causal_conv1d(**arguments, activation="silu", return_final_state=True, backend=backend)


def transposed(t: Tensor) -> Tensor:
    """Lay a tensor out with its last dimension outermost in memory, as a channels-first model hands it over."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(t: Tensor) -> Tensor:
    """Cut the tensor out of a bigger one whose other elements are NaN: reading a neighbour shows."""
    bigger = torch.full([2 * size + 3 for size in t.shape], float("nan"), dtype=t.dtype, device=t.device)
    view = bigger[tuple(slice(1, 1 + 2 * size, 2) for size in t.shape)]
    view.copy_(t)
    return view


@pytest.mark.parametrize("layout", [transposed, sliced])
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs_and_upstream(backend: str, layout: Callable[[Tensor], Tensor]) -> None:
    plain = draw(device=DEVICE[backend])
    upstream = [torch.randn_like(t) for t in run(plain, backend)]
    results = []
    for lay in (layout, torch.clone):
        leaves = {name: lay(t).detach().requires_grad_() for name, t in plain.items()}
        out = run(leaves, backend)
        gradients = torch.autograd.grad(out, list(leaves.values()), [lay(t) for t in upstream])
        results.append(dict(zip(["y", "state", *leaves], [*out, *gradients], strict=True)))
    assert_close(*results, CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_modified_and_twice_is_the_same_to_the_bit(backend: str) -> None:
    L, D, batch = (20, 3, 1) if backend == "triton" and DEVICE[backend] == "cpu" else (600, 40, 3)
    leaves = {name: t.requires_grad_() for name, t in draw(L, D, batch=batch, device=DEVICE[backend]).items()}
    before = {name: t.detach().clone() for name, t in leaves.items()}
    upstream = [torch.randn_like(t) for t in run(leaves, backend)]
    runs = []
    for _ in range(3):
        out = run(leaves, backend)
        runs.append([*out, *torch.autograd.grad(out, list(leaves.values()), upstream)])
    for name, t in leaves.items():
        assert torch.equal(t.detach(), before[name]), name
    for name, first, *others in zip(["y", "state", *leaves], *runs, strict=True):
        assert all(torch.equal(first, other) for other in others), name


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "initial_state"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_one_argument_only(backend: str, wanted: str) -> None:
    arguments = draw(device=DEVICE[backend])
    everything = {name: t.clone().requires_grad_() for name, t in arguments.items()}
    run(everything, "reference")[0].square().sum().backward()
    arguments[wanted].requires_grad_()
    run(arguments, backend)[0].square().sum().backward()
    assert [name for name, t in arguments.items() if t.grad is not None] == [wanted]
    assert_close({wanted: arguments[wanted].grad}, {wanted: everything[wanted].grad}, Tolerance(1e-4, 1e-4, 2e-6))


@pytest.mark.parametrize("with_state", [False, True], ids=["", "init"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sequence(backend: str, with_state: bool) -> None:
    leaves = {name: t.requires_grad_() for name, t in draw(L=0, device=DEVICE[backend]).items()}
    if not with_state:
        leaves["initial_state"] = None
    y, state = run(leaves, backend)
    assert y.shape == (2, 0, 6)
    assert torch.equal(state, leaves["initial_state"] if with_state else torch.zeros_like(state))
    (y.sum() + state.sum()).backward()
    if with_state:
        assert torch.equal(leaves["initial_state"].grad, torch.ones_like(state))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    leaves = {name: t.requires_grad_() for name, t in draw(batch=0, device=DEVICE[backend]).items()}
    y, state = run(leaves, backend)
    assert y.shape == (0, 13, 6)
    assert state.shape == (0, 6, 3)
    (y.sum() + state.sum()).backward()
    for name in ("weight", "bias"):
        assert torch.equal(leaves[name].grad, torch.zeros_like(leaves[name])), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_final_state_is_a_tensor_of_its_own(backend: str) -> None:
    """Stepping on from it in place changes neither the input nor the initial state."""
    for L in (0, 1, 13):
        arguments = draw(L=L, device=DEVICE[backend])
        before = {name: t.clone() for name, t in arguments.items()}
        run(arguments, backend)[1].fill_(7.0)
        for name, t in before.items():
            assert torch.equal(arguments[name], t), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_changes_the_state_in_place_and_nothing_else(backend: str) -> None:
    arguments = draw(L=1, device=DEVICE[backend])
    want_y, want_state = run(arguments, backend)
    for cache in (torch.full((2, 6, 9), 9.0), torch.full((3, 12, 2), 9.0).permute(2, 1, 0)):
        cache = cache.to(DEVICE[backend])
        state = cache[:, 3:9] if cache.shape[1] == 12 else cache[:, :, 3:6]
        state.copy_(arguments["initial_state"])
        x, weight, bias = (arguments[name].clone() for name in ("x", "weight", "bias"))
        y = causal_conv1d_update(x[:, 0], state, weight, bias, "silu", backend=backend)
        assert_close({"y": y}, {"y": want_y[:, 0]}, CLOSE)
        assert torch.equal(state, want_state)
        assert all(torch.equal(a, arguments[name]) for name, a in (("x", x), ("weight", weight), ("bias", bias)))
        state.fill_(9.0)
        assert torch.equal(cache, torch.full_like(cache, 9.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_on_non_contiguous_inputs(backend: str) -> None:
    plain = draw(L=1, device=DEVICE[backend])
    results = []
    for lay in (transposed, sliced, torch.clone):
        x, weight, bias, state = (lay(t) for t in (plain["x"][:, 0], *list(plain.values())[1:]))
        y = causal_conv1d_update(x, state, weight, bias, backend=backend)
        results.append({"y": y, "state": state})
    for strided in results[:2]:
        assert_close(strided, results[2], CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_has_no_gradient(backend: str) -> None:
    """Stepping with a model's parameters, without no_grad, builds no graph: it would grow with every token."""
    arguments = draw(L=1, device=DEVICE[backend])
    state = arguments["initial_state"]
    y = causal_conv1d_update(arguments["x"][:, 0], state, arguments["weight"].requires_grad_(), backend=backend)
    assert not y.requires_grad
    assert not state.requires_grad


WRONG: dict[str, tuple[Callable[[Arguments], Arguments], str]] = {
    "x of one sequence": (lambda a: {"x": a["x"][0]}, "x has shape (13, 6), expected (B, L, D)"),
    "x of integers": (
        lambda a: {"x": a["x"].long()},
        "x has type int64, expected float32 or float16 or bfloat16 or float64",
    ),
    "channels first": (
        lambda a: {"x": a["x"].transpose(1, 2)},
        "weight has shape (6, 4), expected (D, K) with D = 13, K at least 2",
    ),
    "weight as torch.nn.Conv1d has it": (
        lambda a: {"weight": a["weight"][:, None]},
        "weight has shape (6, 1, 4), expected (D, K) with D = 6, K at least 2",
    ),
    "one tap": (
        lambda a: {"weight": a["weight"][:, :1]},
        "weight has shape (6, 1), expected (D, K) with D = 6, K at least 2",
    ),
    "weight in 16 bits beside float32 x": (
        lambda a: {"weight": a["weight"].half()},
        "weight has type float16, expected float32",
    ),
    "weight in the other 16 bits": (
        lambda a: {"x": a["x"].half(), "weight": a["weight"].bfloat16()},
        "weight has type bfloat16, expected float32 or float16",
    ),
    "bias of other channels": (lambda a: {"bias": a["bias"][1:]}, "bias has shape (5,), expected (D,) = (6,)"),
    "bias of another type than weight": (
        lambda a: {"bias": a["bias"].half()},
        "bias has type float16, expected float32",
    ),
    "unknown activation": (lambda a: {"activation": "relu"}, "activation is 'relu', expected None or 'silu'"),
    "initial_state of another width": (
        lambda a: {"initial_state": a["initial_state"][..., 1:]},
        "initial_state has shape (2, 6, 2), expected (B, D, K-1) = (2, 6, 3)",
    ),
    "initial_state of another type": (
        lambda a: {"initial_state": a["initial_state"].half()},
        "initial_state has type float16, expected float32",
    ),
    "packed with a batch": (
        lambda a: {"cu_seqlens": torch.tensor([0, 13], dtype=torch.int32)},
        "cu_seqlens needs batch 1, but x has batch 2: lay the sequences end to end along L",
    ),
    "unknown backend": (
        lambda a: {"backend": "cuda"},
        "backend is 'cuda', expected None or one of 'reference', 'cpu', 'triton'",
    ),
    "another device": (
        lambda a: {"bias": a["bias"].to("meta")},
        "bias is on meta, expected cpu like x",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_arguments(mistake: str) -> None:
    arguments = draw()
    change, message = WRONG[mistake]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        causal_conv1d(**(arguments | change(arguments)))


WRONG_STEP: dict[str, tuple[Callable[[Arguments], Arguments], str]] = {
    "a sequence": (lambda a: {"x": a["x"][:, None]}, "x has shape (2, 1, 6), expected (B, D)"),
    "x of integers": (
        lambda a: {"x": a["x"].long()},
        "x has type int64, expected float32 or float16 or bfloat16 or float64",
    ),
    "state of another width": (
        lambda a: {"state": a["state"][..., 1:]},
        "state has shape (2, 6, 2), expected (B, D, K-1) = (2, 6, 3)",
    ),
    "state of another type": (lambda a: {"state": a["state"].half()}, "state has type float16, expected float32"),
    "weight of other channels": (
        lambda a: {"weight": a["weight"][1:]},
        "weight has shape (5, 4), expected (D, K) with D = 6, K at least 2",
    ),
    "bias of other channels": (lambda a: {"bias": a["bias"][1:]}, "bias has shape (5,), expected (D,) = (6,)"),
    "unknown activation": (lambda a: {"activation": "relu"}, "activation is 'relu', expected None or 'silu'"),
}


@pytest.mark.parametrize("mistake", WRONG_STEP)
def test_wrong_arguments_of_a_step(mistake: str) -> None:
    arguments = draw()
    arguments["state"] = arguments.pop("initial_state")
    arguments["x"] = arguments["x"][:, 0]
    change, message = WRONG_STEP[mistake]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        causal_conv1d_update(**(arguments | change(arguments)))
