"""The backward kernels of the scan: summaries of the adjoint, and the gradients. `triton.py` says how they fit
together.

With g_t the gradient of y_t before the gate, the adjoint of the state runs backwards in time,

    G_t = C_t g_t + a_(t+1) G_(t+1),        a_t = exp(delta_t A),

and everything else is a product with it: du_t = delta_t sum_n(G B) + D g, dB_t = sum_d(G delta u), dC_t = sum_d(h g),
d(delta_t A) = G a_t h_(t-1). What a chunk hands to the one before it is a_t G_t at its first step: the gradient of the
state it started from.

The states h_t are recomputed forwards from those that the forward pass kept, in two sweeps: the first leaves one
every STEPS steps in scratch memory, then, group after group in reverse, the group's states are recomputed and held in
registers. Nothing is divided by a decay and no state is recovered by subtraction: where states decay to nothing both
lose all digits.
"""
# Triton's language is not quite Python: it has tuples but no unpacking into one, and its interpreter cannot count a
# `for` over a loaded bound, hence `while`
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import LN2, LOG2E, device_function, exp2, sigmoid
from mamba_seq.kernels.selective_scan._triton_forward import SIZES, STRIDES, advance
from mamba_seq.kernels.selective_scan._triton_tiles import (
    load_projection,
    load_tile,
    locate,
    step_size,
    store_sums_over_lanes,
    store_tile,
)

UNALIGNED = ["u", "delta", "z", "dy", "du", "ddelta", "dz", "A", "dA", "adjoints", "kept", "scratch", "sums"]


