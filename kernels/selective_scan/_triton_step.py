"""One step of the recurrence for every batch item and channel: the kernel behind `selective_state_update`.

It is bound by memory (the state is read and written once), so a program holds a tile (BLOCK_D, N) as the state lies in
memory, N contiguous. Complex numbers are read as they lie, real and imaginary part next to each other, and become two
tiles (see `_triton_tiles.py`).
"""
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import LOG2E, device_function, sigmoid, sum_of_products
from mamba_seq.kernels.selective_scan._triton_tiles import add_multiple, decay, product, step_size


@triton.jit
def step(
    y,
    state,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    state_batch,
    state_d,
    state_n,
    u_batch,
    u_d,
    delta_batch,
    delta_d,
    A_d,
    A_n,
    B_batch,
    B_row,
    B_n,
    C_batch,
    C_row,
    C_n,
    z_batch,
    z_d,
    channels,
    B_channels,
    C_channels,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # B and C have a row for so many channels each, B_channels and C_channels; one for all of them unless BY_CHANNEL
    blocks = tl.cdiv(channels, BLOCK_D)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, N_PADDED)
    inside = d < channels
    tile = inside[:, None] & (n < N)[None, :]

    x = tl.load(u + batch * u_batch + d * u_d, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(delta + batch * delta_batch + d * delta_d, mask=inside, other=0.0).to(tl.float32)
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d, mask=inside, other=0.0)
    dt = step_size(raw + step_bias, SOFTPLUS, PARTS)
    a = load_parts(A + d[:, None] * A_d + n[None, :] * A_n, tile, PARTS)
    B += batch * B_batch + n[None, :] * B_n
    C += batch * C_batch + n[None, :] * C_n
    row = (n < N)[None, :]
    if BY_CHANNEL:
        B += (d // B_channels)[:, None] * B_row
        C += (d // C_channels)[:, None] * C_row
        row = tile
    b = load_parts(B, row, PARTS)
    c = load_parts(C, row, PARTS)

    where = state + batch * state_batch + d[:, None] * state_d + n[None, :] * state_n
    h = load_parts(where, tile, PARTS)
    if PARTS == 1:
        h = product(decay(dt[:, None], (a[0] * LOG2E,), PARTS), h, PARTS)
    else:
        h = product(decay(dt[:, None], (a[0] * LOG2E, a[1]), PARTS), h, PARTS)
    h = add_multiple(h, (dt * x)[:, None], b, PARTS)
    for p in tl.static_range(PARTS):
        tl.store(where + p, h[p], mask=tile)
    if PARTS == 1:
        value = sum_of_products(h[0], c[0], axis=1)
    else:
        value = 2.0 * (sum_of_products(h[0], c[0], axis=1) - sum_of_products(h[1], c[1], axis=1))
    if HAS_D:
        value += tl.load(D + d, mask=inside, other=0.0) * x
    if HAS_Z:
        gate = tl.load(z + batch * z_batch + d * z_d, mask=inside, other=0.0).to(tl.float32)
        value *= gate * sigmoid(gate)
    tl.store(y + batch * channels + d, value.to(y.dtype.element_ty), mask=inside)


@device_function
def load_parts(where, mask, PARTS: tl.constexpr):
    parts = ()
    for p in tl.static_range(PARTS):
        parts = parts + (tl.load(where + p, mask=mask, other=0.0).to(tl.float32),)
    return parts
