"""Backbones under every `recompute`, in every form and arithmetic: what is run, and what it is compared with."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq import Backbone, MambaState, backbone
from tests.mamba_seq.layouts import boundaries, weighted_sum

LENGTH = 2 * 23 + 17
SEGMENT = 23
OPTIONS = ("nothing", "inner", "segments")
BF16 = torch.bfloat16
ARITHMETIC = {
    "float32": (torch.float32, None),
    "autocast": (torch.float32, BF16),
    "bfloat16": (BF16, None),
    "float64": (torch.float64, None),
}
"""Type of the weights, and of autocast."""


def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a segment be of 23 positions, so that three of them make a sequence, the last one shorter."""
    monkeypatch.setattr(backbone, "segment_length", lambda residual, config: SEGMENT)


def forms(model: Backbone, device: str = "cpu") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the ways to call a backbone with (1, LENGTH, d_model), states with a gradient."""
    mask = torch.arange(LENGTH, device=device)[None] < LENGTH - 5
    yield "plain", {}
    yield "padded", {"mask": mask}
    yield "padded left, state wanted", {"mask": mask.flip(1), "return_state": True}
    yield "state", {"state": some_state(model, 1), "return_state": True}
    yield "padded, state", {"mask": mask, "state": some_state(model, 1), "return_state": True}
    cu_seqlens = boundaries([2, LENGTH - 3, 1]).to(device)
    yield "packed", {"cu_seqlens": cu_seqlens}
    yield "packed, state", {"cu_seqlens": cu_seqlens, "state": some_state(model, 3), "return_state": True}


def some_state(model: Backbone, batch: int) -> list[MambaState]:
    """Draw a state of `batch` sequences, the same in every type, that wants a gradient."""
    generator = torch.Generator().manual_seed(3)

    def draw(like: Tensor) -> Tensor:
        drawn = torch.randn(
            like.shape, generator=generator, dtype=torch.complex64 if like.is_complex() else torch.float32
        )
        return drawn.bfloat16().to(like) if not like.is_complex() else drawn.to(like)

    drawn_states = [MambaState(draw(s.conv), draw(s.ssm), s.discrete) for s in model.allocate_state(batch)]
    for state in drawn_states:
        state.conv.requires_grad_()
        state.ssm.requires_grad_()
    return drawn_states


def run(
    model: Backbone, form: dict[str, Any], autocast: torch.dtype | None, device: str = "cpu", backward: bool = True
) -> dict[str, Tensor]:
    """Return output, states and every gradient, by name, as float64."""
    torch.manual_seed(2)
    weights = model.norm.weight.dtype
    hidden = torch.randn(1, LENGTH, model.config.d_model).to(device, weights).requires_grad_()
    model.zero_grad()
    within: AbstractContextManager[Any] = torch.autocast(device, autocast) if autocast else nullcontext()
    with within:
        result = model(hidden, **form)
    out, states = result if form.get("return_state") else (result, [])
    if "mask" in form:
        out = out * form["mask"][..., None]
    found = {"output": out}
    for i, s in enumerate(states):
        found |= {f"conv state {i}": s.conv, f"ssm state {i}": s.ssm}
    if backward:
        weighted_sum(
            [t.to(torch.complex128 if t.is_complex() else torch.float64).cpu() for t in found.values()]
        ).backward()
        found |= {"hidden": hidden.grad}
        found |= {name: p.grad for name, p in model.named_parameters()}
        for i, s in enumerate(form.get("state", [])):
            found |= {f"conv state before {i}": s.conv.grad, f"ssm state before {i}": s.ssm.grad}
    assert all(t is not None for t in found.values()), [n for n, t in found.items() if t is None]
    return {name: as_float64(t) for name, t in found.items()}


def as_float64(x: Tensor) -> Tensor:
    return (torch.view_as_real(x.detach().resolve_conj()) if x.is_complex() else x.detach()).double().cpu()


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest error relative to the largest element of its tensor, and that tensor's name."""
    assert found.keys() == expected.keys()
    return max((error(found[name], want), name) for name, want in expected.items())


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
