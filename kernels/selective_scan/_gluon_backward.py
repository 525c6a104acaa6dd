"""Backward kernels of the scan in Gluon: the algorithm of `_triton_backward.py`, in the layout of `_gluon_forward.py`.

A program is one warp with its 32 channels of one chunk, and takes tiles of T steps in reverse. The state before each
tile was kept by the forward pass. Over a tile it

1. stages what does not depend on the state, as the forward kernel does: dt, u, the gradient g before the gate, the
   weight of y in dz, and d softplus;
2. walks forwards and leaves a state every GROUP steps in shared memory;
3. takes the groups in reverse: recomputes a group's states and decays, holds both in registers, and runs the adjoint
   through them. So a decay is computed twice, not three times, and nothing leaves the chip.

Sums over channels (dB, dC) are needed at every step. Lanes leave their shares of a group in shared memory and each adds
up a few columns of them, which takes half the instructions of exchanges between lanes.
"""
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mamba_seq.kernels.selective_scan._gluon_tiles import (
    LOG2E,
    SIZES,
    exchange,
    exp2,
    fill,
    lanes_layout,
    load_layout,
    locate,
    new_tile,
    sigmoid,
    softplus,
    softplus_and_slope,
    state_layout,
    sum_over_states,
)

LN2 = gl.constexpr(0.6931471805599453)
SHARED_ROWS = gl.constexpr(
    gl.SwizzledSharedLayout(4, 2, 4, [1, 0])
)  # rows (..., N), by 16 bytes a lane without conflicts


