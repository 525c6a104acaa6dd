"""The forward kernels of the scan: summaries of chunks, passing them on, outputs. `triton.py` says how they fit together.

One program owns BLOCK_D channels of one chunk of one batch item and walks through time with their states, a tile
(N, BLOCK_D), in registers. A lane owns a channel with all N states, so that the sum over N needs no exchange between
lanes. That layout is a consequence of how things are stored: A is passed transposed and states have D contiguous, and
Triton is kept from assuming alignment for them (`do_not_specialize_on_alignment`), which would give a lane four channels
and a quarter of the states, and a conversion of the state tile through shared memory at every step.

Time advances by groups of STEPS, whose loads go out together and whose step sizes and gates are computed side by side:
only the multiply-adds of the state depend on the step before. A chunk's last steps go one by one.
"""

import triton
import triton.language as tl

from mamba_seq.kernels.selective_scan._triton_math import (
    LOG2E,
    exp2,
    load_projection,
    load_tile,
    sigmoid,
    step_size,
    store_tile,
)


@triton.jit(do_not_specialize_on_alignment=["u", "delta", "A", "states", "sums"])
def chunk_summaries(
    u,
    delta,
    A,
    B,
    bias,
    states,
    sums,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    length,
    channels,
    chunk,
    n_chunks,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    # sums (B, chunks, D) <- sum of the step sizes; states (B, chunks + 1, N, D)[:, c + 1] <- end state from a zero start
    batch, c, d, d_row = locate(n_chunks, channels, BLOCK_D)
    a2 = load_tile(A, d, channels, N, N_PADDED) * LOG2E
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    start = c * chunk
    steps = tl.minimum(chunk, length - start)
    full = steps // STEPS * STEPS
    u += batch * u_batch + start.to(tl.int64) * u_row + d_row
    delta += batch * delta_batch + start.to(tl.int64) * delta_row + d_row
    B += (batch * length + start) * N

    h = tl.zeros([N_PADDED, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)
    t = 0
    while t < full:
        h, total = summarise(
            t,
            h,
            total,
            u,
            delta,
            a2,
            B,
            step_bias,
            u_row,
            delta_row,
            N,
            N_PADDED,
            HAS_BIAS,
            SOFTPLUS,
            STEPS,
            APPROXIMATE,
        )
        t += STEPS
    while t < steps:
        h, total = summarise(
            t, h, total, u, delta, a2, B, step_bias, u_row, delta_row, N, N_PADDED, HAS_BIAS, SOFTPLUS, 1, APPROXIMATE
        )
        t += 1
    tl.store(sums + (batch * n_chunks + c) * channels + d, total, mask=d < channels)
    store_tile(states + (batch * (n_chunks + 1) + c + 1) * N * channels, h, d, channels, N, N_PADDED)


@triton.jit
def summarise(
    t,
    h,
    total,
    u,
    delta,
    a2,
    B,
    step_bias,
    u_row,
    delta_row,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    dts = ()
    inputs = ()
    for i in tl.static_range(STEPS):
        raw = tl.load(delta + (t + i) * delta_row).to(tl.float32)
        x = tl.load(u + (t + i) * u_row).to(tl.float32)
        dt = step_size(raw, step_bias, HAS_BIAS, SOFTPLUS, APPROXIMATE)
        dts = dts + (dt,)
        inputs = inputs + (dt * x,)
    for i in tl.static_range(STEPS):
        b = load_projection(B + (t + i) * N, N, N_PADDED)
        h = exp2(dts[i][None, :] * a2, APPROXIMATE) * h + inputs[i][None, :] * b[:, None]
        total += dts[i]
    return h, total


@triton.jit
def pass_states(
    states,
    sums,
    A,
    initial,
    channels,
    n_chunks,
    N: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    # states (B, chunks + 1, N, D): what chunks add becomes what holds between them, in place. Forwards, entry c + 1 is the
    # state after chunk c; in reverse, entry c is the gradient of the state before chunk c. `initial` (B, N, D) goes first.
    size = N * channels
    blocks = tl.cdiv(size, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = e < size
    a2 = tl.load(A + e, mask=inside, other=0.0) * LOG2E
    # walk upwards from the first entry or downwards from the last
    edge = 0
    after = 1
    if REVERSE:
        edge = n_chunks
        after = -1
    states += (batch * (n_chunks + 1) + edge) * size + e
    sums += (batch * n_chunks + tl.maximum(edge - 1, 0)) * channels + e % channels

    h = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        h = tl.load(initial + batch * size + e, mask=inside, other=0.0)
    tl.store(states, h, mask=inside)
    first = 0
    while first < n_chunks:
        # the loads of a group go out together: none of them waits for the recurrence
        decays = ()
        added = ()
        for i in tl.static_range(UNROLL):
            k = (first + i).to(tl.int64) * after
            here = inside & (first + i < n_chunks)
            decays = decays + (exp2(tl.load(sums + k * channels, mask=here, other=0.0) * a2, APPROXIMATE),)
            added = added + (tl.load(states + (k + after) * size, mask=here, other=0.0),)
        for i in tl.static_range(UNROLL):
            k = (first + i).to(tl.int64) * after
            h = decays[i] * h + added[i]
            tl.store(states + (k + after) * size, h, mask=inside & (first + i < n_chunks))
        first += UNROLL


@triton.jit(do_not_specialize_on_alignment=["u", "delta", "z", "y", "A", "states"])
def outputs(
    y,
    states,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    length,
    channels,
    chunk,
    n_chunks,
    chunks_a_program,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STORE_STATES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    # y of one chunk, from the state before it; or of several chunks one after another, storing the state after each
    batch, part, d, d_row = locate(tl.cdiv(n_chunks, chunks_a_program), channels, BLOCK_D)
    a2 = load_tile(A, d, channels, N, N_PADDED) * LOG2E
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + d_row)

    first_chunk = part * chunks_a_program
    states += (batch * (n_chunks + 1) + first_chunk) * N * channels
    h = load_tile(states, d, channels, N, N_PADDED)
    c = first_chunk
    while c < tl.minimum(first_chunk + chunks_a_program, n_chunks):
        start = c * chunk
        steps = tl.minimum(chunk, length - start)
        full = steps // STEPS * STEPS
        start64 = start.to(tl.int64)
        u_here = u + batch * u_batch + start64 * u_row + d_row
        delta_here = delta + batch * delta_batch + start64 * delta_row + d_row
        z_here = z
        if HAS_Z:
            z_here = z + batch * z_batch + start64 * z_row + d_row
        y_here = y + (batch * length + start64) * channels + d
        B_here = B + (batch * length + start64) * N
        C_here = C + (batch * length + start64) * N
        t = 0
        while t < full:
            h = output_group(
                t, h, y_here, u_here, delta_here, a2, B_here, C_here, skip, z_here, step_bias, u_row, delta_row, z_row,
                channels, d < channels, N, N_PADDED, HAS_D, HAS_Z, HAS_BIAS, SOFTPLUS, STEPS, APPROXIMATE,
            )  # fmt: skip
            t += STEPS
        while t < steps:
            h = output_group(
                t, h, y_here, u_here, delta_here, a2, B_here, C_here, skip, z_here, step_bias, u_row, delta_row, z_row,
                channels, d < channels, N, N_PADDED, HAS_D, HAS_Z, HAS_BIAS, SOFTPLUS, 1, APPROXIMATE,
            )  # fmt: skip
            t += 1
        if STORE_STATES:
            states += N * channels
            store_tile(states, h, d, channels, N, N_PADDED)
        c += 1


@triton.jit
def output_group(
    t,
    h,
    y,
    u,
    delta,
    a2,
    B,
    C,
    skip,
    z,
    step_bias,
    u_row,
    delta_row,
    z_row,
    y_row,
    inside,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    raws = ()
    xs = ()
    gates = ()
    for i in tl.static_range(STEPS):
        raws = raws + (tl.load(delta + (t + i) * delta_row),)
        xs = xs + (tl.load(u + (t + i) * u_row),)
        if HAS_Z:
            gates = gates + (tl.load(z + (t + i) * z_row),)
    dts = ()
    inputs = ()
    for i in tl.static_range(STEPS):
        dt = step_size(raws[i].to(tl.float32), step_bias, HAS_BIAS, SOFTPLUS, APPROXIMATE)
        dts = dts + (dt,)
        inputs = inputs + (dt * xs[i].to(tl.float32),)
    ys = ()
    for i in tl.static_range(STEPS):
        b = load_projection(B + (t + i) * N, N, N_PADDED)
        h = exp2(dts[i][None, :] * a2, APPROXIMATE) * h + inputs[i][None, :] * b[:, None]
        c = load_projection(C + (t + i) * N, N, N_PADDED)
        ys = ys + (tl.sum(h * c[:, None], axis=0),)
    for i in tl.static_range(STEPS):
        value = ys[i]
        if HAS_D:
            value += skip * xs[i].to(tl.float32)
        if HAS_Z:
            gate = gates[i].to(tl.float32)
            value *= gate * sigmoid(gate, APPROXIMATE)
        tl.store(y + (t + i) * y_row, value.to(y.dtype.element_ty), mask=inside)
    return h


@triton.jit
def locate(parts, channels, BLOCK_D: tl.constexpr):
    # program -> batch item (int64: it multiplies strides), part of the sequence, channels, and channels clamped for loads
    # of rows, which then need no mask; neighbours share the rows of B and C
    blocks = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = (program // blocks) % parts
    batch = (program // (blocks * parts)).to(tl.int64)
    return batch, part, d, tl.minimum(d, channels - 1)