@triton.jit(
    do_not_specialize=[*SIZES, *STRIDES, "dy_batch", "dy_row"],
    do_not_specialize_on_alignment=["dy", "delta", "z", "A", "adjoints", "sums"],
)
def adjoint_summaries(
    dy,
    delta,
    A,
    C,
    z,
    bias,
    adjoints,
    sums,
    dy_batch,
    dy_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    length,
    channels,
    chunk,
    n_chunks,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    # sums (B, chunks, D) <- sum of step sizes; adjoints (B, chunks + 1, N, D)[:, c] <- gradient of the state before
    # chunk c, as far as it comes from the outputs of this chunk
    batch, c, d, d_row = locate(tl.program_id(0), n_chunks, channels, BLOCK_D)
    a2 = load_tile(A, d, channels, N, N_PADDED) * LOG2E
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    start = c * chunk
    row = start.to(tl.int64)
    steps = tl.minimum(chunk, length - start)
    full = steps // STEPS * STEPS
    dy += batch * dy_batch + row * dy_row + d_row
    delta += batch * delta_batch + row * delta_row + d_row
    if HAS_Z:
        z += batch * z_batch + row * z_row + d_row
    C += (batch * length + row) * N

    carry = tl.zeros([N_PADDED, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)
    t = steps
    while t > full:
        t -= 1
        carry, total = retreat(
            t, carry, total, dy, delta, z, a2, C, step_bias, dy_row, delta_row, z_row, N, N_PADDED, HAS_Z, SOFTPLUS, 1
        )
    while t > 0:
        t -= STEPS
        carry, total = retreat(
            t,
            carry,
            total,
            dy,
            delta,
            z,
            a2,
            C,
            step_bias,
            dy_row,
            delta_row,
            z_row,
            N,
            N_PADDED,
            HAS_Z,
            SOFTPLUS,
            STEPS,
        )
    tl.store(sums + (batch * n_chunks + c) * channels + d, total, mask=d < channels)
    store_tile(adjoints + (batch * (n_chunks + 1) + c) * N * channels, carry, d, channels, N, N_PADDED)


@device_function
def retreat(
    t,
    carry,
    total,
    dy,
    delta,
    z,
    a2,
    C,
    step_bias,
    dy_row,
    delta_row,
    z_row,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
):
    # the gradient of the state before step t, from that of the state after step t + STEPS - 1
    raws = ()
    gs = ()
    gates = ()
    for i in tl.static_range(STEPS):
        raws = raws + (tl.load(delta + (t + i) * delta_row),)
        gs = gs + (tl.load(dy + (t + i) * dy_row),)
        if HAS_Z:
            gates = gates + (tl.load(z + (t + i) * z_row),)
    dts = ()
    before_gate = ()
    for i in tl.static_range(STEPS):
        dts = dts + (step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS),)
        g = gs[i].to(tl.float32)
        if HAS_Z:
            gate = gates[i].to(tl.float32)
            g *= gate * sigmoid(gate)
        before_gate = before_gate + (g,)
    for i in tl.static_range(STEPS - 1, -1, -1):
        c = load_projection(C + (t + i) * N, N, N_PADDED)
        carry = exp2(dts[i][None, :] * a2) * (carry + before_gate[i][None, :] * c[:, None])
        total += dts[i]
    return carry, total


@triton.jit(
    do_not_specialize=[*SIZES, *STRIDES, "dy_batch", "dy_row", "batch_size", "first_program", "scratch_tiles"],
    do_not_specialize_on_alignment=UNALIGNED,
)
def gradients(
    dy,
    kept,
    adjoints,
    scratch,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    du,
    ddelta,
    dz,
    dBC,
    dA,
    dD,
    dbias,
    dy_batch,
    dy_row,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    batch_size,
    length,
    channels,
    chunk,
    n_chunks,
    kept_every,
    first_program,
    scratch_tiles,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    # one chunk, stretch after stretch in reverse; a stretch starts from a kept state. adjoints[:, c + 1] is the
    # gradient of the state after the chunk. Partial sums: dBC (blocks of channels, B, L, 2, N), dA (B, chunks, N, D),
    # dD and dbias (B, chunks, D).
    program = first_program + tl.program_id(0)
    batch, c, d, d_row = locate(program, n_chunks, channels, BLOCK_D)
    block = program % ((channels + BLOCK_D - 1) // BLOCK_D)
    inside = d < channels
    a2 = load_tile(A, d, channels, N, N_PADDED) * LOG2E
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + d_row)
    adjoints += (batch * (n_chunks + 1) + c) * N * channels
    carry = load_tile(adjoints + N * channels, d, channels, N, N_PADDED)
    scratch += tl.program_id(0).to(tl.int64) * scratch_tiles * (N_PADDED * BLOCK_D)
    lane = tl.arange(0, BLOCK_D)

    dA_sum = tl.zeros([N_PADDED, BLOCK_D], tl.float32)
    dD_sum = tl.zeros([BLOCK_D], tl.float32)
    dbias_sum = tl.zeros([BLOCK_D], tl.float32)
    unused = tl.zeros([BLOCK_D], tl.float32)
    chunk_start = c * chunk
    end = tl.minimum(chunk_start + chunk, length)
    start = (end - 1) // kept_every * kept_every
    while start >= chunk_start:
        row = start.to(tl.int64)
        dy_here = dy + batch * dy_batch + row * dy_row + d_row
        u_here = u + batch * u_batch + row * u_row + d_row
        delta_here = delta + batch * delta_batch + row * delta_row + d_row
        z_here = z
        dz_here = dz
        if HAS_Z:
            z_here = z + batch * z_batch + row * z_row + d_row
            dz_here = dz + (batch * length + row) * channels + d
        du_here = du + (batch * length + row) * channels + d
        ddelta_here = ddelta + (batch * length + row) * channels + d
        B_here = B + (batch * length + row) * N
        C_here = C + (batch * length + row) * N
        dBC_here = dBC + ((block.to(tl.int64) * batch_size + batch) * length + row) * (2 * N_PADDED)

        steps = end - start
        full = steps // STEPS * STEPS
        slot = batch * ((length + kept_every - 1) // kept_every) + start // kept_every
        h = load_tile(kept + slot * N * channels, d, channels, N, N_PADDED)
        t = 0
        tile = 0
        while t < full:
            store_tile(scratch + tile * (N_PADDED * BLOCK_D), h, lane, BLOCK_D, N_PADDED, N_PADDED)
            h, unused = advance(
                t, h, unused, u_here, delta_here, a2, B_here, step_bias, u_row, delta_row, N, N_PADDED, SOFTPLUS, STEPS
            )
            t += STEPS
            tile += 1
        while t < steps:
            store_tile(scratch + tile * (N_PADDED * BLOCK_D), h, lane, BLOCK_D, N_PADDED, N_PADDED)
            h, unused = advance(
                t, h, unused, u_here, delta_here, a2, B_here, step_bias, u_row, delta_row, N, N_PADDED, SOFTPLUS, 1
            )
            t += 1
            tile += 1
        tl.debug_barrier()  # what one warp has left in scratch, another may read, if it lays its tiles out differently

        while t > full:
            t -= 1
            tile -= 1
            h = load_tile(scratch + tile * (N_PADDED * BLOCK_D), lane, BLOCK_D, N_PADDED, N_PADDED)
            carry, dA_sum, dD_sum, dbias_sum = gradient_group(
                t, h, carry, dA_sum, dD_sum, dbias_sum, dy_here, u_here, delta_here, a2, B_here, C_here, skip, z_here,
                step_bias, du_here, ddelta_here, dz_here, dBC_here, dy_row, u_row, delta_row, z_row, channels, inside,
                N, N_PADDED, HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS, 1,
            )  # fmt: skip
        while t > 0:
            t -= STEPS
            tile -= 1
            h = load_tile(scratch + tile * (N_PADDED * BLOCK_D), lane, BLOCK_D, N_PADDED, N_PADDED)
            carry, dA_sum, dD_sum, dbias_sum = gradient_group(
                t, h, carry, dA_sum, dD_sum, dbias_sum, dy_here, u_here, delta_here, a2, B_here, C_here, skip, z_here,
                step_bias, du_here, ddelta_here, dz_here, dBC_here, dy_row, u_row, delta_row, z_row, channels, inside,
                N, N_PADDED, HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS, STEPS,
            )  # fmt: skip
        tl.debug_barrier()
        end = start
        start -= kept_every

    part = batch * n_chunks + c
    store_tile(dA + part * N * channels, dA_sum, d, channels, N, N_PADDED)
    if HAS_D:
        tl.store(dD + part * channels + d, dD_sum, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + part * channels + d, dbias_sum, mask=inside)
    if n_chunks == 1:  # otherwise the pass over the chunks has left the gradient of the initial state there
        store_tile(adjoints, carry, d, channels, N, N_PADDED)


@device_function
def gradient_group(
    t,
    h,
    carry,
    dA_sum,
    dD_sum,
    dbias_sum,
    dy,
    u,
    delta,
    a2,
    B,
    C,
    skip,
    z,
    step_bias,
    du,
    ddelta,
    dz,
    dBC,
    dy_row,
    u_row,
    delta_row,
    z_row,
    out_row,
    inside,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
):
    raws = ()
    xs = ()
    dys = ()
    gates = ()
    for i in tl.static_range(STEPS):
        raws = raws + (tl.load(delta + (t + i) * delta_row),)
        xs = xs + (tl.load(u + (t + i) * u_row),)
        # zero beyond the last channel, where the other rows repeat it: so nothing is added to dB and dC
        dys = dys + (tl.load(dy + (t + i) * dy_row, mask=inside, other=0.0),)
        if HAS_Z:
            gates = gates + (tl.load(z + (t + i) * z_row),)
    dts = ()
    states = (h,)
    for i in tl.static_range(STEPS):
        dt = step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS)
        dts = dts + (dt,)
        b = load_projection(B + (t + i) * N, N, N_PADDED)
        h = exp2(dt[None, :] * a2) * h + (dt * xs[i].to(tl.float32))[None, :] * b[:, None]
        states = states + (h,)

    for i in tl.static_range(STEPS - 1, -1, -1):
        at = (t + i) * out_row
        dt = dts[i]
        x = xs[i].to(tl.float32)
        b = load_projection(B + (t + i) * N, N, N_PADDED)
        c = load_projection(C + (t + i) * N, N, N_PADDED)
        g = dys[i].to(tl.float32)
        if HAS_Z:
            gate = gates[i].to(tl.float32)
            s = sigmoid(gate)
            y = tl.sum(states[i + 1] * c[:, None], axis=0) + skip * x
            tl.store(dz + at, (g * y * s * (1.0 + gate * (1.0 - s))).to(dz.dtype.element_ty), mask=inside)
            g *= gate * s
        G = carry + g[None, :] * c[:, None]
        store_sums_over_lanes(
            dBC + (t + i) * (2 * N_PADDED), G * (dt * x)[None, :], states[i + 1] * g[None, :], N_PADDED
        )  # fmt: skip
        through_input = tl.sum(G * b[:, None], axis=0)
        tl.store(du + at, (dt * through_input + skip * g).to(du.dtype.element_ty), mask=inside)
        carry = exp2(dt[None, :] * a2) * G
        d_exponent = carry * states[i]
        dA_sum += d_exponent * dt[None, :]
        d_dt = x * through_input + LN2 * tl.sum(d_exponent * a2, axis=0)
        if SOFTPLUS:
            d_dt *= sigmoid(raws[i].to(tl.float32) + step_bias)
        tl.store(ddelta + at, d_dt.to(ddelta.dtype.element_ty), mask=inside)
        dD_sum += g * x
        dbias_sum += d_dt
    return carry, dA_sum, dD_sum, dbias_sum
