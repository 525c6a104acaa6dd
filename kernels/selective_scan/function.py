"""Autograd around the compiled scans: what is kept from forward to backward, and which module computes each.

A backend module (`cpu`, `triton`) offers functions without autograd:

    forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, keep_for_backward[, cu_seqlens])
        -> y (B, L, D), final_state in A's type, saved: tuple of float32 tensors that `backward` wants (chunk states)
           a single group of B and C comes as (B, L, N), and L is at least 1
    backward(dy, dfinal_state, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state
             [, cu_seqlens])
        -> du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state; None where the input was None
    kept_shapes(u, A, B, C, cu_seqlens) -> the shapes of `saved`, told from the arguments' shapes alone. A module may
           lack it: in a compiled program its backward pass then runs the forward pass again
    can_repeat(u, A, B, C, cu_seqlens, sparse) -> whether y is better made again in the backward pass than kept

A module with WRITES_INTO also takes `sparse` in `forward`, for as few kept states as can be, and in `backward` tensors
(B, L, D) to write to: `dz`, and, where `can_repeat`, `y` once more.

`cu_seqlens` is given only where sequences are packed.

Only inputs and the states at chunk starts are kept: everything else is recomputed in the backward pass (Mamba, section
3.3.2). `library.py` makes torch.library operators of the same functions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_seq.kernels._dispatch import implementation


def run(
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
    backend: str,
    keep: bool,
    sparse: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run a scan on a compiled backend: y, the final state, and what is kept for the backward pass."""
    y, final_state, kept = implementation("selective_scan", backend).forward(
        u,
        delta,
        A,
        without_one_group(B),
        without_one_group(C),
        D,
        z,
        delta_bias,
        delta_softplus,
        initial_state,
        keep_for_backward=keep,
        **_packed(cu_seqlens),
        **({"sparse": True} if sparse else {}),
    )
    return y, final_state, list(kept)


def run_backward(
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
    backend: str,
    dz: Tensor | None = None,
    y: Tensor | None = None,
) -> list[Tensor]:
    """Return the gradients of the tensors that `run` was given, in order, none for those that were None.

    `dz` and `y` are written to, where the backend `writes_into`.
    """
    du, ddelta, dA, dB, dC, *others = implementation("selective_scan", backend).backward(
        dy,
        dfinal_state,
        tuple(kept),
        u,
        delta,
        A,
        without_one_group(B),
        without_one_group(C),
        D,
        z,
        delta_bias,
        delta_softplus,
        initial_state,
        **_packed(cu_seqlens),
        **({} if dz is None and y is None else {"dz": dz, "y": y}),
    )
    return [du, ddelta, dA, dB.view(B.shape), dC.view(C.shape), *(g for g in others if g is not None)]


def can_repeat(
    u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None, backend: str, sparse: bool = False
) -> bool:
    """Tell whether y is better made again in the backward pass, from the states that `run` keeps, than kept."""
    tell = getattr(implementation("selective_scan", backend), "can_repeat", None)
    return tell is not None and bool(tell(u, A, without_one_group(B), without_one_group(C), cu_seqlens, sparse))


def writes_into(backend: str) -> bool:
    """Tell whether a backend takes `sparse`, and writes into tensors that are given to it."""
    return getattr(implementation("selective_scan", backend), "WRITES_INTO", False)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    """Keep the arguments of `run`, and what it kept."""
    *tensors, delta_softplus, initial_state, cu_seqlens, backend, _ = inputs
    kept = output[2]
    ctx.save_for_backward(*tensors, initial_state, cu_seqlens, *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.delta_softplus = delta_softplus
    ctx.backend = backend


def differentiate(
    through: Callable[..., list[Tensor]], ctx: Any, dy: Tensor | None, dfinal_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradient of every argument of `run`, computed by `through`, which takes what `run_backward` takes."""
    saved = ctx.saved_tensors  # read once: activation checkpointing allows no more
    *tensors, initial_state, cu_seqlens = saved[:10]
    kept = list(saved[10:])
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    found = iter(through(dy, dfinal_state, kept, *tensors, ctx.delta_softplus, initial_state, cu_seqlens, ctx.backend))
    gradients = [None if t is None else next(found) for t in (*tensors, initial_state)]
    return *gradients[:-1], None, gradients[-1], None, None, None


class SelectiveScan(torch.autograd.Function):
    """`run` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what `run` does. A `setup_context` of its own would make torch inspect signatures at every call."""
        output = run(*inputs)
        setup_context(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument of `run`."""
        return differentiate(run_backward, ctx, dy, dfinal_state)


def without_one_group(parameter: Tensor) -> Tensor:
    """Return a B or C of a single group as (B, L, N), others as they are."""
    return parameter[:, :, 0] if parameter.dim() == 4 and parameter.shape[2] == 1 else parameter


def _packed(cu_seqlens: Tensor | None) -> dict[str, Tensor]:
    return {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
