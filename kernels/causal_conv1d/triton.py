"""The causal convolution on the GPU, in Triton: forward, backward and the single step.

A program owns BLOCK_D channels and walks through a stretch of time with the last K - 1 rows in registers, so that
every row is read once. Backward walks the same way: a step's gradient before the activation joins a second window of
K rows, and the gradient of the input K - 1 steps earlier is then complete. The weights' gradients are partial sums
per program, added up afterwards in a fixed order: no atomics, the same bits at every run. Packed sequences are cut into
stretches each from its own start (see `kernels/_packing.py`).
"""

import torch
from torch import Tensor

from mamba_seq.kernels._dispatch import triton_interpreted
from mamba_seq.kernels._launch import Launcher, cdiv, contiguous, rows
from mamba_seq.kernels._packing import Packing
from mamba_seq.kernels.causal_conv1d import _triton_kernels

BLOCK_D = 128  # channels of a program: one warp, four a lane
GROUP = 8  # rows whose loads go out together

CONVOLUTION = Launcher(_triton_kernels.convolution)
GRADIENTS = Launcher(_triton_kernels.convolution_gradients)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return y (B, L, D); arguments as `function.py` says."""
    x = rows(x)
    B, L, D = x.shape
    y = x.new_empty((B, L, D))
    stretch = steps_a_program(x)
    parts, pieces = cut(x, stretch, cu_seqlens)
    with torch.cuda.device_of(x):
        CONVOLUTION(
            (cdiv(D, BLOCK_D) * parts,),
            y, x, weight.contiguous(), contiguous(bias), contiguous(initial_state), pieces, contiguous(cu_seqlens),
            x.stride(0), x.stride(1), L, D, stretch,
            **switches(weight, bias, activation, initial_state, cu_seqlens), num_warps=1,
        )  # fmt: skip
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight, bias and initial_state; None for an input that was None.

    That of x is written to `dx` (B, L, D) if given, whose rows may lie apart.
    """
    x, dy = rows(x), rows(dy)
    B, L, D = x.shape
    K = weight.shape[1]
    stretch = steps_a_program(x)
    parts, pieces = cut(x, stretch, cu_seqlens)
    dx = x.new_empty((B, L, D)) if dx is None else dx
    assert dx.stride(2) == 1, "the kernel writes channels side by side"
    partials = x.new_empty((parts, D * (K if bias is None else K + 1)), dtype=torch.float32)
    dstate = None if initial_state is None else x.new_empty(initial_state.shape)
    with torch.cuda.device_of(x):
        GRADIENTS(
            (cdiv(D, BLOCK_D) * parts,),
            dx, partials, dstate, dy, x, weight.contiguous(), contiguous(bias), contiguous(initial_state),
            pieces, contiguous(cu_seqlens), *dx.stride()[:2], *dy.stride()[:2], *x.stride()[:2], L, D, stretch,
            **switches(weight, bias, activation, initial_state, cu_seqlens), num_warps=1,
        )  # fmt: skip
    sums = partials.sum(0).to(weight.dtype)
    return dx, sums[: D * K].view(D, K), None if bias is None else sums[D * K :], dstate


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Convolve one step x (B, D), shifting it into `state` (B, D, K-1) in place; return y (B, D)."""
    B, D = x.shape
    y = x.new_empty((B, D))
    with torch.cuda.device_of(x):
        _triton_kernels.convolution_step[(cdiv(D, BLOCK_D) * B,)](
            y, x, state, weight, contiguous(bias), *x.stride(), *state.stride(), *weight.stride(), D,
            K=weight.shape[1], HAS_BIAS=bias is not None, SILU=activation == "silu", BLOCK_D=BLOCK_D, num_warps=1,
        )  # fmt: skip
    return y


def steps_a_program(x: Tensor) -> int:
    """Return the length of a program's stretch: long enough for few partial sums, short enough for many programs."""
    B, L, D = x.shape
    wanted = B * L * cdiv(D, BLOCK_D) // 4096
    shortest, longest = (16, 16) if triton_interpreted() else (32, 256)
    return min(max(2 ** (max(wanted, 1).bit_length() - 1), shortest), longest)


def cut(x: Tensor, stretch: int, cu_seqlens: Tensor | None) -> tuple[int, Tensor | None]:
    """Return how many stretches there are for every block of channels, and of packed sequences the table of them."""
    B, L, _ = x.shape
    if cu_seqlens is None:
        return B * cdiv(L, stretch), None
    pieces = Packing.cut(cu_seqlens, L, stretch).pieces
    return len(pieces), pieces


def switches(
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> dict[str, int | bool]:
    """Return the compile-time arguments of both directions."""
    return {
        "K": weight.shape[1],
        "PACKED": cu_seqlens is not None,
        "HAS_BIAS": bias is not None,
        "HAS_STATE": initial_state is not None,
        "SILU": activation == "silu",
        "BLOCK_D": BLOCK_D,
        "GROUP": GROUP,
    }
