"""RMSNorm and LayerNorm on the GPU, in Triton: what launches the kernels of `_triton_kernels.py`.

Forward reads a row once, in its own type, holds it in registers and writes the result. Backward makes mean and variance
again from the row, which it must read anyway, so that nothing but the row is kept; it adds the gradient that the
residual stream brings, and can write the normalised row once more for a matrix product that needs it.

A program of the backward pass walks over tiles of rows with the gradients of weight and bias in registers, and leaves
them as a partial sum: added up in a fixed order, the same bits at every run.
"""

import torch
from torch import Tensor

from mamba_seq.kernels._dispatch import multiprocessor_count
from mamba_seq.kernels._launch import Launcher, cdiv
from mamba_seq.kernels.norm import _triton_kernels

TILE = 2048  # elements: 16 a lane of four warps, two or four loads of 16 bytes
WARPS = 12  # of the backward pass on a multiprocessor: all at once, by the registers that its kernel takes

NORM = Launcher(_triton_kernels.norm)
NORM_GRADIENTS = Launcher(_triton_kernels.norm_gradients)


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Do what `function.py` says."""
    x = x.contiguous()
    total = x if residual is None else residual.new_empty(residual.shape)
    y = x.new_empty(x.shape, dtype=dtype)
    features = x.shape[-1]
    rows = x.numel() // features
    block, tile, warps = shape_of_tile(features)
    with torch.cuda.device_of(x):
        NORM(
            (cdiv(rows, tile),),
            y, total, x, None if residual is None else residual.contiguous(), weight, bias, rows,
            FEATURES=features, EPS=eps, CENTRED=centred, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
            BLOCK_R=tile, BLOCK_F=block, num_warps=warps,
        )  # fmt: skip
    return y, total


def backward(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    again: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Do what `function.py` says."""
    dy, total = dy.contiguous(), total.contiguous()
    dtotal = None if dtotal is None else dtotal.contiguous()
    dx = total.new_empty(total.shape)
    y = dy.new_empty(dy.shape) if again else None
    features = total.shape[-1]
    rows = total.numel() // features
    block, tile, warps = shape_of_tile(features)
    programs = min(cdiv(rows, tile), multiprocessor_count(total.device) * max(1, WARPS // warps))
    sums = 1 if bias is None else 2
    partials = total.new_empty((programs, sums, features), dtype=torch.float32)
    with torch.cuda.device_of(total):
        NORM_GRADIENTS(
            (programs,),
            dx, y, partials, dy, dtotal, total, weight, bias, rows,
            FEATURES=features, EPS=eps, CENTRED=centred, HAS_BIAS=bias is not None, HAS_DTOTAL=dtotal is not None,
            AGAIN=again, SUMS=sums, BLOCK_R=tile, BLOCK_F=block, num_warps=warps,
        )  # fmt: skip
    found = partials.sum(0)
    dweight = found[0].to(weight.dtype)
    return dx, dweight, None if bias is None else found[1].to(bias.dtype), y


def shape_of_tile(features: int) -> tuple[int, int, int]:
    """Return the width of a row's block, the rows of a tile, and the warps for one."""
    block = 1 << (features - 1).bit_length()
    return block, max(1, TILE // block), max(4, block // 512)
