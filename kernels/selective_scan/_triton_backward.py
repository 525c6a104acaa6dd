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

from mamba_seq.kernels._triton_math import device_function, sigmoid
from mamba_seq.kernels.selective_scan._triton_forward import SIZES, STRIDES, advance
from mamba_seq.kernels.selective_scan._triton_tiles import (
    add_multiple,
    add_step,
    conjugate_product,
    decay,
    dot,
    dot_A,
    kept_slot,
    load_A,
    load_tiles,
    locate,
    no_steps,
    product,
    projection,
    row_of,
    step_size,
    store_sums_over_lanes,
    store_tiles,
    zeros,
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
    pieces,
    dy_batch,
    dy_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    length,
    channels,
    groups,
    chunk,
    n_chunks,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PACKED: tl.constexpr,
    C_CONSTANT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    # sums (B, chunks, [2,] D) <- sum of step sizes; adjoints (B, chunks + 1, [2,] N, D)[:, c] <- gradient of the state
    # before chunk c, as far as it comes from the outputs of this chunk
    piece, sequence, start, end, _block, group, d, end_d, d_row = locate(
        tl.program_id(0), pieces, length, channels, groups, chunk, n_chunks, BLOCK_D, PACKED
    )
    batch, _row = row_of(sequence, start, length, PACKED)
    a2 = load_A(A, d, end_d, channels, N, N_PADDED, PARTS)
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    here = start.to(tl.int64)
    steps = end - start
    full = steps // STEPS * STEPS
    dy += batch * dy_batch + here * dy_row + d_row
    delta += batch * delta_batch + here * delta_row + d_row
    if HAS_Z:
        z += batch * z_batch + here * z_row + d_row
    if C_CONSTANT:
        c = load_tiles(C, d, end_d, channels, N, N_PADDED, PARTS)
    else:
        c = C + ((batch * groups + group) * length + here) * (PARTS * N)

    carry = zeros(PARTS, N_PADDED, BLOCK_D)
    total = no_steps(PARTS, BLOCK_D)
    t = steps
    while t > full:
        t -= 1
        carry, total = retreat(
            t, carry, total, dy, delta, z, a2, c, step_bias, dy_row, delta_row, z_row,
            N, N_PADDED, PARTS, C_CONSTANT, HAS_Z, SOFTPLUS, 1,
        )  # fmt: skip
    while t > 0:
        t -= STEPS
        carry, total = retreat(
            t, carry, total, dy, delta, z, a2, c, step_bias, dy_row, delta_row, z_row,
            N, N_PADDED, PARTS, C_CONSTANT, HAS_Z, SOFTPLUS, STEPS,
        )  # fmt: skip
    for p in tl.static_range(PARTS):
        tl.store(sums + (piece * PARTS + p) * channels + d, total[p], mask=d < end_d)
    adjoints += (piece + sequence) * (PARTS * N) * channels
    store_tiles(adjoints, carry, d, end_d, channels, N, N_PADDED, PARTS)


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
    PARTS: tl.constexpr,
    C_CONSTANT: tl.constexpr,
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
        dts = dts + (step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS, PARTS),)
        g = gs[i].to(tl.float32)
        if HAS_Z:
            gate = gates[i].to(tl.float32)
            g *= gate * sigmoid(gate)
        before_gate = before_gate + (g,)
    for i in tl.static_range(STEPS - 1, -1, -1):
        c = projection(C, t + i, N, N_PADDED, PARTS, C_CONSTANT)
        G = add_multiple(carry, before_gate[i][None, :], c, PARTS)
        carry = conjugate_product(decay(dts[i][None, :], a2, PARTS), G, PARTS)
        total = add_step(total, dts[i], PARTS)
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
    pieces,
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
    groups,
    chunk,
    n_chunks,
    kept_every,
    first_program,
    scratch_tiles,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PACKED: tl.constexpr,
    B_CONSTANT: tl.constexpr,
    C_CONSTANT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    # one chunk, stretch after stretch in reverse; a stretch starts from a kept state. adjoints[:, c + 1] is the
    # gradient of the state after the chunk. Partial sums: dBC (blocks of channels, B, L, [2,] 2, N); dA (B, chunks,
    # [2,] N, D), with those of a constant B and C behind it; dD and dbias (B, chunks, D).
    SUMS: tl.constexpr = PARTS * (1 + B_CONSTANT + C_CONSTANT)
    piece, sequence, first, end, block, group, d, end_d, d_row = locate(
        first_program + tl.program_id(0), pieces, length, channels, groups, chunk, n_chunks, BLOCK_D, PACKED
    )
    inside = d < end_d
    a2 = load_A(A, d, end_d, channels, N, N_PADDED, PARTS)
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + d_row)
    adjoints += (piece + sequence) * (PARTS * N) * channels
    carry = load_tiles(adjoints + PARTS * N * channels, d, end_d, channels, N, N_PADDED, PARTS)
    scratch += tl.program_id(0).to(tl.int64) * scratch_tiles * (PARTS * N_PADDED * BLOCK_D)
    lane = tl.arange(0, BLOCK_D)

    sums = zeros(SUMS, N_PADDED, BLOCK_D)
    dD_sum = tl.zeros([BLOCK_D], tl.float32)
    dbias_sum = tl.zeros([BLOCK_D], tl.float32)
    unused = no_steps(PARTS, BLOCK_D)
    before = (end - 1 - first) // kept_every * kept_every  # steps of the chunk before the stretch
    batch, row = row_of(sequence, first + before, length, PACKED)
    here = (first + before).to(tl.int64)
    dy += batch * dy_batch + here * dy_row + d_row
    u += batch * u_batch + here * u_row + d_row
    delta += batch * delta_batch + here * delta_row + d_row
    du += row * channels + d
    ddelta += row * channels + d
    if HAS_Z:
        z += batch * z_batch + here * z_row + d_row
        dz += row * channels + d
    if B_CONSTANT:
        b = load_tiles(B, d, end_d, channels, N, N_PADDED, PARTS)
    else:
        b = B + ((batch * groups + group) * length + here) * (PARTS * N)
    if C_CONSTANT:
        c = load_tiles(C, d, end_d, channels, N, N_PADDED, PARTS)
    else:
        c = C + ((batch * groups + group) * length + here) * (PARTS * N)
    if not (B_CONSTANT and C_CONSTANT):
        dBC += ((block.to(tl.int64) * batch_size + batch) * length + here) * (2 * PARTS * N_PADDED)
    slot = kept_slot(piece, sequence, first, length, kept_every, PACKED) + before // kept_every
    kept += slot * (PARTS * N) * channels

    steps = end - first - before
    while before >= 0:
        full = steps // STEPS * STEPS
        h = load_tiles(kept, d, end_d, channels, N, N_PADDED, PARTS)
        t = 0
        saved = scratch
        while t < full:
            store_tiles(saved, h, lane, BLOCK_D, BLOCK_D, N_PADDED, N_PADDED, PARTS)
            h, unused = advance(
                t, h, unused, u, delta, a2, b, step_bias, u_row, delta_row,
                N, N_PADDED, PARTS, B_CONSTANT, SOFTPLUS, STEPS,
            )  # fmt: skip
            t += STEPS
            saved += PARTS * N_PADDED * BLOCK_D
        while t < steps:
            store_tiles(saved, h, lane, BLOCK_D, BLOCK_D, N_PADDED, N_PADDED, PARTS)
            h, unused = advance(
                t, h, unused, u, delta, a2, b, step_bias, u_row, delta_row,
                N, N_PADDED, PARTS, B_CONSTANT, SOFTPLUS, 1,
            )  # fmt: skip
            t += 1
            saved += PARTS * N_PADDED * BLOCK_D
        tl.debug_barrier()  # what one warp has left in scratch, another may read, if it lays its tiles out differently

        while t > full:
            t -= 1
            saved -= PARTS * N_PADDED * BLOCK_D
            h = load_tiles(saved, lane, BLOCK_D, BLOCK_D, N_PADDED, N_PADDED, PARTS)
            carry, sums, dD_sum, dbias_sum = gradient_group(
                t, h, carry, sums, dD_sum, dbias_sum, dy, u, delta, a2, b, c, skip, z,
                step_bias, du, ddelta, dz, dBC, dy_row, u_row, delta_row, z_row, channels, inside,
                N, N_PADDED, PARTS, B_CONSTANT, C_CONSTANT, HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS, 1,
            )  # fmt: skip
        while t > 0:
            t -= STEPS
            saved -= PARTS * N_PADDED * BLOCK_D
            h = load_tiles(saved, lane, BLOCK_D, BLOCK_D, N_PADDED, N_PADDED, PARTS)
            carry, sums, dD_sum, dbias_sum = gradient_group(
                t, h, carry, sums, dD_sum, dbias_sum, dy, u, delta, a2, b, c, skip, z,
                step_bias, du, ddelta, dz, dBC, dy_row, u_row, delta_row, z_row, channels, inside,
                N, N_PADDED, PARTS, B_CONSTANT, C_CONSTANT, HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS, STEPS,
            )  # fmt: skip
        tl.debug_barrier()
        before -= kept_every
        steps = kept_every
        far = kept_every.to(tl.int64)
        dy -= far * dy_row
        u -= far * u_row
        delta -= far * delta_row
        du -= far * channels
        ddelta -= far * channels
        if HAS_Z:
            z -= far * z_row
            dz -= far * channels
        if not B_CONSTANT:
            b -= far * (PARTS * N)
        if not C_CONSTANT:
            c -= far * (PARTS * N)
        if not (B_CONSTANT and C_CONSTANT):
            dBC -= far * (2 * PARTS * N_PADDED)
        kept -= PARTS * N * channels

    store_tiles(dA + piece * (SUMS * N) * channels, sums, d, end_d, channels, N, N_PADDED, SUMS)
    if HAS_D:
        tl.store(dD + piece * channels + d, dD_sum, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + piece * channels + d, dbias_sum, mask=inside)
    if n_chunks == 1:  # otherwise the pass over the chunks has left the gradient of the initial state there
        store_tiles(adjoints, carry, d, end_d, channels, N, N_PADDED, PARTS)


