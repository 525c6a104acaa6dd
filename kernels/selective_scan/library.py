"""The scan and its step as operators of torch.library: what torch.compile and torch.export see.

    mamba_seq::selective_scan            y, final state, what is kept for the backward pass
    mamba_seq::selective_scan_backward   the gradients of the tensors given, in order
    mamba_seq::selective_state_update    y; changes the state in place

Each chooses its backend when it runs, like a plain call. On the reference the forward pass keeps nothing, and the
backward pass is autograd through a second one, so its Python loop never becomes part of a graph.
"""

from typing import Any

import torch
from torch import Tensor

from mamba_seq.kernels._checks import check_boundaries
from mamba_seq.kernels._dispatch import choose, implementation
from mamba_seq.kernels._library import as_leaves, define, differentiable, gradients_of, on_its_own
from mamba_seq.kernels.selective_scan.function import (
    differentiate,
    run,
    run_backward,
    setup_context,
    without_one_group,
)
from mamba_seq.kernels.selective_scan.reference import selective_scan_reference, selective_state_update_reference

REFERENCE = "reference"


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str | None,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    if cu_seqlens is not None:
        check_boundaries(cu_seqlens, u.shape[1])
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens)
    chosen = _chosen(backend, u)
    if chosen == REFERENCE:
        y, final_state = selective_scan_reference(*arguments)
        return y.contiguous(), final_state.contiguous(), []
    shapes = _kept_shapes(chosen, u, A, B, C, cu_seqlens) if keep else []
    y, final_state, kept = run(*arguments, chosen, keep=bool(shapes))
    assert [tuple(t.shape) for t in kept] == [tuple(shape) for shape in shapes], "kept_shapes told other shapes"
    return on_its_own(y), on_its_own(final_state), [on_its_own(t) for t in kept]


def _scan_fake(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    cu_seqlens, backend, keep = others[-3:]
    chosen = _chosen(backend, u)
    shapes = _kept_shapes(chosen, u, A, B, C, cu_seqlens) if keep and chosen != REFERENCE else []
    sequences = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    kept = [u.new_empty(shape, dtype=torch.float32) for shape in shapes]
    return u.new_empty(u.shape), A.new_empty((sequences, *A.shape)), kept


def _scan_backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    kept: list[Tensor],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str | None,
) -> list[Tensor]:
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    chosen = _chosen(backend, u)
    if chosen == REFERENCE:
        with torch.enable_grad():
            leaves = as_leaves(*tensors, initial_state)
            again: list[Any] = [*leaves[:-1], delta_softplus, leaves[-1], cu_seqlens]
            outputs = selective_scan_reference(*again)
        return gradients_of(outputs, (dy, dfinal_state), leaves)
    arguments = (*tensors, delta_softplus, initial_state, cu_seqlens, chosen)
    if not kept:
        kept = run(*arguments, keep=True)[2]
    return [on_its_own(g) for g in run_backward(dy, dfinal_state, kept, *arguments)]


def _scan_backward_fake(dy: Tensor, dfinal_state: Tensor | None, kept: list[Tensor], *inputs: Any) -> list[Tensor]:
    *tensors, _, initial_state, _, _ = inputs
    return [t.new_empty(t.shape) for t in (*tensors, initial_state) if t is not None]


def _chosen(backend: str | None, u: Tensor) -> str:
    return REFERENCE if u.shape[1] == 0 else choose("selective_scan", backend, u)


def _kept_shapes(
    chosen: str, u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None
) -> list[tuple[int, ...]]:
    """Return the shapes of what a compiled backend keeps; none where it does not tell."""
    tell = getattr(implementation("selective_scan", chosen), "kept_shapes", None)
    return [] if tell is None else tell(u, A, without_one_group(B), without_one_group(C), cu_seqlens)


def update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str | None,
) -> Tensor:
    """Choose who takes a step, and take it: y (B, D) in u's type, `state` changed in place."""
    chosen = choose("selective_state_update", backend, u)
    if chosen == REFERENCE:
        step = selective_state_update_reference
    else:
        step = implementation("selective_scan", chosen).selective_state_update
    return step(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _update_fake(state: Tensor, u: Tensor, *others: Any) -> Tensor:
    return u.new_empty(u.shape)


SCAN = define("selective_scan", _scan, _scan_fake)
SCAN_BACKWARD = define("selective_scan_backward", _scan_backward, _scan_backward_fake)
UPDATE = define("selective_state_update", update, _update_fake, mutates={"state"})


def _formula(ctx: Any, dy: Tensor | None, dfinal_state: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    return differentiate(SCAN_BACKWARD, ctx, dy, dfinal_state)


differentiable("selective_scan", setup_context, _formula)
