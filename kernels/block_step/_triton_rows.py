"""A linear map of the rows of a matrix, in tiles of 16 rows: a row's result does not depend on how many there are."""
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels.block_step._triton_tiles import product


@triton.jit
def map_rows(
    out,
    x,
    weight,
    bias,
    batch,
    K: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, K, CHUNK):
        k = start + tl.arange(0, CHUNK)
        a = tl.load(x + row * K + k[None, :], mask=(row < batch) & (k < K)[None, :], other=0.0)
        w = tl.load(weight + o[None, :] * K + k[:, None], mask=(k < K)[:, None] & (o < OUTPUTS)[None, :], other=0.0)
        total = product(a, w, total, W, PRECISION)
    total += tl.load(bias + o, mask=o < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    tl.store(out + row * OUTPUTS + o[None, :], total, mask=(row < batch) & (o < OUTPUTS)[None, :])
