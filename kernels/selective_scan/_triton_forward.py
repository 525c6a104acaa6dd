"""The forward kernels of the scan: summaries of chunks, passing them on, outputs. `triton.py` says how they fit
together.

One program owns BLOCK_D channels of one chunk of one sequence and walks through time with their states in registers, a
tile (N, BLOCK_D), or two where A is complex (see `_triton_tiles.py`). A lane owns a channel with all N states, so that
the sum over N needs no exchange between lanes. That layout is a consequence of how things are stored: A is passed
transposed and states have D contiguous, and Triton is kept from assuming alignment for them
(`do_not_specialize_on_alignment`), which would give a lane four channels and a quarter of the states, and a conversion
of the state tile through shared memory at every step.

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

from mamba_seq.kernels._triton_math import LOG2E, device_function, sigmoid
from mamba_seq.kernels.selective_scan._triton_tiles import (
    add_multiple,
    add_step,
    conjugate_product,
    decay,
    decay_over,
    dot,
    kept_slot,
    load_A,
    load_tiles,
    locate,
    no_steps,
    product,
    projection,
    row_of,
    step_size,
    store_tiles,
    zeros,
)

SIZES = ["length", "channels", "groups", "chunk", "n_chunks", "kept_every"]
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
    pieces,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    length,
    channels,
    groups,
    chunk,
    n_chunks,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PACKED: tl.constexpr,
    B_CONSTANT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    # sums (B, chunks, [2,] D) <- sum of step sizes; states (B, chunks + 1, [2,] N, D)[:, c + 1] <- end state from a
    # zero start
    piece, sequence, start, end, _block, group, d, end_d, d_row = locate(
        tl.program_id(0), pieces, length, channels, groups, chunk, n_chunks, BLOCK_D, PACKED
    )
    batch, _row = row_of(sequence, start, length, PACKED)
    a2 = load_A(A, d, end_d, channels, N, N_PADDED, PARTS)
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    steps = end - start
    full = steps // STEPS * STEPS
    u += batch * u_batch + start.to(tl.int64) * u_row + d_row
    delta += batch * delta_batch + start.to(tl.int64) * delta_row + d_row
    if B_CONSTANT:
        b = load_tiles(B, d, end_d, channels, N, N_PADDED, PARTS)
    else:
        b = B + ((batch * groups + group) * length + start) * (PARTS * N)

    h = zeros(PARTS, N_PADDED, BLOCK_D)
    total = no_steps(PARTS, BLOCK_D)
    t = 0
    while t < full:
        h, total = advance(
            t, h, total, u, delta, a2, b, step_bias, u_row, delta_row,
            N, N_PADDED, PARTS, B_CONSTANT, SOFTPLUS, STEPS,
        )  # fmt: skip
        t += STEPS
    while t < steps:
        h, total = advance(
            t, h, total, u, delta, a2, b, step_bias, u_row, delta_row,
            N, N_PADDED, PARTS, B_CONSTANT, SOFTPLUS, 1,
        )  # fmt: skip
        t += 1
    for p in tl.static_range(PARTS):
        tl.store(sums + (piece * PARTS + p) * channels + d, total[p], mask=d < end_d)
    states += (piece + sequence + 1) * (PARTS * N) * channels
    store_tiles(states, h, d, end_d, channels, N, N_PADDED, PARTS)


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
    PARTS: tl.constexpr,
    B_CONSTANT: tl.constexpr,
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
        dts = dts + (step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS, PARTS),)
    for i in tl.static_range(STEPS):
        b = projection(B, t + i, N, N_PADDED, PARTS, B_CONSTANT)
        h = product(decay(dts[i][None, :], a2, PARTS), h, PARTS)
        h = add_multiple(h, (dts[i] * xs[i].to(tl.float32))[None, :], b, PARTS)
        total = add_step(total, dts[i], PARTS)
    return h, total


@triton.jit(do_not_specialize=SIZES)
def pass_states(
    states,
    sums,
    A,
    initial,
    firsts,
    channels,
    n_chunks,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # states (B, chunks + 1, [2,] N, D), in place: what every chunk adds becomes what holds between chunks. Forwards,
    # entry c + 1 is the state after chunk c; in reverse, entry c is the gradient of the state before chunk c. `initial`
    # (B, [2,] N, D) goes in first. Packed sequences lie one behind the other, their first chunks are `firsts` (S+1,).
    size = N * channels
    blocks = (size + BLOCK - 1) // BLOCK
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = e < size
    a2 = (tl.load(A + e, mask=inside, other=0.0) * LOG2E,)
    if PARTS == 2:
        a2 = a2 + (tl.load(A + size + e, mask=inside, other=0.0),)
    if PACKED:
        chunk_0 = tl.load(firsts + sequence).to(tl.int64)
        chunks = (tl.load(firsts + sequence + 1) - chunk_0).to(tl.int32)
    else:
        chunk_0 = sequence * n_chunks
        chunks = n_chunks
    states += (chunk_0 + sequence) * (PARTS * size) + e
    sums += chunk_0 * (PARTS * channels) + e % channels
    towards = 1
    if REVERSE:
        states += chunks.to(tl.int64) * (PARTS * size)
        sums += (chunks.to(tl.int64) - 1) * (PARTS * channels)
        towards = -1

    h = ()
    for p in tl.static_range(PARTS):
        part = tl.zeros([BLOCK], tl.float32)
        if HAS_INITIAL:
            part = tl.load(initial + (sequence * PARTS + p) * size + e, mask=inside, other=0.0)
        tl.store(states + p * size, part, mask=inside)
        h = h + (part,)
    first = 0
    while first < chunks:
        # the loads of a group go out together: none of them waits for the recurrence
        decays = ()
        added = ()
        for i in tl.static_range(UNROLL):
            k = (first + i).to(tl.int64) * towards
            here = inside & (first + i < chunks)
            total = ()
            new = ()
            for p in tl.static_range(PARTS):
                total = total + (tl.load(sums + (k * PARTS + p) * channels, mask=here, other=0.0),)
                new = new + (tl.load(states + ((k + towards) * PARTS + p) * size, mask=here, other=0.0),)
            decays = decays + (decay_over(total, a2, PARTS),)
            added = added + (new,)
        for i in tl.static_range(UNROLL):
            k = (first + i).to(tl.int64) * towards
            if REVERSE:
                h = add_multiple(conjugate_product(decays[i], h, PARTS), 1.0, added[i], PARTS)
            else:
                h = add_multiple(product(decays[i], h, PARTS), 1.0, added[i], PARTS)
            for p in tl.static_range(PARTS):
                where = states + ((k + towards) * PARTS + p) * size
                tl.store(where, h[p], mask=inside & (first + i < chunks))
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
    pieces,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    length,
    channels,
    groups,
    chunk,
    n_chunks,
    kept_every,
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
    KEEP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    # y (B, L, D) of one chunk, from the state before it, states (B, chunks + 1, [2,] N, D)[:, c]; on the way the state
    # is kept for the backward pass every kept_every steps, kept (B, ceil(L / kept_every), [2,] N, D)
    piece, sequence, start, end, _block, group, d, end_d, d_row = locate(
        tl.program_id(0), pieces, length, channels, groups, chunk, n_chunks, BLOCK_D, PACKED
    )
    batch, row = row_of(sequence, start, length, PACKED)
    a2 = load_A(A, d, end_d, channels, N, N_PADDED, PARTS)
    step_bias = 0.0
    if HAS_BIAS:
        step_bias = tl.load(bias + d_row)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + d_row)
    states += (piece + sequence) * (PARTS * N) * channels
    h = load_tiles(states, d, end_d, channels, N, N_PADDED, PARTS)

    here = start.to(tl.int64)
    u += batch * u_batch + here * u_row + d_row
    delta += batch * delta_batch + here * delta_row + d_row
    if HAS_Z:
        z += batch * z_batch + here * z_row + d_row
    y += row * channels + d
    if B_CONSTANT:
        b = load_tiles(B, d, end_d, channels, N, N_PADDED, PARTS)
    else:
        b = B + ((batch * groups + group) * length + here) * (PARTS * N)
    if C_CONSTANT:
        c = load_tiles(C, d, end_d, channels, N, N_PADDED, PARTS)
    else:
        c = C + ((batch * groups + group) * length + here) * (PARTS * N)
    if KEEP:
        kept += kept_slot(piece, sequence, start, length, kept_every, PACKED) * (PARTS * N) * channels

    left = end - start
    while left > 0:
        if KEEP:
            store_tiles(kept, h, d, end_d, channels, N, N_PADDED, PARTS)
            kept += PARTS * N * channels
        steps = tl.minimum(kept_every, left)
        full = steps // STEPS * STEPS
        t = 0
        while t < full:
            h = output_group(
                t, h, y, u, delta, a2, b, c, skip, z, step_bias, u_row, delta_row, z_row, channels, d < end_d,
                N, N_PADDED, PARTS, B_CONSTANT, C_CONSTANT, HAS_D, HAS_Z, SOFTPLUS, STEPS,
            )  # fmt: skip
            t += STEPS
        while t < steps:
            h = output_group(
                t, h, y, u, delta, a2, b, c, skip, z, step_bias, u_row, delta_row, z_row, channels, d < end_d,
                N, N_PADDED, PARTS, B_CONSTANT, C_CONSTANT, HAS_D, HAS_Z, SOFTPLUS, 1,
            )  # fmt: skip
            t += 1
        left -= steps
        far = steps.to(tl.int64)
        u += far * u_row
        delta += far * delta_row
        if HAS_Z:
            z += far * z_row
        y += far * channels
        if not B_CONSTANT:
            b += far * (PARTS * N)
        if not C_CONSTANT:
            c += far * (PARTS * N)
    if n_chunks == 1:  # otherwise the pass over the chunks has left the final state there
        store_tiles(states + PARTS * N * channels, h, d, end_d, channels, N, N_PADDED, PARTS)


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
    PARTS: tl.constexpr,
    B_CONSTANT: tl.constexpr,
    C_CONSTANT: tl.constexpr,
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
        dts = dts + (step_size(raws[i].to(tl.float32) + step_bias, SOFTPLUS, PARTS),)
    ys = ()
    for i in tl.static_range(STEPS):
        b = projection(B, t + i, N, N_PADDED, PARTS, B_CONSTANT)
        h = product(decay(dts[i][None, :], a2, PARTS), h, PARTS)
        h = add_multiple(h, (dts[i] * xs[i].to(tl.float32))[None, :], b, PARTS)
        c = projection(C, t + i, N, N_PADDED, PARTS, C_CONSTANT)
        ys = ys + (dot(h, c, PARTS),)
    for i in tl.static_range(STEPS):
        value = ys[i]
        if HAS_D:
            value += skip * xs[i].to(tl.float32)
        if HAS_Z:
            gate = gates[i].to(tl.float32)
            value *= gate * sigmoid(gate)
        tl.store(y + (t + i) * y_row, value.to(y.dtype.element_ty), mask=inside)
    return h
