"""What the scan promises besides numbers: layouts, empty inputs, untouched arguments, and errors that help."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan import selective_scan
from tests.kernels.compare import BACKENDS, DEVICE, assert_close
from tests.kernels.scan_cases import (
    SWITCHES,
    TOLERANCES,
    Inputs,
    ScanCase,
    draw_inputs,
    draw_upstream,
    on_device,
    run_scan,
    run_with_gradients,
    truth,
)

CASE = ScanCase(5, D=3, N=4)


def transposed(t: Tensor) -> Tensor:
    """Lay a tensor out with its last dimension outermost in memory."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(t: Tensor) -> Tensor:
    """Cut the tensor out of a bigger one whose other elements are NaN: reading a neighbour shows."""
    bigger = torch.full([2 * size + 3 for size in t.shape], float("nan"), dtype=t.dtype, device=t.device)
    view = bigger[tuple(slice(1, 1 + 2 * size, 2) for size in t.shape)]
    view.copy_(t)
    return view


def split_of_a_projection(t: Tensor) -> Tensor:
    """Return the middle third of a wider last dimension: how a Mamba block gets x and z, and B and C."""
    return torch.cat([torch.full_like(t, float("nan")), t, torch.full_like(t, float("nan"))], dim=-1).chunk(3, dim=-1)[
        1
    ]


def expanded(t: Tensor) -> Tensor:
    """Repeat the first batch item with stride 0, where there is a batch."""
    return t[:1].expand_as(t) if t.dim() == 3 else t


