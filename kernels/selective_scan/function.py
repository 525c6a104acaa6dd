"""Autograd around the compiled scans: what is kept from forward to backward, and which module computes each.

A backend module (`cpu`, `triton`) offers two functions, without autograd:

    forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, keep_for_backward[, cu_seqlens])
        -> y (B, L, D), final_state in A's type, saved: tuple of tensors that `backward` wants (chunk states)
           a single group of B and C comes as (B, L, N), and L is at least 1
    backward(dy, dfinal_state, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state
             [, cu_seqlens])
        -> du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state; None where the input was None

`cu_seqlens` is given only where sequences are packed.

Only inputs and the states at chunk starts are kept: everything else is recomputed in the backward pass (Mamba, section
3.3.2).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_seq.kernels._dispatch import implementation


class SelectiveScan(torch.autograd.Function):
    """`selective_scan` on a compiled backend."""

    @staticmethod
    def forward(
        ctx: Any,
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
        return_final_state: bool,
        backend: str,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return y (B, L, D) and the final state (B or S, D, N)."""
        module = implementation("selective_scan", backend)
        ctx.packed = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        keep = any(ctx.needs_input_grad)
        y, final_state, saved = module.forward(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, keep_for_backward=keep, **ctx.packed
        )
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, initial_state, *saved)
        ctx.delta_softplus = delta_softplus
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        if not return_final_state:
            ctx.mark_non_differentiable(final_state)
        return y, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal_state: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument of `forward`, in order."""
        u, delta, A, B, C, D, z, delta_bias, initial_state, *saved = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros_like(u)
        du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state = implementation(
            "selective_scan", ctx.backend
        ).backward(
            dy,
            dfinal_state,
            tuple(saved),
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            ctx.delta_softplus,
            initial_state,
            **ctx.packed,
        )
        return du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, None, dinitial_state, None, None, None