@gluon.jit(do_not_specialize=SIZES)
def adjoint_chunks(
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
    C_batch,
    C_row,
    C_group,
    length,
    channels,
    width,
    chunk,
    n_chunks,
    batches,
    N: gl.constexpr,
    SOFTPLUS: gl.constexpr,
    HAS_Z: gl.constexpr,
    BLOCK_D: gl.constexpr,
    SD: gl.constexpr,
    SN: gl.constexpr,
    T: gl.constexpr,
    STEPS: gl.constexpr,
    num_warps: gl.constexpr,
):
    # adjoints (chunks + 1, B, D, N)[c] <- gradient of the state before chunk c, as far as it comes from the outputs
    # of this chunk; sums (B, chunks, D) <- sum of step sizes
    tile: gl.constexpr = state_layout(N, SD, SN, num_warps)
    over_d: gl.constexpr = gl.SliceLayout(1, tile)
    over_n: gl.constexpr = gl.SliceLayout(0, tile)
    rows: gl.constexpr = load_layout(BLOCK_D, 8, num_warps)
    projections: gl.constexpr = load_layout(N, 4, num_warps)

    block, c, batch, start, end = locate(channels, chunk, n_chunks, length, BLOCK_D)

    d = block * BLOCK_D + gl.arange(0, BLOCK_D, layout=over_d)
    n = gl.arange(0, N, layout=over_n)
    state_at = d[:, None] * N + n[None, :]
    inside = (d < channels)[:, None]
    a2 = gl.load(A + state_at, mask=inside, other=0.0) * LOG2E
    carry = gl.zeros([BLOCK_D, N], gl.float32, layout=tile)
    total = gl.zeros([BLOCK_D], gl.float32, layout=over_d)

    d_row = block * BLOCK_D + gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, rows))
    t_row = gl.arange(0, T, layout=gl.SliceLayout(1, rows))
    d_in = d_row < channels
    step_bias = gl.load(bias + d_row, mask=d_in, other=0.0)[None, :]
    t_pro = gl.arange(0, T, layout=gl.SliceLayout(1, projections))
    n_pro = gl.arange(0, N, layout=gl.SliceLayout(0, projections))

    dt_tile = new_tile(T, BLOCK_D)
    g_tile = new_tile(T, BLOCK_D)
    C_tile = new_tile(T, N)

    dy += batch * dy_batch
    delta += batch * delta_batch
    z += batch * z_batch
    C += batch * C_batch + (block * BLOCK_D // width) * C_group

    first = start + (end - start - 1) // T * T
    while first >= start:
        at = first.to(gl.int64) + t_row
        here = (at < end)[:, None] & d_in[None, :]
        raw = gl.load(delta + at[:, None] * delta_row + d_row[None, :], mask=here, other=0.0)
        g = gl.load(dy + at[:, None] * dy_row + d_row[None, :], mask=here, other=0.0).to(gl.float32)
        if HAS_Z:
            gate = gl.load(z + at[:, None] * z_row + d_row[None, :], mask=here, other=0.0).to(gl.float32)
            g *= gate * sigmoid(gate)
        at_pro = first.to(gl.int64) + t_pro
        here_pro = (at_pro < end)[:, None]
        c_rows = gl.load(C + at_pro[:, None] * C_row + n_pro[None, :], mask=here_pro, other=0.0)
        dt = raw.to(gl.float32) + step_bias
        if SOFTPLUS:
            dt = softplus(dt)
        dt = gl.where(here, dt, 0.0)
        gl.thread_barrier()
        fill(dt_tile, dt)
        fill(g_tile, g)
        fill(C_tile, c_rows)
        gl.thread_barrier()
        for back in range(0, T, STEPS):
            for i in gl.static_range(STEPS):
                t = T - 1 - back - i
                dt_now = dt_tile.index(t).load(over_d)
                g_now = g_tile.index(t).load(over_d)
                G = carry + g_now[:, None] * C_tile.index(t).load(over_n)[None, :]
                carry = exp2(dt_now[:, None] * a2) * G
                total += dt_now
        first -= T

    gl.store(adjoints + (c * batches + batch) * channels * N + state_at, carry, mask=inside)
    gl.store(sums + (batch * n_chunks + c) * channels + d, total, mask=d < channels)


@gluon.jit(do_not_specialize=SIZES)
def gradients(
    dy,
    kept,
    adjoints,
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
    weights,
    dy_batch,
    dy_row,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    B_batch,
    B_row,
    B_group,
    C_batch,
    C_row,
    C_group,
    dz_batch,
    dz_row,
    batches,
    length,
    channels,
    width,
    chunk,
    n_chunks,
    N: gl.constexpr,
    SOFTPLUS: gl.constexpr,
    HAS_Z: gl.constexpr,
    BLOCK_D: gl.constexpr,
    SD: gl.constexpr,
    SN: gl.constexpr,
    T: gl.constexpr,
    STEPS: gl.constexpr,
    num_warps: gl.constexpr,
):
    # from kept (ceil(L / T) + 1, B, D, N) and adjoints (chunks + 1, B, D, N)[c + 1]: du, ddelta, dz (B, L, D);
    # partial sums dBC (D / 32, B, L, 2, N), and in one row of D (N + 2) an item and chunk dA (D, N), dD and dbias (D,)
    gl.static_assert(num_warps == 1)
    GROUP: gl.constexpr = STEPS
    GROUPS: gl.constexpr = T // GROUP
    LN: gl.constexpr = N // SN
    FINISHED: gl.constexpr = min(LN, 2)  # steps that the lanes of a channel finish at a time
    tile: gl.constexpr = state_layout(N, SD, SN, num_warps)
    over_d: gl.constexpr = gl.SliceLayout(1, tile)
    over_n: gl.constexpr = gl.SliceLayout(0, tile)
    rows: gl.constexpr = load_layout(BLOCK_D, 8, num_warps)
    projections: gl.constexpr = load_layout(N, 4, num_warps)

    block, c, batch, start, end = locate(channels, chunk, n_chunks, length, BLOCK_D)

    d = block * BLOCK_D + gl.arange(0, BLOCK_D, layout=over_d)
    n = gl.arange(0, N, layout=over_n)
    state_at = d[:, None] * N + n[None, :]
    d_inside = d < channels
    inside = d_inside[:, None]
    a2 = gl.load(A + state_at, mask=inside, other=0.0) * LOG2E
    carry = gl.load(adjoints + ((c + 1) * batches + batch) * channels * N + state_at, mask=inside, other=0.0)
    dA_sum = gl.zeros([BLOCK_D, N], gl.float32, layout=tile)

    by_lane: gl.constexpr = lanes_layout(N, SD, SN)
    lane = gl.arange(0, LN, layout=gl.SliceLayout(0, by_lane))[None, :]  # of those that share a channel
    d_lane = block * BLOCK_D + gl.arange(0, BLOCK_D, layout=gl.SliceLayout(1, by_lane))[:, None]
    mine = (d_lane < channels) & (lane < FINISHED)
    skip = gl.load(D + d_lane, mask=d_lane < channels, other=0.0)
    dD_sum = gl.zeros([BLOCK_D, LN], gl.float32, layout=by_lane)
    dbias_sum = gl.zeros([BLOCK_D, LN], gl.float32, layout=by_lane)

    d_row = block * BLOCK_D + gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, rows))
    t_row = gl.arange(0, T, layout=gl.SliceLayout(1, rows))
    d_in = d_row < channels
    step_bias = gl.load(bias + d_row, mask=d_in, other=0.0)[None, :]
    t_pro = gl.arange(0, T, layout=gl.SliceLayout(1, projections))
    n_pro = gl.arange(0, N, layout=gl.SliceLayout(0, projections))
    group = block * BLOCK_D // width

    dt_tile = new_tile(T, BLOCK_D)
    x_tile = new_tile(T, BLOCK_D, u.dtype.element_ty)  # as it came: room for one more warp
    g_tile = new_tile(T, BLOCK_D)
    B_tile = new_tile(T, N)
    C_tile = new_tile(T, N)
    if HAS_Z:
        w_tile = new_tile(T, BLOCK_D)
    if SOFTPLUS:
        s_tile = new_tile(T, BLOCK_D)
    scratch = gl.allocate_shared_memory(gl.float32, [max(T // GROUP - 2, 1), BLOCK_D, N], SHARED_ROWS)
    sums_scratch = gl.allocate_shared_memory(gl.float32, [2 * GROUP * BLOCK_D // SD, N], SHARED_ROWS)

    dy += batch * dy_batch
    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    dz += batch * dz_batch
    dBC += (block * batches + batch) * length * 2 * N

    first = start + (end - start - 1) // T * T
    while first >= start:
        at = first.to(gl.int64) + t_row
        here = (at < end)[:, None] & d_in[None, :]
        raw = gl.load(delta + at[:, None] * delta_row + d_row[None, :], mask=here, other=0.0)
        x = gl.load(u + at[:, None] * u_row + d_row[None, :], mask=here, other=0.0)
        g = gl.load(dy + at[:, None] * dy_row + d_row[None, :], mask=here, other=0.0).to(gl.float32)
        at_pro = first.to(gl.int64) + t_pro
        here_pro = (at_pro < end)[:, None]
        b_rows = gl.load(B + at_pro[:, None] * B_row + n_pro[None, :], mask=here_pro, other=0.0)
        c_rows = gl.load(C + at_pro[:, None] * C_row + n_pro[None, :], mask=here_pro, other=0.0)
        if HAS_Z:
            gate = gl.load(z + at[:, None] * z_row + d_row[None, :], mask=here, other=0.0).to(gl.float32)
        out_tile = (batch * length + first) * channels  # the rest of an offset fits 32 bits
        dz_tile = first.to(gl.int64) * dz_row
        kept_here = kept + (first // T * batches + batch) * channels * N + state_at
        h = gl.load(kept_here, mask=inside, other=0.0)
        gl.thread_barrier()
        dt = raw.to(gl.float32) + step_bias
        if SOFTPLUS:
            dt, slope = softplus_and_slope(dt)
            fill(s_tile, slope)
        fill(dt_tile, gl.where(here, dt, 0.0))
        fill(x_tile, x)
        if HAS_Z:
            s = sigmoid(gate)
            fill(w_tile, g * s * (1.0 + gate * (1.0 - s)))
            g *= gate * s
        fill(g_tile, g)
        fill(B_tile, b_rows)
        fill(C_tile, c_rows)
        gl.thread_barrier()

        # states before groups 1 to the last but one go to shared memory; that before the first is `kept`'s, and that
        # before the last is at hand
        for k in range(0, GROUPS - 1):
            if k > 0:
                scratch.index(k - 1).store(h)
            for i in gl.static_range(GROUP):
                t = k * GROUP + i
                dt_now = dt_tile.index(t).load(over_d)
                v = dt_now * x_tile.index(t).load(over_d).to(gl.float32)
                b = B_tile.index(t).load(over_n)
                h = exp2(dt_now[:, None] * a2) * h + v[:, None] * b[None, :]
        gl.thread_barrier()

        for back in range(0, GROUPS):
            k = GROUPS - 1 - back
            states = (h,)
            decays = ()
            for i in gl.static_range(GROUP):
                t = k * GROUP + i
                dt_now = dt_tile.index(t).load(over_d)
                v = dt_now * x_tile.index(t).load(over_d).to(gl.float32)
                b = B_tile.index(t).load(over_n)
                a = exp2(dt_now[:, None] * a2)
                h = a * h + v[:, None] * b[None, :]
                decays = decays + (a,)
                states = states + (h,)
            parts = ()
            outputs = ()
            inputs = ()
            exponents = ()
            for i in gl.static_range(GROUP - 1, -1, -1):
                t = k * GROUP + i
                dt_now = dt_tile.index(t).load(over_d)
                x_now = x_tile.index(t).load(over_d).to(gl.float32)
                g_now = g_tile.index(t).load(over_d)
                b = B_tile.index(t).load(over_n)[None, :]
                c_now = C_tile.index(t).load(over_n)[None, :]
                if HAS_Z:
                    outputs = (sum_over_states(states[i + 1] * c_now, SN),) + outputs
                G = carry + g_now[:, None] * c_now
                parts = parts + (
                    sum_in_lane(G * (dt_now * x_now)[:, None], SD),
                    sum_in_lane(states[i + 1] * g_now[:, None], SD),
                )
                inputs = (sum_over_states(G * b, SN),) + inputs
                carry = decays[i] * G
                d_exponent = carry * states[i]
                dA_sum += d_exponent * dt_now[:, None]
                exponents = (sum_over_states(d_exponent * a2, SN),) + exponents
            for i in gl.static_range(0, GROUP, FINISHED):
                # a lane finishes one of the steps
                t = k * GROUP + i
                step = t + lane % FINISHED
                here_now = mine & (first + step < end)
                dt_here = for_lane(dt_tile, t, lane, over_d, by_lane, FINISHED)
                x_here = for_lane(x_tile, t, lane, over_d, by_lane, FINISHED)
                g_here = for_lane(g_tile, t, lane, over_d, by_lane, FINISHED)
                through_input = sum_for_lane(inputs, i, lane, LN, FINISHED)
                du_here = dt_here * through_input + skip * g_here
                gl.store(du + out_tile + (step * channels + d_lane), du_here.to(du.dtype.element_ty), mask=here_now)
                d_dt = x_here * through_input + LN2 * sum_for_lane(exponents, i, lane, LN, FINISHED)
                if SOFTPLUS:
                    d_dt *= for_lane(s_tile, t, lane, over_d, by_lane, FINISHED)
                gl.store(
                    ddelta + out_tile + (step * channels + d_lane), d_dt.to(ddelta.dtype.element_ty), mask=here_now
                )
                if HAS_Z:
                    y = sum_for_lane(outputs, i, lane, LN, FINISHED) + skip * x_here
                    y *= for_lane(w_tile, t, lane, over_d, by_lane, FINISHED)
                    gl.store(dz + dz_tile + (step * dz_row + d_lane), y.to(dz.dtype.element_ty), mask=here_now)
                dD_sum += g_here * x_here
                dbias_sum += gl.where(here_now, d_dt, 0.0)
            store_sums(dBC, parts, sums_scratch, first + k * GROUP, end, N, GROUP)
            if k > 1:
                h = scratch.index(k - 2).load(tile)
            elif k == 1:
                h = gl.load(kept_here, mask=inside, other=0.0)
        first -= T

    weights += (batch * n_chunks + c) * channels * (N + 2)
    gl.store(weights + state_at, dA_sum, mask=inside)
    d_once = block * BLOCK_D + gl.arange(0, BLOCK_D, layout=gl.SliceLayout(1, by_lane))
    gl.store(weights + channels * N + d_once, gl.sum(gl.where(mine, dD_sum, 0.0), axis=1), mask=d_once < channels)
    gl.store(weights + channels * (N + 1) + d_once, gl.sum(dbias_sum, axis=1), mask=d_once < channels)
    if n_chunks == 1:
        gl.store(adjoints + batch * channels * N + state_at, carry, mask=inside)


@gluon.jit
def for_lane(rows, t, lane, over_d: gl.constexpr, by_lane: gl.constexpr, FINISHED: gl.constexpr):
    # of the rows t and t + 1 the one that a lane finishes (BLOCK_D, 1 or LN)
    here: gl.constexpr = gl.SliceLayout(1, by_lane)
    value = gl.convert_layout(rows.index(t).load(over_d).to(gl.float32), here, assert_trivial=True)[:, None]
    if FINISHED == 2:
        second = gl.convert_layout(rows.index(t + 1).load(over_d).to(gl.float32), here, assert_trivial=True)[:, None]
        value = gl.where(lane % 2 == 1, second, value)
    return value


@gluon.jit
def sum_for_lane(shares, i: gl.constexpr, lane, LN: gl.constexpr, FINISHED: gl.constexpr):
    # the sum over the lanes of a channel of the share of the step that a lane finishes (BLOCK_D, LN)
    value = shares[i]
    if FINISHED == 2:
        odd = lane % 2 == 1
        value = gl.where(odd, shares[i + 1], shares[i]) + exchange(gl.where(odd, shares[i], shares[i + 1]), 1)
        if LN >= 4:
            value += exchange(value, 2)
        if LN >= 8:
            value += exchange(value, 4)
    return value


@gluon.jit
def sum_in_lane(x, SD: gl.constexpr):
    # (BLOCK_D, N) -> (BLOCK_D / SD, N): a lane's channels
    if SD == 1:
        return x
    else:
        return gl.sum(gl.reshape(x, [x.shape[0] // SD, SD, x.shape[1]]), axis=1)


@gluon.jit
def store_sums(dBC, parts, scratch, first, end, N: gl.constexpr, GROUP: gl.constexpr):
    # parts: of the steps first + GROUP - 1 down to first, a lane's share of dB and of dC (BLOCK_D / SD, N). Through
    # shared memory every lane gets some columns of some parts, and adds up all their rows
    PARTS: gl.constexpr = 2 * GROUP
    ROWS: gl.constexpr = parts[0].shape[0]
    columns: gl.constexpr = gl.BlockedLayout([ROWS, PARTS * N // 32], [PARTS, 32 // PARTS], [1, 1], [1, 0])
    scratch.store(stacked(parts, PARTS))  # one store: Triton puts a barrier in front of each
    shares = scratch.load(columns)
    totals = gl.sum(gl.reshape(shares, [PARTS, ROWS, N]), axis=1)
    layout: gl.constexpr = totals.type.layout
    part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, layout))
    n = gl.arange(0, N, layout=gl.SliceLayout(0, layout))
    step = first + GROUP - 1 - part // 2
    at = dBC + (step.to(gl.int64) * 2 + part % 2)[:, None] * N + n[None, :]
    gl.store(at, totals, mask=(step < end)[:, None])


@gluon.jit
def stacked(parts, COUNT: gl.constexpr):
    # COUNT tensors (R, N), a power of two, one above the other (COUNT R, N)
    joined = joined_bits(parts, COUNT)
    R: gl.constexpr = joined.shape[0]
    N: gl.constexpr = joined.shape[1]
    if COUNT == 2:
        return gl.reshape(gl.permute(joined, [2, 0, 1]), [COUNT * R, N])
    elif COUNT == 4:
        return gl.reshape(gl.permute(joined, [2, 3, 0, 1]), [COUNT * R, N])
    else:
        gl.static_assert(COUNT == 8)
        return gl.reshape(gl.permute(joined, [2, 3, 4, 0, 1]), [COUNT * R, N])


@gluon.jit
def joined_bits(parts, COUNT: gl.constexpr):
    # a new last axis of 2 for every bit of a part's number, the last bit last
    if COUNT == 1:
        return parts[0]
    else:
        even = ()
        odd = ()
        for i in gl.static_range(0, COUNT, 2):
            even = even + (parts[i],)
            odd = odd + (parts[i + 1],)
        return gl.join(joined_bits(even, COUNT // 2), joined_bits(odd, COUNT // 2))


@triton.jit(do_not_specialize=["size"])
def sum_partials(dB, dC, partials, size, stride, PARTS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    # dB and dC (B L, groups, N) <- partials (groups * PARTS, B L, 2, N), summed over the parts of a group in order
    group = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(PARTS):
        total += tl.load(partials + (group * PARTS + part) * size + at, mask=inside, other=0.0)
    where = at // (2 * N) * stride + group * N + at % N
    second = at // N % 2 == 1
    tl.store(dB + where, total.to(dB.dtype.element_ty), mask=inside & (second == 0))
    tl.store(dC + where, total.to(dC.dtype.element_ty), mask=inside & second)
