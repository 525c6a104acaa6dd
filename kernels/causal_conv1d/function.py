"""Autograd around the compiled convolutions.

A backend module (`cpu`, `triton`) offers two functions, without autograd:

    forward(x, weight, bias, activation, initial_state[, cu_seqlens]) -> y (B, L, D)
    backward(dy, x, weight, bias, activation, initial_state[, cu_seqlens])
        -> dx, dweight, dbias, dinitial_state; None where the input was None

`cu_seqlens` is given only where sequences are packed.
The pre-activation is recomputed in the backward pass, so only inputs are kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_seq.kernels._dispatch import implementation


class CausalConv1d(torch.autograd.Function):
    """`causal_conv1d` on a compiled backend, without the final state (that is a slice of the input)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        initial_state: Tensor | None,
        backend: str,
        cu_seqlens: Tensor | None,
    ) -> Tensor:
        """Return y (B, L, D)."""
        ctx.save_for_backward(x, weight, bias, initial_state)
        ctx.activation = activation
        ctx.backend = backend
        ctx.packed = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        y: Tensor = implementation("causal_conv1d", backend).forward(
            x, weight, bias, activation, initial_state, **ctx.packed
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument of `forward`, in order."""
        x, weight, bias, initial_state = ctx.saved_tensors
        dx, dweight, dbias, dinitial_state = implementation("causal_conv1d", ctx.backend).backward(
            dy, x, weight, bias, ctx.activation, initial_state, **ctx.packed
        )
        return dx, dweight, dbias, None, dinitial_state, None, None
