"""The forward kernels of the scan: summaries of chunks, passing them on, outputs. `triton.py` says how they fit
together.

One program owns BLOCK_D channels of one chunk of one batch item and walks through time with their states, a tile (N,
BLOCK_D), in registers. A lane owns a channel with all N states, so that the sum over N needs no exchange between
lanes. That layout is a consequence of how things are stored: A is passed transposed and states have D contiguous, and
Triton is kept from assuming alignment for them (`do_not_specialize_on_alignment`), which would give a lane four
channels and a quarter of the states, and a conversion of the state tile through shared memory at every step.

Time advances by groups of STEPS, whose loads go out together and whose step sizes and gates are computed side by
side: only the multiply-adds of the state depend on the step before. A chunk's last steps go one by one. Offsets
inside a chunk are 32 bits wide, those of chunks and batch items 64.
"""
# Triton's language is not quite Python: it has tuples but no unpacking into one, and its interpreter cannot count a
# `for` over a loaded bound, hence `while`
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import LOG2E, device_function, exp2, sigmoid
from mamba_seq.kernels.selective_scan._triton_tiles import load_projection, load_tile, locate, step_size, store_tile

SIZES = ["length", "channels", "chunk", "n_chunks", "kept_every"]
STRIDES = ["u_batch", "u_row", "delta_batch", "delta_row", "z_batch", "z_row"]


@triton.jit(do_not_specialize=SIZES + STRIDES, do_not_specialize_on_alignment=["u", "delta", "A", "states", "sums"])
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
):
    # sums (B, chunks, D) <- sum of step sizes; states (B, chunks + 1, N, D)[:, c + 1] <- end state from a zero start
    batch, c, d, d_row = locate(tl.program_id(0), n_chunks, channels, BLOCK_D)
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
        h, total = advance(
            t, h, total, u, delta, a2, B, step_bias, u_row, delta_row, N, N_PADDED, SOFTPLUS, STEPS
        )  # fmt: skip
        t += STEPS
    while t < steps:
        h, total = advance(t, h, total, u, delta, a2, B, step_bias, u_row, delta_row, N, N_PADDED, SOFTPLUS, 1)
        t += 1
    tl.store(sums + (batch * n_chunks + c) * channels + d, total, mask=d < channels)
    store_tile(states + (batch * (n_chunks + 1) + c + 1) * N * channels, h, d, channels, N, N_PADDED)


@device_function
def advance(
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
    SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
):
    # the state, and the sum of step sizes, STEPS steps later
    raws = ()
    xs = ()
    for i in tl.static_range(STEPS):
        raws = raws + (tl.load(delta + (t + i) * delta_row),)
        xs = xs + (tl.load(u + (t + i) * u_row),)
    dts = ()
    for i in tl.static_range(STEPS):
        dts = dts + (step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS),)
    for i in tl.static_range(STEPS):
        b = load_projection(B + (t + i) * N, N, N_PADDED)
        h = exp2(dts[i][None, :] * a2) * h + (dts[i] * xs[i].to(tl.float32))[None, :] * b[:, None]
        total += dts[i]
    return h, total


@triton.jit(do_not_specialize=SIZES)
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
):
    # states (B, chunks + 1, N, D), in place: what every chunk adds becomes what holds between chunks. Forwards, entry
    # c + 1 is the state after chunk c; in reverse, entry c is the gradient of the state before chunk c. `initial`
    # (B, N, D) goes in first.
    size = N * channels
    blocks = (size + BLOCK - 1) // BLOCK
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = e < size
    a2 = tl.load(A + e, mask=inside, other=0.0) * LOG2E
    if REVERSE:
        states += (batch * (n_chunks + 1) + n_chunks) * size + e
        sums += (batch * n_chunks + n_chunks - 1) * channels + e % channels
        towards = -1
    else:
        states += batch * (n_chunks + 1) * size + e
        sums += batch * n_chunks * channels + e % channels
        towards = 1

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
            k = (first + i).to(tl.int64) * towards
            here = inside & (first + i < n_chunks)
            decays = decays + (exp2(tl.load(sums + k * channels, mask=here, other=0.0) * a2),)
            added = added + (tl.load(states + (k + towards) * size, mask=here, other=0.0),)
        for i in tl.static_range(UNROLL):
            k = (first + i).to(tl.int64) * towards
            h = decays[i] * h + added[i]
            tl.store(states + (k + towards) * size, h, mask=inside & (first + i < n_chunks))
        first += UNROLL


