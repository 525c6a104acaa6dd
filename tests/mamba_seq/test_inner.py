"""The inside of a block and the normalisation in front, on backends that do more than the CPU's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq import inner, normed
from mamba_seq.inner import Inside
from mamba_seq.kernels import _dispatch
from mamba_seq.kernels.selective_scan import function
from tests.kernels.compare import relative_error
from tests.mamba_seq.layouts import random_backbone, weighted_sum


def gradients(backbone: torch.nn.Module, hidden: Tensor) -> dict[str, Tensor]:
    backbone.zero_grad()
    hidden = hidden.detach().requires_grad_()
    out = backbone(hidden)
    weighted_sum([out]).backward()
    return {"out": out, "hidden": hidden.grad} | {n: p.grad for n, p in backbone.named_parameters()}  # type: ignore[dict-item]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the CPU's scan write where it is told, and note what it was told."""
    cpu: Any = _dispatch.implementation("selective_scan", "cpu")
    told: list[str] = []

    def forward(*arguments: Any, sparse: bool = False, **others: Any) -> Any:
        told.append("sparse" if sparse else "dense")
        return cpu.forward(*arguments, **others)

    def backward(
        dy: Tensor, dstate: Any, saved: Any, *arguments: Any, dz: Tensor | None = None, y: Tensor | None = None
    ) -> Any:
        found = list(cpu.backward(dy, dstate, saved, *arguments))
        if dz is not None:
            told.append("dz")
            found[6] = dz.copy_(found[6])
        if y is not None:
            told.append("y")
            y.copy_(cpu.forward(*arguments, keep_for_backward=False)[0])
        return tuple(found)

    def can_repeat(u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None, sparse: bool) -> bool:
        return sparse

    writing = SimpleNamespace(forward=forward, backward=backward, can_repeat=can_repeat, WRITES_INTO=True)
    monkeypatch.setattr(function, "implementation", lambda op, backend: writing)
    return told


@pytest.mark.parametrize(
    ("sparse_from", "checkpoints", "expected"),
    [(0, False, ["sparse", "dz", "y"]), (1 << 40, False, ["dense", "dz"]), (0, True, ["dense", "dense", "dz"])],
)
def test_a_backend_that_writes_into_places(
    written: list[str], monkeypatch: pytest.MonkeyPatch, sparse_from: int, checkpoints: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(inner, "SPARSE_FROM", sparse_from)
    backbone, hidden = random_backbone(n_layer=1), torch.randn(2, 63, 12)
    backbone.recompute = "nothing"
    want = gradients(backbone, hidden)
    written.clear()
    backbone.recompute, backbone.gradient_checkpointing = "inner", checkpoints
    got = gradients(backbone, hidden)
    assert written == expected
    for name, tensor in want.items():
        assert relative_error(got[name], tensor) <= 1e-5, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normalisations_in_triton(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its interpreter, in a backbone, under autocast with a residual stream in 16 bits or without."""
    backbone = random_backbone(norm=kind, residual_in_fp32=dtype == torch.float32)
    backbone.recompute = "inner"
    hidden = torch.randn(1, 21, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        want = gradients(backbone, hidden)
        used: list[str] = []
        monkeypatch.setattr(normed, "choose_norm", lambda x: used.append("triton") or used[-1])
        got = gradients(backbone, hidden)
    assert used == ["triton"] * len(backbone.layers)
    for name, tensor in want.items():
        assert relative_error(got[name], tensor) <= (1e-5 if dtype == torch.float32 else 0.05), name


def test_the_stream_goes_through_the_projection() -> None:
    """Its gradient is added inside, and there is none that autograd adds."""
    backbone = random_backbone(n_layer=2)
    backbone.recompute = "inner"
    residual = torch.randn(1, 9, 12, requires_grad=True)
    block = backbone.blocks[0]
    xz, passed = normed.normed_projection(residual, block.norm, block.mixer.in_proj)
    assert torch.equal(passed, residual)
    assert passed.grad_fn is xz.grad_fn or type(passed.grad_fn) is type(xz.grad_fn)
    one, other = torch.randn_like(xz), torch.randn_like(passed)
    both = torch.autograd.grad([xz, passed], residual, [one, other], retain_graph=True)[0]
    first = torch.autograd.grad(xz, residual, one, retain_graph=True)[0]
    assert relative_error(both, first + other) <= 1e-6
    assert torch.equal(torch.autograd.grad(passed, residual, other)[0], other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv": (1, 24, 2)}, "initial_state has shape"),
        ({"ssm": (1, 24, 3)}, "initial_state has shape"),
        ({"cu_seqlens": [0, 5, 3, 9]}, "cu_seqlens must increase"),
    ],
)
def test_what_comes_from_outside_is_checked(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = random_backbone(n_layer=1).blocks[0].mixer
    state = block.allocate_state(1)
    for name in ("conv", "ssm"):
        if name in change:
            state = state._replace(**{name: torch.zeros(change[name])})
    packed = torch.tensor(change["cu_seqlens"], dtype=torch.int32) if "cu_seqlens" in change else None
    used: list[int] = []
    apply = Inside.apply
    monkeypatch.setattr(Inside, "apply", lambda *a: used.append(1) or apply(*a))
    with pytest.raises(ValueError, match=message):
        block(torch.randn(1, 9, 12), state=None if packed is not None else state, cu_seqlens=packed, keep="little")
    assert used


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_eps_of_a_normalisation(eps: float | None) -> None:
    norm = torch.nn.RMSNorm(8, eps=eps)
    layer = torch.nn.Linear(8, 8, bias=False)
    torch.nn.init.eye_(layer.weight)
    x = 1e-3 * torch.randn(3, 8)
    assert relative_error(normed.normed_projection(x, norm, layer)[0], norm(x)) <= 1e-5


def test_float64_weights_on_a_float32_stream() -> None:
    backbone = random_backbone().double()
    hidden = torch.randn(1, 9, 12)
    want = gradients(backbone, hidden)
    backbone.recompute = "inner"
    got = gradients(backbone, hidden)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert relative_error(got[name], tensor) <= (1e-6 if name == "hidden" else 1e-12), name
