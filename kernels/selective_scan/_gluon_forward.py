"""Forward kernels of the scan in Gluon: what `_triton_forward.py` computes, in layouts chosen by hand.

A program owns BLOCK_D channels of one chunk and takes the steps of the chunk in tiles of T. For each tile all threads
first load it in 16-byte pieces and prepare what does not depend on the state, once an element: step sizes (softplus),
delta u, the gate and the skip term go to shared memory in float32, rows of B and C beside them. Then the recurrence
walks through the tile with nothing but shared-memory reads, 16 exponentials and multiply-adds a channel and step.

The state is a tile (BLOCK_D, N). A lane owns SD channels and SN states of each, N / SN lanes share a channel:

    lane 0   lane 1   ...          SD x SN = 2 x 8 with N = 16: a warp holds 32 channels,
    d 0, 1   d 0, 1                with 1 x 4 only 8, and four times as many warps hide each other's latency where
    n 0..7   n 8..15               batch and channels are few

States lie in memory as the caller has them, (D, N), and steps beyond the end of the sequence have step size 0, so that
they change nothing and no loop has a tail.
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
    exchange_halves,
    exp2,
    fill,
    load_layout,
    locate,
    new_tile,
    sigmoid,
    softplus,
    state_layout,
    step_lane_layout,
    sum_over_states,
)


@gluon.jit(do_not_specialize=SIZES)
def scan_chunks(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    y,
    states,
    sums,
    kept,
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
    length,
    channels,
    width,
    chunk,
    n_chunks,
    batches,
    kept_every,
    N: gl.constexpr,
    SOFTPLUS: gl.constexpr,
    HAS_Z: gl.constexpr,
    OUTPUTS: gl.constexpr,
    KEEP: gl.constexpr,
    BLOCK_D: gl.constexpr,
    SD: gl.constexpr,
    SN: gl.constexpr,
    T: gl.constexpr,
    STEPS: gl.constexpr,
    num_warps: gl.constexpr,
):
    # states (chunks + 1, B, D, N). Without OUTPUTS and KEEP: [c + 1] <- end state of chunk c from a zero start, and
    # sums (B, chunks, D) <- its sum of step sizes. Otherwise from the states [c] before each chunk: with OUTPUTS
    # y (B, L, D), with KEEP the state every kept_every steps, kept (slots, B, D, N)
    LN: gl.constexpr = N // SN
    AT_ONCE: gl.constexpr = max(STEPS, LN)
    by_lane: gl.constexpr = step_lane_layout(LN)
    tile: gl.constexpr = state_layout(N, SD, SN, num_warps)
    over_d: gl.constexpr = gl.SliceLayout(1, tile)
    over_n: gl.constexpr = gl.SliceLayout(0, tile)
    rows: gl.constexpr = load_layout(BLOCK_D, 8, num_warps)
    projections: gl.constexpr = load_layout(N, 4, num_warps)

    block, c, batch, start, end = locate(channels, chunk, n_chunks, length, BLOCK_D)

    d_first = block * BLOCK_D
    d = d_first + gl.arange(0, BLOCK_D, layout=over_d)
    n = gl.arange(0, N, layout=over_n)
    state_at = d[:, None] * N + n[None, :]
    inside = (d < channels)[:, None]
    a2 = gl.load(A + state_at, mask=inside, other=0.0) * LOG2E
    # in this order the compiler keeps what all lanes share in uniform registers
    slot = (batch + c * batches) * (channels * N)
    if OUTPUTS or KEEP:
        h = gl.load(states + slot + state_at, mask=inside, other=0.0)
    else:
        h = gl.zeros([BLOCK_D, N], gl.float32, layout=tile)
    total = gl.zeros([BLOCK_D], gl.float32, layout=over_d)

    d_row = d_first + gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, rows))
    t_row = gl.arange(0, T, layout=gl.SliceLayout(1, rows))
    d_in = d_row < channels
    step_bias = gl.load(bias + d_row, mask=d_in, other=0.0)[None, :]
    t_pro = gl.arange(0, T, layout=gl.SliceLayout(1, projections))
    n_pro = gl.arange(0, N, layout=gl.SliceLayout(0, projections))
    group = d_first // width

    dt_tile = new_tile(T, BLOCK_D)
    v_tile = new_tile(T, BLOCK_D)
    B_tile = new_tile(T, N)
    if OUTPUTS:
        skip = gl.load(D + d_row, mask=d_in, other=0.0)[None, :]
        C_tile = new_tile(T, N)
        skip_tile = gl.allocate_shared_memory(gl.float32, [T // LN, LN, BLOCK_D], by_lane)
        gate_tile = skip_tile
        if HAS_Z:
            gate_tile = gl.allocate_shared_memory(gl.float32, [T // LN, LN, BLOCK_D], by_lane)

    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group

    at_row = t_row.to(gl.int64)[:, None]
    at_pro = t_pro.to(gl.int64)[:, None]
    u += d_row[None, :] + at_row * u_row
    delta += d_row[None, :] + at_row * delta_row
    z += d_row[None, :] + at_row * z_row
    B += n_pro[None, :] + at_pro * B_row
    C += n_pro[None, :] + at_pro * C_row

    first = start
    row = start.to(gl.int64)
    here = (first + t_row < end)[:, None] & d_in[None, :]
    here_pro = (first + t_pro < end)[:, None]
    raw = gl.load(delta + row * delta_row, mask=here, other=0.0)
    x_raw = gl.load(u + row * u_row, mask=here, other=0.0)
    b_rows = gl.load(B + row * B_row, mask=here_pro, other=0.0)
    if OUTPUTS:
        c_rows = gl.load(C + row * C_row, mask=here_pro, other=0.0)
        if HAS_Z:
            z_raw = gl.load(z + row * z_row, mask=here, other=0.0)
    while first < end:
        if KEEP:  # two conditions: the second is not known when the kernel is compiled  # noqa: SIM102
            if first % kept_every == 0:
                kept_slot = first // kept_every * batches + batch
                gl.store(kept + kept_slot * channels * N + state_at, h, mask=inside)
        dt = raw.to(gl.float32) + step_bias
        if SOFTPLUS:
            dt = softplus(dt)
        dt = gl.where(here, dt, 0.0)
        x = x_raw.to(gl.float32)
        gl.thread_barrier()  # the tile before has been read
        fill(dt_tile, dt)
        fill(v_tile, dt * x)
        fill(B_tile, b_rows)
        if OUTPUTS:
            fill(C_tile, c_rows)
            if HAS_Z:
                gate = z_raw.to(gl.float32)
                gate = gate * sigmoid(gate)
                fill(gate_tile, gate, by_lane)
                fill(skip_tile, skip * x * gate, by_lane)
            else:
                fill(skip_tile, skip * x, by_lane)
        gl.thread_barrier()
        # the next tile is on its way while the recurrence runs through this one
        row = first.to(gl.int64) + T
        here = (first + T + t_row < end)[:, None] & d_in[None, :]
        here_pro = (first + T + t_pro < end)[:, None]
        raw = gl.load(delta + row * delta_row, mask=here, other=0.0)
        x_raw = gl.load(u + row * u_row, mask=here, other=0.0)
        b_rows = gl.load(B + row * B_row, mask=here_pro, other=0.0)
        if OUTPUTS:
            c_rows = gl.load(C + row * C_row, mask=here_pro, other=0.0)
            if HAS_Z:
                z_raw = gl.load(z + row * z_row, mask=here, other=0.0)
        y_tile = y + (batch * length + first) * channels  # the rest of an offset fits 32 bits
        for several in range(0, T, AT_ONCE):
            for few in gl.static_range(0, AT_ONCE, LN):
                shares = ()  # of LN steps, what each lane's states add to y
                for i in gl.static_range(LN):
                    t = several + few + i
                    dt_now = dt_tile.index(t).load(over_d)
                    v_now = v_tile.index(t).load(over_d)
                    b = B_tile.index(t).load(over_n)
                    h = exp2(dt_now[:, None] * a2) * h + v_now[:, None] * b[None, :]
                    if OUTPUTS:
                        shares = shares + (sum_over_states(h * C_tile.index(t).load(over_n)[None, :], SN),)
                    else:
                        total += dt_now
                if OUTPUTS:
                    gate_here = gate_tile.index((several + few) // LN)
                    skip_here = skip_tile.index((several + few) // LN)
                    store_outputs(
                        y_tile, shares, gate_here, skip_here, several + few, end - first, channels, d_first, LN, HAS_Z
                    )
        first += T

    if OUTPUTS:
        if n_chunks == 1:  # otherwise the pass over the chunks has left the final state there
            gl.store(states + slot + batches.to(gl.int64) * channels * N + state_at, h, mask=inside)
    elif not KEEP:
        gl.store(states + slot + batches.to(gl.int64) * channels * N + state_at, h, mask=inside)
        gl.store(sums + (batch * n_chunks + c) * channels + d, total, mask=d < channels)


@gluon.jit
def store_outputs(y, shares, gate, skip, t, end, channels, d_first, LN: gl.constexpr, HAS_Z: gl.constexpr):
    # add up what the lanes of a channel have of LN steps from t on; lane i then finishes step t + i
    layout: gl.constexpr = shares[0].type.layout
    i = gl.arange(0, LN, layout=gl.SliceLayout(0, layout))[None, :]
    d = d_first + gl.arange(0, shares[0].shape[0], layout=gl.SliceLayout(1, layout))[:, None]
    now = exchange_halves(shares, i, 1, LN // 2, LN // 2)[0]
    if HAS_Z:
        now *= gate.permute((1, 0)).load(layout)
    now += skip.permute((1, 0)).load(layout)
    inside = (d < channels) & (t + i < end)
    gl.store(y + ((t + i) * channels + d), now.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_chunks", "batches"])
def pass_states(
    states,
    sums,
    A,
    initial,
    channels,
    n_chunks,
    batches,
    N: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # states (chunks + 1, B, D, N), in place: what every chunk adds becomes what holds between chunks. Forwards, entry
    # c + 1 is the state after chunk c; in reverse, entry c is the gradient of the state before chunk c
    size = N * channels
    blocks = (size + BLOCK - 1) // BLOCK
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = e < size
    a2 = tl.load(A + e, mask=inside, other=0.0) * LOG2E
    slot = batches.to(tl.int64) * size
    if REVERSE:
        states += n_chunks * slot + batch * size + e
        sums += (batch * n_chunks + n_chunks - 1) * channels + e // N
        towards = -1
    else:
        states += batch * size + e
        sums += batch * n_chunks * channels + e // N
        towards = 1

    h = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        h = tl.load(initial + batch * size + e, mask=inside, other=0.0)
    tl.store(states, h, mask=inside)
    first = 0
    while first < n_chunks:
        decays = ()
        added = ()
        for i in tl.static_range(UNROLL):
            k = (first + i).to(tl.int64) * towards
            here = inside & (first + i < n_chunks)
            decays = decays + (tl.exp2(tl.load(sums + k * channels, mask=here, other=0.0) * a2),)
            added = added + (tl.load(states + (k + towards) * slot, mask=here, other=0.0),)
        for i in tl.static_range(UNROLL):
            k = (first + i).to(tl.int64) * towards
            h = decays[i] * h + added[i]
            tl.store(states + (k + towards) * slot, h, mask=inside & (first + i < n_chunks))
        first += UNROLL
