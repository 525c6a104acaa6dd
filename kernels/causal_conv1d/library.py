"""The convolution and its step as operators of torch.library: what torch.compile and torch.export see.

    mamba_seq::causal_conv1d            y
    mamba_seq::causal_conv1d_backward   the gradients of the tensors given, in order
    mamba_seq::causal_conv1d_update     y; changes the state in place

Each chooses its backend when it runs, like a plain call.
"""

from typing import Any

import torch
from torch import Tensor

from mamba_seq.kernels._checks import check_boundaries
from mamba_seq.kernels._dispatch import choose, implementation
from mamba_seq.kernels._library import as_leaves, define, differentiable, gradients_of, on_its_own
from mamba_seq.kernels.causal_conv1d.function import differentiate, run, run_backward, setup_context
from mamba_seq.kernels.causal_conv1d.reference import causal_conv1d_reference, causal_conv1d_update_reference

REFERENCE = "reference"


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str | None,
) -> Tensor:
    if cu_seqlens is not None:
        check_boundaries(cu_seqlens, x.shape[1])
    arguments = (x, weight, bias, activation, initial_state, cu_seqlens)
    chosen = _chosen(backend, x)
    y = causal_conv1d_reference(*arguments) if chosen == REFERENCE else run(*arguments, chosen)
    return on_its_own(y)


def _conv_fake(x: Tensor, *others: Any) -> Tensor:
    _chosen(others[-1], x)  # a backend that cannot run the call says so while compiling
    return x.new_empty(x.shape)


def _conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str | None,
) -> list[Tensor]:
    chosen = _chosen(backend, x)
    if chosen == REFERENCE:
        with torch.enable_grad():
            leaves = as_leaves(x, weight, bias, initial_state)
            again: list[Any] = [*leaves[:-1], activation, leaves[-1], cu_seqlens]
            y = causal_conv1d_reference(*again)
        return gradients_of([y], [dy], leaves)
    found = run_backward(dy, x, weight, bias, activation, initial_state, cu_seqlens, chosen)
    return [on_its_own(g) for g in found]


def _conv_backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, _: Any, initial_state: Tensor | None, *others: Any
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, weight, bias, initial_state) if t is not None]


def _chosen(backend: str | None, x: Tensor) -> str:
    return REFERENCE if x.shape[1] == 0 else choose("causal_conv1d", backend, x)


def update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str | None,
) -> Tensor:
    """Choose who takes a step, and take it: y (B, D) in x's type, `state` changed in place."""
    chosen = choose("causal_conv1d_update", backend, x)
    if chosen == REFERENCE:
        return causal_conv1d_update_reference(x, state, weight, bias, activation)
    y: Tensor = implementation("causal_conv1d", chosen).causal_conv1d_update(x, state, weight, bias, activation)
    return y


def _update_fake(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)


CONV = define("causal_conv1d", _conv, _conv_fake)
CONV_BACKWARD = define("causal_conv1d_backward", _conv_backward, _conv_backward_fake)
UPDATE = define("causal_conv1d_update", update, _update_fake, mutates={"state"})


def _formula(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return differentiate(CONV_BACKWARD, ctx, dy)


differentiable("causal_conv1d", setup_context, _formula)
