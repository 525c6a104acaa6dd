"""Autograd around the compiled convolutions.

A backend module (`cpu`, `triton`) offers two functions, without autograd:

    forward(x, weight, bias, activation, initial_state[, cu_seqlens]) -> y (B, L, D)
    backward(dy, x, weight, bias, activation, initial_state[, cu_seqlens][, dx])
        -> dx, dweight, dbias, dinitial_state; None where the input was None

`cu_seqlens` is given only where sequences are packed, `dx` where the caller has a place (B, L, D) for it, with unit
stride along D.
The pre-activation is recomputed in the backward pass, so only inputs are kept. `library.py` makes torch.library
operators of the same functions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_seq.kernels._dispatch import implementation


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> Tensor:
    """Convolve on a compiled backend, y (B, L, D); without the final state, which is a slice of the input."""
    y: Tensor = implementation("causal_conv1d", backend).forward(
        x, weight, bias, activation, initial_state, **_packed(cu_seqlens)
    )
    return y


def run_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
    dx: Tensor | None = None,
) -> list[Tensor]:
    """Return the gradients of the tensors that `run` was given, in order, none for those that were None.

    That of x is written to `dx` (B, L, D) if given, which may be a part of wider rows.
    """
    gradients = implementation("causal_conv1d", backend).backward(
        dy, x, weight, bias, activation, initial_state, **_packed(cu_seqlens), **({} if dx is None else {"dx": dx})
    )
    return [g for g in gradients if g is not None]


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the arguments of `run`."""
    x, weight, bias, activation, initial_state, cu_seqlens, backend = inputs
    ctx.save_for_backward(x, weight, bias, initial_state, cu_seqlens)
    ctx.activation = activation
    ctx.backend = backend


def differentiate(through: Callable[..., list[Tensor]], ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient of every argument of `run`, computed by `through`, which takes what `run_backward` takes."""
    x, weight, bias, initial_state, cu_seqlens = ctx.saved_tensors
    found = iter(through(dy, x, weight, bias, ctx.activation, initial_state, cu_seqlens, ctx.backend))
    dx, dweight, dbias, dinitial_state = (None if t is None else next(found) for t in (x, weight, bias, initial_state))
    return dx, dweight, dbias, None, dinitial_state, None, None


class CausalConv1d(torch.autograd.Function):
    """`run` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Return what `run` does. A `setup_context` of its own would make torch inspect signatures at every call."""
        output = run(*inputs)
        setup_context(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument of `run`."""
        return differentiate(run_backward, ctx, dy)


def _packed(cu_seqlens: Tensor | None) -> dict[str, Tensor]:
    return {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
