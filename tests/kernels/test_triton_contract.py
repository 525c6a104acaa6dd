"""The rest of the contract on the Triton kernels: packed sequences, groups, constant B and C, complex A.

Triton's interpreter runs small cases: it cuts the length into chunks of 32 steps and keeps states every 16. On a GPU
the cases of the CPU run as well; every combination of a type with a form of A, B and C is compiled anew there, so the
16-bit types have only some of them.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels._dispatch import implementation
from mamba_seq.kernels.causal_conv1d import causal_conv1d
from mamba_seq.kernels.selective_scan import selective_scan
from tests.kernels.compare import DEVICE, Tolerance, assert_close
from tests.kernels.test_cpu_contract import (
    BOUNDS,
    boundaries,
    check_fast_turns,
    check_packed_convolution,
    check_scan,
    check_step,
    draw,
    with_gradients,
)

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # numpy's, interpreted

# a sequence of one step, one of two chunks, one of one step again; no chunk but room for two; one chunk each
MIXED, EMPTY_PIECE, SHORT = [0, 1, 34, 35, 39], [0, 20, 40], [0, 1, 4, 11]
KINDS = ["plain", "groups", "every-channel-a-group", "B", "C", "BC", "groups-B"]

INTERPRETED: dict[str, dict[str, Any]] = {
    "packed": {"cut": MIXED},
    "packed-bf16": {"cut": SHORT, "dtype": "bf16"},
    "packed-fp16-complex-C": {"cut": SHORT, "dtype": "fp16", "constant": "C", "complex_A": True},
    "packed-with-a-piece-of-no-steps": {"cut": EMPTY_PIECE, "D": 1},
    "packed-one-base": {"cut": [0, 1]},
    "packed-groups": {"cut": SHORT, "D": 4, "groups": 2},
    "packed-complex-B": {"cut": MIXED, "D": 2, "N": 2, "constant": "B", "complex_A": True},
    "groups": {"L": 34, "D": 4, "groups": 2},
    "groups-of-two-blocks": {"L": 2, "D": 70, "groups": 2},
    "every-channel-a-group": {"L": 3, "D": 3, "groups": 3, "dtype": "bf16"},
    "B": {"L": 5, "constant": "B"},
    "C": {"L": 5, "constant": "C"},
    "BC": {"L": 34, "constant": "BC"},
    "BC-wide": {"L": 3, "D": 35, "N": 5, "constant": "BC", "dtype": "fp16"},
    "groups-B": {"L": 5, "D": 4, "groups": 2, "constant": "B"},
    "groups-C": {"L": 5, "D": 4, "groups": 2, "constant": "C"},
    "complex": {"L": 37, "complex_A": True},
    "complex-bf16": {"L": 5, "D": 35, "N": 1, "complex_A": True, "dtype": "bf16"},
    "complex-groups": {"L": 5, "D": 4, "groups": 2, "complex_A": True},
    "complex-B": {"L": 5, "constant": "B", "complex_A": True},
    "complex-C": {"L": 5, "constant": "C", "complex_A": True},
    "complex-BC": {"L": 5, "constant": "BC", "complex_A": True},
}


def check(case: dict[str, Any]) -> None:
    small = {"D": 3, "N": 3, "batch": 1} | case
    cut = small.pop("cut", None)
    if cut is not None:
        small |= {"L": cut[-1], "sequences": len(cut) - 1}
    check_scan(draw(**small), case.get("dtype", "fp32"), "triton", cut)


@pytest.mark.parametrize("name", INTERPRETED)
def test_scan(name: str) -> None:
    check(INTERPRETED[name])


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
def test_boundaries_hold_whatever_A_is(complex_A: bool) -> None:
    """Neither a state that stays as it is nor one that grows reaches the next sequence."""
    cut = [0, 1, 34, 35]
    arguments = draw(35, 2, 2, batch=1, sequences=3, complex_A=complex_A)
    arguments["A"] = torch.tensor([[0.0, 0.2], [-1e30, 0.1]]).to(arguments["A"].dtype)
    check_scan(arguments, "fp32", "triton", cut)


@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps(kind: str, complex_A: bool) -> None:
    check_step(kind, "fp32", complex_A, "triton")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("kind", "complex_A"), [("groups", False), ("B", False), ("plain", True)])
def test_steps_in_16_bits(kind: str, complex_A: bool, dtype: str) -> None:
    check_step(kind, dtype, complex_A, "triton", D=69, N=20)


def test_fast_turns() -> None:
    check_fast_turns("triton", 7)


@pytest.mark.parametrize(
    ("dtype", "K", "cut"),
    [
        ("fp32", 2, MIXED),
        ("fp32", 7, MIXED),
        ("fp32", 4, [0, 1]),
        ("fp32", 4, [0, 17, 34, 51]),
        ("fp16", 4, SHORT),
        ("bf16", 3, SHORT),
    ],
    ids=str,
)
def test_packed_convolution(dtype: str, K: int, cut: list[int]) -> None:
    check_packed_convolution(dtype, K, cut, "triton")


def test_no_initial_state_and_nothing_else() -> None:
    """Packed without states, switches or anything asked of the final state."""
    there = {name: t.to(DEVICE["triton"]) for name, t in draw(11, 3, batch=1, groups=3, complex_A=True).items()}
    bare = {name: there[name] for name in ("u", "delta", "A", "B", "C")}
    cut = boundaries(SHORT).to(DEVICE["triton"])
    results = []
    for backend in ("triton", "reference"):
        leaves = {name: t.clone().requires_grad_() for name, t in bare.items()}
        y = selective_scan(**leaves, cu_seqlens=cut, backend=backend)
        y.square().sum().backward()
        results.append({"y": y} | {f"d{name}": t.grad for name, t in leaves.items()})
    assert_close(results[0], results[1], Tolerance(1e-4, 1e-4, 1e-5))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_conjugate_and_strided_complex_inputs(backend: str) -> None:
    """A conjugate in torch is a view that only says so: what lies in memory is not what it means."""
    whole = {name: t.to(DEVICE[backend]) for name, t in draw(5, 3, batch=1, constant="B", complex_A=True).items()}
    whole["A"][0, 0] = -0.3  # a real decay among turning ones
    mine = {name: torch.stack([t, t], dim=-1)[..., 0] for name, t in whole.items()}
    mine |= {name: mine[name].conj().resolve_conj().conj() for name in ("A", "B", "C", "initial_state")}
    upstream = [torch.randn_like(whole["u"]), torch.randn_like(whole["initial_state"])]
    got = with_gradients(selective_scan, mine, [upstream[0], upstream[1].conj().resolve_conj().conj()], backend=backend)
    assert_close(got, with_gradients(selective_scan, whole, upstream, backend=backend), Tolerance(1e-6, 1e-6, 1e-6))


GPU: dict[str, dict[str, Any]] = {
    **{
        f"packed-{b}-{dtype}": {"cut": BOUNDS[b], "D": 18, "dtype": dtype} for b in BOUNDS for dtype in ("fp32", "bf16")
    },
    **{f"packed-{b}-complex": {"cut": BOUNDS[b], "D": 18, "complex_A": True} for b in BOUNDS},
    **{f"packed-{c}": {"cut": BOUNDS["odd"], "D": 36, "groups": 2, "constant": c} for c in ("", "B", "C", "BC")},
    **{
        f"groups-{D}-{groups}-{kind}": {"L": 1192, "D": D, "groups": groups, "complex_A": kind == "complex", "batch": 2}
        for D, groups in ((18, 2), (18, 18), (66, 3), (5, 1))
        for kind in ("real", "complex")
    },
    **{
        f"constant-{c}-{groups}-{kind}": {"L": 1192, "D": 18, "groups": groups, "constant": c, "complex_A": kind != ""}
        for c in ("B", "C", "BC")
        for groups in (0, 3)
        for kind in ("", "complex")
    },
    **{f"complex-{N}": {"L": 300, "D": 40, "N": N, "complex_A": True} for N in (16, 256)},
    **{f"N-{N}-{c}": {"L": 300, "D": 40, "N": N, "constant": c} for N in (16, 100) for c in ("B", "BC")},
    "complex-long": {"L": 16385, "D": 5, "complex_A": True},
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU)
def test_scan_gpu(name: str) -> None:
    check(GPU[name])


@pytest.mark.gpu
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("dtype", "K"), [("fp32", 2), ("fp32", 7), ("bf16", 4)])
def test_packed_convolution_gpu(dtype: str, K: int, bounds: str) -> None:
    check_packed_convolution(dtype, K, BOUNDS[bounds], "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
def test_twice_the_same_to_the_bit_gpu(complex_A: bool) -> None:
    cut = BOUNDS["thousand"]
    given = draw(cut[-1], 66, batch=1, sequences=len(cut) - 1, groups=3, constant="B", complex_A=complex_A)
    given = {name: t.cuda() for name, t in given.items()}
    upstream = [torch.randn_like(given["u"]), torch.randn_like(given["initial_state"])]
    runs = [
        with_gradients(selective_scan, given, upstream, backend="triton", cu_seqlens=boundaries(cut).cuda())
        for _ in range(3)
    ]
    assert all(torch.equal(runs[0][name], again[name]) for again in runs[1:] for name in again)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("begun", [False, True], ids=["from-the-start", "from-a-state"])
@pytest.mark.parametrize("bounds", ["ones", "odd"])  # one chunk, and several
def test_packed_sequences_wait_for_nothing_gpu(bounds: str, begun: bool) -> None:
    """Behind the check of the boundaries nobody looks at them from the host, forward or backward."""
    cut = BOUNDS[bounds]
    given = {name: t.cuda() for name, t in draw(cut[-1], batch=1, sequences=len(cut) - 1).items()}
    packed = boundaries(cut).cuda()
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    arguments: list[Any] = [*(given[name] for name in names), True, given["initial_state"] if begun else None]
    scan, conv = implementation("selective_scan", "triton"), implementation("causal_conv1d", "triton")
    x, weight = given["u"], torch.randn(given["u"].shape[2], 4, device="cuda")

    def everything() -> list[Tensor]:
        y, state, saved = scan.forward(*arguments, keep_for_backward=True, cu_seqlens=packed)
        gradients = scan.backward(y, state if begun else None, saved, *arguments, cu_seqlens=packed)[: 8 + begun]
        convolved = conv.forward(x, weight, None, "silu", None, cu_seqlens=packed)
        return [*gradients, *conv.backward(convolved, x, weight, None, "silu", None, cu_seqlens=packed)[:2]]

    want = everything()  # also compiles
    try:
        torch.cuda.set_sync_debug_mode("error")
        got = everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.gpu
def test_final_inputs_of_packed_sequences_gpu() -> None:
    cut = BOUNDS["odd"]
    x, state = torch.randn(1, cut[-1], 18, device="cuda"), torch.randn(len(cut) - 1, 18, 3, device="cuda")
    packed, weight = boundaries(cut).cuda(), torch.randn(18, 4, device="cuda")
    found = [
        causal_conv1d(x, weight, None, None, state, packed, True, backend)[1] for backend in ("triton", "reference")
    ]
    assert torch.equal(found[0], found[1])