@device_function
def gradient_group(
    t,
    h,
    carry,
    sums,
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
    PARTS: tl.constexpr,
    B_CONSTANT: tl.constexpr,
    C_CONSTANT: tl.constexpr,
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
        dt = step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS, PARTS)
        dts = dts + (dt,)
        b = projection(B, t + i, N, N_PADDED, PARTS, B_CONSTANT)
        h = product(decay(dt[None, :], a2, PARTS), h, PARTS)
        h = add_multiple(h, (dt * xs[i].to(tl.float32))[None, :], b, PARTS)
        states = states + (h,)

    for i in tl.static_range(STEPS - 1, -1, -1):
        at = (t + i) * out_row
        dt = dts[i]
        x = xs[i].to(tl.float32)
        b = projection(B, t + i, N, N_PADDED, PARTS, B_CONSTANT)
        c = projection(C, t + i, N, N_PADDED, PARTS, C_CONSTANT)
        g = dys[i].to(tl.float32)
        if HAS_Z:
            gate = gates[i].to(tl.float32)
            s = sigmoid(gate)
            y = dot(states[i + 1], c, PARTS) + skip * x
            tl.store(dz + at, (g * y * s * (1.0 + gate * (1.0 - s))).to(dz.dtype.element_ty), mask=inside)
            g *= gate * s
        G = add_multiple(carry, g[None, :], c, PARTS)
        if not (B_CONSTANT and C_CONSTANT):
            for p in tl.static_range(PARTS):
                store_sums_over_lanes(
                    dBC + ((t + i) * PARTS + p) * (2 * N_PADDED),
                    G[p] * (dt * x)[None, :],
                    states[i + 1][p] * g[None, :],
                    N_PADDED,
                )
        through_input = dot(G, b, PARTS)
        tl.store(du + at, (dt * through_input + skip * g).to(du.dtype.element_ty), mask=inside)
        carry = conjugate_product(decay(dt[None, :], a2, PARTS), G, PARTS)
        d_exponent = conjugate_product(states[i], carry, PARTS)
        new_sums = ()
        for p in tl.static_range(PARTS):
            new_sums = new_sums + (sums[p] + d_exponent[p] * dt[None, :],)
        if B_CONSTANT:
            for p in tl.static_range(PARTS):
                new_sums = new_sums + (sums[PARTS + p] + G[p] * (dt * x)[None, :],)
        if C_CONSTANT:
            for p in tl.static_range(PARTS):
                new_sums = new_sums + (sums[PARTS * (1 + B_CONSTANT) + p] + states[i + 1][p] * g[None, :],)
        sums = new_sums
        d_dt = x * through_input + dot_A(d_exponent, a2, PARTS)
        if SOFTPLUS:
            d_dt *= sigmoid(raws[i].to(tl.float32) + step_bias)
        tl.store(ddelta + at, d_dt.to(ddelta.dtype.element_ty), mask=inside)
        dD_sum += g * x
        dbias_sum += d_dt
    return carry, sums, dD_sum, dbias_sum
