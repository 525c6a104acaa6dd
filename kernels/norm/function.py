"""Autograd around the normalisations, and what a backend offers for it.

A backend module (`reference`, `triton`) has two functions, without autograd:

    forward(x, residual, weight, bias, eps, centred, dtype) -> y (..., features) in dtype, total
           total is residual + x in residual's type, or x itself without a residual; it is all that is kept
    backward(dy, dtotal, total, weight, bias, eps, centred, again) -> dx in total's type, dweight, dbias, y
           dtotal is the gradient that reaches total from elsewhere, or None, and is part of dx; y is made again, in
           dy's type, if asked for, else None

`centred` is LayerNorm; without, it is RMSNorm.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_seq.kernels._dispatch import implementation


def run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Normalise rows on a backend: y and what was normalised."""
    y, total = implementation("norm", backend).forward(x, residual, weight, bias, eps, centred, dtype)
    return y, total


def run_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    backend: str,
    again: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight and bias, and y where it is asked for once more."""
    dx, dweight, dbias, y = implementation("norm", backend).backward(
        dy, dtotal, total, weight, bias, eps, centred, again
    )
    return dx, dweight, dbias, y


class Norm(torch.autograd.Function):
    """`run` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centred: bool,
        dtype: torch.dtype,
        backend: str,
    ) -> tuple[Tensor, Tensor | None]:
        """Return y, and the sum where there is a residual."""
        y, total = run(x, residual, weight, bias, eps, centred, dtype, backend)
        ctx.save_for_backward(total, weight, bias)
        ctx.how = (eps, centred, backend)
        ctx.types = (x.dtype, y.dtype, None if residual is None else residual.dtype)
        ctx.set_materialize_grads(False)
        return y, None if residual is None else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument of `run`."""
        total, weight, bias = ctx.saved_tensors
        x_type, y_type, residual_type = ctx.types
        dweight = dbias = None
        if dy is None:
            dx = dtotal
        else:
            dx, dweight, dbias, _ = run_backward(dy.to(y_type), dtotal, total, weight, bias, *ctx.how)
        to_x = None if dx is None else dx.to(x_type)
        return to_x, dx if residual_type is not None else None, dweight, dbias, None, None, None, None