@pytest.mark.parametrize("layout", [transposed, sliced, split_of_a_projection, expanded])
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs_and_upstream(backend: str, layout: Callable[[Tensor], Tensor]) -> None:
    inputs = on_device(draw_inputs(CASE), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(CASE, inputs))
    strided: Inputs = {name: t if t is None else layout(t).detach().requires_grad_() for name, t in inputs.items()}
    plain = {name: t if t is None else t.detach().contiguous() for name, t in strided.items()}
    strided_upstream = (layout(upstream[0]), layout(upstream[1]))

    out = run_scan(strided, CASE, backend)
    given = {name: t for name, t in strided.items() if t is not None}
    gradients = torch.autograd.grad(list(out.values()), list(given.values()), strided_upstream)
    got = out | {f"d{name}": g for name, g in zip(given, gradients, strict=True)}
    plain_upstream = (strided_upstream[0].contiguous(), strided_upstream[1].contiguous())
    assert_close(got, run_with_gradients(plain, plain_upstream, CASE, backend), TOLERANCES["fp32"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_of_a_sum(backend: str) -> None:
    """The gradient of a sum is one number with stride 0 along every dimension."""
    inputs = on_device(draw_inputs(CASE), DEVICE[backend])
    leaves = {name: t if t is None else t.clone().requires_grad_() for name, t in inputs.items()}
    out = run_scan(leaves, CASE, backend)
    (out["y"].sum() + out["final_state"].sum()).backward()
    ones = (torch.ones_like(out["y"]), torch.ones_like(out["final_state"]))
    want = run_with_gradients(inputs, ones, CASE, backend)
    assert_close({f"d{name}": t.grad for name, t in leaves.items()} | out, want, TOLERANCES["fp32"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_modified(backend: str) -> None:
    inputs = on_device(draw_inputs(CASE), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(CASE, inputs))
    leaves = {name: t if t is None else t.clone().requires_grad_() for name, t in inputs.items()}
    kept_upstream = [t.clone() for t in upstream]
    out = run_scan(leaves, CASE, backend)
    torch.autograd.backward(list(out.values()), upstream)
    for name, t in inputs.items():
        assert t is None or torch.equal(leaves[name], t), name
    for t, kept in zip(upstream, kept_upstream, strict=True):
        assert torch.equal(t, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_final_state_is_a_tensor_of_its_own(backend: str) -> None:
    """Stepping on from it in place changes neither the initial state nor what the backward pass needs."""
    inputs = on_device(draw_inputs(CASE), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(CASE, inputs))
    leaves = {name: t if t is None else t.clone().requires_grad_() for name, t in inputs.items()}
    y, state = run_scan(leaves, CASE, backend).values()
    state.detach().fill_(7.0)
    y.backward(upstream[0])
    exact = truth(ScanCase(CASE.L, CASE.D, CASE.N, on=tuple(s for s in SWITCHES if s != "final")))
    assert torch.equal(leaves["initial_state"].detach(), inputs["initial_state"])
    assert set(exact) == {"y", *(f"d{name}" for name in leaves)}
    assert all(torch.isfinite(t.grad).all() for t in leaves.values())


@pytest.mark.parametrize("gradients", [False, True], ids=["", "gradients"])
@pytest.mark.parametrize("on", [SWITCHES, ("final",)], ids=["all", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sequence(backend: str, on: tuple[str, ...], gradients: bool) -> None:
    case = ScanCase(0, D=3, N=4, on=on)
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    initial_state = inputs["initial_state"]
    leaves = {name: t if t is None else t.requires_grad_(gradients) for name, t in inputs.items()}
    y, state = run_scan(leaves, case, backend).values()
    assert y.shape == (2, 0, 3)
    assert y.dtype == torch.float32
    assert torch.equal(state, torch.zeros_like(state) if initial_state is None else initial_state)
    if gradients:
        (y.sum() + (2 * state).sum()).backward()  # what a loss over a stream's chunks does, an empty one among them
        if initial_state is not None:
            assert torch.equal(initial_state.grad, torch.full_like(initial_state, 2.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    """Nothing to compute is not an error: gradients of parameters are zero."""
    case = ScanCase(5, D=3, N=4, batch=0)
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(case, inputs))
    got = run_with_gradients(inputs, upstream, case, backend)
    assert got["y"].shape == (0, 5, 3)
    assert got["final_state"].shape == (0, 3, 4)
    for name in ("dA", "dD", "ddelta_bias"):
        assert torch.equal(got[name], torch.zeros_like(got[name])), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_types(backend: str, dtype: torch.dtype) -> None:
    """Activations keep their 16 bits, parameters and states float32, and so do their gradients."""
    case = ScanCase(5, D=3, N=4, dtype="fp16" if dtype == torch.float16 else "bf16")
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(case, inputs))
    got = run_with_gradients(inputs, upstream, case, backend)
    assert {name for name, t in got.items() if t.dtype == dtype} == {"y", "du", "ddelta", "dB", "dC", "dz"}
    assert {t.dtype for t in got.values()} == {dtype, torch.float32}


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_group_written_out(backend: str) -> None:
    """B and C as (B, L, 1, N) are the same scan, and their gradients have the shape they came in."""
    inputs = on_device(draw_inputs(CASE), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(CASE, inputs))
    grouped = inputs | {"B": inputs["B"][:, :, None], "C": inputs["C"][:, :, None]}
    got = run_with_gradients(grouped, upstream, CASE, backend)
    want = run_with_gradients(inputs, upstream, CASE, backend)
    want |= {"dB": want["dB"][:, :, None], "dC": want["dC"][:, :, None]}
    assert_close(got, want, TOLERANCES["fp32"])


# What is changed in a good call, and the whole message that has to come back.
WRONG: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "u of one sequence": (
        lambda a: {"u": a["u"][0]},
        "u has shape (13, 6), expected (B, L, D)",
    ),
    "u of integers": (
        lambda a: {"u": a["u"].long()},
        "u has type int64, expected float32 or float16 or bfloat16 or float64",
    ),
    "delta of another length": (
        lambda a: {"delta": a["delta"][:, 1:]},
        "delta has shape (2, 12, 6), expected (B, L, D) = (2, 13, 6)",
    ),
    "delta of another type": (
        lambda a: {"delta": a["delta"].half()},
        "delta has type float16, expected float32",
    ),
    "channels first": (
        lambda a: {"delta": a["delta"].transpose(1, 2)},
        "delta has shape (2, 6, 13), expected (B, L, D) = (2, 13, 6)",
    ),
    "z of another shape": (
        lambda a: {"z": a["z"][:1]},
        "z has shape (1, 13, 6), expected (B, L, D) = (2, 13, 6)",
    ),
    "z of another type": (
        lambda a: {"z": a["z"].bfloat16()},
        "z has type bfloat16, expected float32",
    ),
    "A of other channels": (
        lambda a: {"A": a["A"][1:]},
        "A has shape (5, 4), expected (D, N) with D = 6",
    ),
    "A per channel": (
        lambda a: {"A": a["A"][:, 0]},
        "A has shape (6,), expected (D, N) with D = 6",
    ),
    "A in 16 bits": (
        lambda a: {"A": a["A"].half()},
        "A has type float16, expected float32 or complex64",
    ),
    "float64 A beside float32 u": (
        lambda a: {"A": a["A"].double()},
        "A has type float64, expected float32 or complex64",
    ),
    "B of another length": (
        lambda a: {"B": a["B"][:, :5]},
        "B has shape (2, 5, 4), expected (B, L, N) or (B, L, G, N) or constant (D, N) = (2, 13, 4)",
    ),
    "B of one dimension": (
        lambda a: {"B": a["B"][0, 0]},
        "B has shape (4,), expected (B, L, N) or (B, L, G, N) or constant (D, N) = (2, 13, 4)",
    ),
    "B of another type": (
        lambda a: {"B": a["B"].half()},
        "B has type float16, expected float32",
    ),
    "grouped B of another state size": (
        lambda a: {"B": a["B"][:, :, None, :3]},
        "B has shape (2, 13, 1, 3), expected (B, L, G, N) = (2, 13, 1, 4)",
    ),
    "groups that do not divide D": (
        lambda a: {"B": a["B"][:, :, None].expand(2, 13, 4, 4), "C": a["C"][:, :, None].expand(2, 13, 4, 4)},
        "B has 4 groups, which do not divide D = 6",
    ),
    "no group": (
        lambda a: {"B": a["B"][:, :, None][:, :, :0]},
        "B has 0 groups, which do not divide D = 6",
    ),
    "other groups in C": (
        lambda a: {"B": a["B"][:, :, None].expand(2, 13, 2, 4), "C": a["C"][:, :, None].expand(2, 13, 3, 4)},
        "C has 3 groups, expected 2 like B",
    ),
    "C of another state size": (
        lambda a: {"C": a["C"][..., :3]},
        "C has shape (2, 13, 3), expected (B, L, N) or (B, L, G, N) or constant (D, N) = (2, 13, 4)",
    ),
    "constant C of other channels": (
        lambda a: {"C": a["A"][1:]},
        "C has shape (5, 4), expected (D, N) = (6, 4)",
    ),
    "real B beside complex A": (
        lambda a: {"A": torch.complex(a["A"], a["A"]), "initial_state": None},
        "B has type float32, expected complex64",
    ),
    "complex B beside real A": (
        lambda a: {"B": torch.complex(a["B"], a["B"])},
        "B has type complex64, expected float32",
    ),
    "D of other channels": (
        lambda a: {"D": a["D"][:5]},
        "D has shape (5,), expected (D,) = (6,)",
    ),
    "D in 16 bits": (
        lambda a: {"D": a["D"].bfloat16()},
        "D has type bfloat16, expected float32",
    ),
    "delta_bias of other channels": (
        lambda a: {"delta_bias": a["delta_bias"][None]},
        "delta_bias has shape (1, 6), expected (D,) = (6,)",
    ),
    "delta_bias in float64": (
        lambda a: {"delta_bias": a["delta_bias"].double()},
        "delta_bias has type float64, expected float32",
    ),
    "initial_state of another batch": (
        lambda a: {"initial_state": a["initial_state"][:1]},
        "initial_state has shape (1, 6, 4), expected (B, D, N) = (2, 6, 4)",
    ),
    "initial_state in 16 bits": (
        lambda a: {"initial_state": a["initial_state"].half()},
        "initial_state has type float16, expected float32",
    ),
    "packed with a batch": (
        lambda a: {"cu_seqlens": torch.tensor([0, 13], dtype=torch.int32)},
        "cu_seqlens needs batch 1, but u has batch 2: lay the sequences end to end along L",
    ),
    "cu_seqlens of int64": (
        lambda a: {"cu_seqlens": torch.tensor([0, 13])},
        "cu_seqlens has type int64, expected int32",
    ),
    "cu_seqlens without a sequence": (
        lambda a: {"cu_seqlens": torch.tensor([0], dtype=torch.int32)},
        "cu_seqlens has shape (1,), expected (S+1,) with S of at least 1",
    ),
    "unknown backend": (
        lambda a: {"backend": "cuda"},
        "backend is 'cuda', expected None or one of 'reference', 'cpu', 'triton'",
    ),
    "another device": (
        lambda a: {"D": a["D"].to("meta")},
        "D is on meta, expected cpu like u",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_arguments(mistake: str) -> None:
    arguments: dict[str, Any] = dict(draw_inputs(ScanCase(13, D=6, N=4)))
    change, message = WRONG[mistake]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        selective_scan(**(arguments | change(arguments)))


@pytest.mark.parametrize("bounds", [[0, 5], [1, 13], [0, 7, 7, 13], [0, 9, 4, 13], [0, 14]])
def test_wrong_boundaries(bounds: list[int]) -> None:
    inputs = draw_inputs(ScanCase(13, D=6, N=4, on=(), batch=1))
    with pytest.raises(ValueError, match=re.escape(f"must increase strictly from 0 to L = 13, got {bounds}")):
        selective_scan(**inputs, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))


def test_packed_wants_a_state_a_sequence() -> None:
    inputs = draw_inputs(ScanCase(13, D=6, N=4, on=("init",), batch=1))
    message = "initial_state has shape (1, 6, 4), expected (S, D, N) = (2, 6, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        selective_scan(**inputs, cu_seqlens=torch.tensor([0, 5, 13], dtype=torch.int32))