@triton.jit(
    do_not_specialize=SIZES + STRIDES, do_not_specialize_on_alignment=["u", "delta", "z", "y", "A", "states", "kept"]
)
def outputs(
    y,
    states,
    kept,
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
    kept_every,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    # y (B, L, D) of one chunk, from the state before it, states (B, chunks + 1, N, D)[:, c]; on the way the state is
    # kept for the backward pass every kept_every steps, kept (B, ceil(L / kept_every), N, D)
    batch, c, d, d_row = locate(tl.program_id(0), n_chunks, channels, BLOCK_D)
    a2 = load_tile(A, d, channels, N, N_PADDED) * LOG2E
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + d_row)
    states += (batch * (n_chunks + 1) + c) * N * channels
    h = load_tile(states, d, channels, N, N_PADDED)

    start = c * chunk
    end = tl.minimum(start + chunk, length)
    while start < end:
        row = start.to(tl.int64)
        if KEEP:
            slot = batch * ((length + kept_every - 1) // kept_every) + start // kept_every
            store_tile(kept + slot * N * channels, h, d, channels, N, N_PADDED)
        u_here = u + batch * u_batch + row * u_row + d_row
        delta_here = delta + batch * delta_batch + row * delta_row + d_row
        z_here = z
        if HAS_Z:
            z_here = z + batch * z_batch + row * z_row + d_row
        y_here = y + (batch * length + row) * channels + d
        B_here = B + (batch * length + row) * N
        C_here = C + (batch * length + row) * N
        steps = tl.minimum(kept_every, end - start)
        full = steps // STEPS * STEPS
        t = 0
        while t < full:
            h = output_group(
                t, h, y_here, u_here, delta_here, a2, B_here, C_here, skip, z_here, step_bias,
                u_row, delta_row, z_row, channels, d < channels, N, N_PADDED, HAS_D, HAS_Z, SOFTPLUS, STEPS,
            )  # fmt: skip
            t += STEPS
        while t < steps:
            h = output_group(
                t, h, y_here, u_here, delta_here, a2, B_here, C_here, skip, z_here, step_bias,
                u_row, delta_row, z_row, channels, d < channels, N, N_PADDED, HAS_D, HAS_Z, SOFTPLUS, 1,
            )  # fmt: skip
            t += 1
        start += steps
    if n_chunks == 1:  # otherwise the pass over the chunks has left the final state there
        store_tile(states + N * channels, h, d, channels, N, N_PADDED)


@device_function
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
    SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
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
    for i in tl.static_range(STEPS):
        dts = dts + (step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS),)
    ys = ()
    for i in tl.static_range(STEPS):
        b = load_projection(B + (t + i) * N, N, N_PADDED)
        h = exp2(dts[i][None, :] * a2) * h + (dts[i] * xs[i].to(tl.float32))[None, :] * b[:, None]
        c = load_projection(C + (t + i) * N, N, N_PADDED)
        ys = ys + (tl.sum(h * c[:, None], axis=0),)
    for i in tl.static_range(STEPS):
        value = ys[i]
        if HAS_D:
            value += skip * xs[i].to(tl.float32)
        if HAS_Z:
            gate = gates[i].to(tl.float32)
            value *= gate * sigmoid(gate)
        tl.store(y + (t + i) * y_row, value.to(y.dtype.element_ty), mask=inside)
    return h
