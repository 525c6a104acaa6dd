"""One step of the recurrence for every batch item and channel: the kernel behind `selective_state_update`.

It is bound by memory (the state is read and written once), so a program holds a tile (BLOCK_D, N) as the state lies in
memory, N contiguous.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import LOG2E, exp2, sigmoid
from mamba_seq.kernels.selective_scan._triton_tiles import step_size


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
    B_n,
    C_batch,
    C_n,
    z_batch,
    z_d,
    channels,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
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
    dt = step_size(raw + step_bias, SOFTPLUS)
    a2 = tl.load(A + d[:, None] * A_d + n[None, :] * A_n, mask=tile, other=0.0) * LOG2E
    b = tl.load(B + batch * B_batch + n * B_n, mask=n < N, other=0.0).to(tl.float32)
    c = tl.load(C + batch * C_batch + n * C_n, mask=n < N, other=0.0).to(tl.float32)

    where = state + batch * state_batch + d[:, None] * state_d + n[None, :] * state_n
    h = tl.load(where, mask=tile, other=0.0)
    h = exp2(dt[:, None] * a2) * h + (dt * x)[:, None] * b[None, :]
    tl.store(where, h, mask=tile)
    value = tl.sum(h * c[None, :], axis=1)
    if HAS_D:
        value += tl.load(D + d, mask=inside, other=0.0) * x
    if HAS_Z:
        gate = tl.load(z + batch * z_batch + d * z_d, mask=inside, other=0.0).to(tl.float32)
        value *= gate * sigmoid(gate)
    tl.store(y + batch * channels + d, value.to(y.dtype.element_ty), mask=inside)
