"""What the kernels of the scan share: who works on what, and numbers and tiles of one or two parts.

Numbers are tuples of PARTS parts: one where A is real, real and imaginary part where it is complex. So a state is one
tile or two, and the kernels are written once. C comes as 2 conj(C) then: sum over parts of C h is 2 Re(C h), and all
that tells complex from real is the decay and the two products below.
"""
# Triton's language has tuples but no unpacking into one
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton.language as tl

from mamba_seq.kernels._triton_math import (
    LN2,
    LOG2E,
    device_function,
    exp2,
    precise_softplus,
    softplus,
    steady_exp2,
    turn,
    unbiased_exp2,
)

LANES = tl.constexpr(32)


@device_function
def step_size(raw, SOFTPLUS: tl.constexpr, PARTS: tl.constexpr):
    # raw is delta with its bias
    if not SOFTPLUS:
        return raw
    elif PARTS == 1:
        return softplus(raw)
    else:
        return precise_softplus(raw)


@device_function
def locate(
    program, pieces, length, channels, groups, chunk, n_chunks, BLOCK_D: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    # program -> piece of a sequence, which sequence (int64: both multiply strides) and steps; block of channels, its
    # group, its channels, the end of the group, and channels clamped for loads of rows, which then need no mask.
    # Neighbours read the same rows of B and C; no block reaches over two groups.
    width = channels // groups
    blocks_a_group = (width + BLOCK_D - 1) // BLOCK_D
    block = program % (blocks_a_group * groups)
    piece = program // (blocks_a_group * groups)
    group = block // blocks_a_group
    d = group * width + (block % blocks_a_group) * BLOCK_D + tl.arange(0, BLOCK_D)
    end_d = (group + 1) * width
    if PACKED:
        sequence = tl.load(pieces + piece * 3)
        start = tl.load(pieces + piece * 3 + 1)
        end = tl.load(pieces + piece * 3 + 2)
    else:
        sequence = piece // n_chunks
        start = (piece % n_chunks) * chunk
        end = tl.minimum(start + chunk, length)
    return (
        piece.to(tl.int64),
        sequence.to(tl.int64),
        start,
        end,
        block,
        group,
        d,
        end_d,
        tl.minimum(d, end_d - 1),
    )


@device_function
def row_of(sequence, start, length, PACKED: tl.constexpr):
    # batch item, and the row of `start` among the rows of all of them (int64)
    if PACKED:
        return sequence * 0, start.to(tl.int64)
    else:
        return sequence, sequence * length + start


@device_function
def kept_slot(piece, sequence, start, length, kept_every, PACKED: tl.constexpr):
    # where the state before `start` is kept, and behind it those of the piece: a packed piece may begin anywhere, and
    # ceil(steps / kept_every) of it never reach into the slots of the next
    if PACKED:
        return start // kept_every + piece
    else:
        return sequence * ((length + kept_every - 1) // kept_every) + start // kept_every


@device_function
def zeros(COUNT: tl.constexpr, N_PADDED: tl.constexpr, BLOCK_D: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros([N_PADDED, BLOCK_D], tl.float32),)
    return tiles


@device_function
def load_tiles(pointer, d, end_d, channels, N: tl.constexpr, N_PADDED: tl.constexpr, COUNT: tl.constexpr):
    # tiles (N, BLOCK_D) of A or of a state, stored (COUNT, N, D); zero outside. The channels must come as they are, not
    # clamped: that they are contiguous is what decides the layout of the tile
    n = tl.arange(0, N_PADDED)
    where = pointer + n[:, None] * channels + d[None, :]
    tiles = ()
    for k in tl.static_range(COUNT):
        tile = tl.load(where + k * N * channels, mask=(n < N)[:, None] & (d < end_d)[None, :], other=0.0)
        tiles = tiles + (tile,)
    return tiles


@device_function
def store_tiles(pointer, tiles, d, end_d, channels, N: tl.constexpr, N_PADDED: tl.constexpr, COUNT: tl.constexpr):
    n = tl.arange(0, N_PADDED)
    where = pointer + n[:, None] * channels + d[None, :]
    for k in tl.static_range(COUNT):
        tl.store(where + k * N * channels, tiles[k], mask=(n < N)[:, None] & (d < end_d)[None, :])


@device_function
def load_A(A, d, end_d, channels, N: tl.constexpr, N_PADDED: tl.constexpr, PARTS: tl.constexpr):
    # as `decay` wants it: Re(A) log2(e), and Im(A)
    parts = load_tiles(A, d, end_d, channels, N, N_PADDED, PARTS)
    if PARTS == 1:
        return (parts[0] * LOG2E,)
    else:
        return (parts[0] * LOG2E, parts[1])


@device_function
def projection(B, t, N: tl.constexpr, N_PADDED: tl.constexpr, PARTS: tl.constexpr, CONSTANT: tl.constexpr):
    # B or C at step t. One row for all lanes: float32 and contiguous, so it arrives in 16-byte loads; where it is
    # constant over time, tiles that are at hand
    if CONSTANT:
        return B
    else:
        n = tl.arange(0, N_PADDED)
        parts = ()
        for p in tl.static_range(PARTS):
            if N == N_PADDED:
                part = tl.load(B + (t * PARTS + p) * N + n)
            else:
                part = tl.load(B + (t * PARTS + p) * N + n, mask=n < N, other=0.0)
            parts = parts + (part[:, None],)
        return parts


@device_function
def decay(dt, a2, PARTS: tl.constexpr):
    # exp(dt A)
    if PARTS == 1:
        return (exp2(dt * a2[0]),)
    else:
        size = unbiased_exp2(dt * a2[0])
        cosine, sine = turn(dt, a2[1])
        return (size * cosine, size * sine)


@device_function
def product(x, y, PARTS: tl.constexpr):
    if PARTS == 1:
        return (x[0] * y[0],)
    else:
        return (x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0])


@device_function
def conjugate_product(x, y, PARTS: tl.constexpr):
    # conj(x) y: how a gradient (dL/dRe + i dL/dIm) goes back through a product
    if PARTS == 1:
        return (x[0] * y[0],)
    else:
        return (x[0] * y[0] + x[1] * y[1], x[0] * y[1] - x[1] * y[0])


@device_function
def add_multiple(x, factor, y, PARTS: tl.constexpr):
    # x + factor y, with a real factor
    total = ()
    for p in tl.static_range(PARTS):
        total = total + (x[p] + factor * y[p],)
    return total


@device_function
def dot(x, y, PARTS: tl.constexpr):
    # over the states and their parts
    if PARTS == 1:
        return tl.sum(x[0] * y[0], axis=0)
    else:
        return tl.sum(x[0] * y[0] + x[1] * y[1], axis=0)


@device_function
def dot_A(x, a2, PARTS: tl.constexpr):
    if PARTS == 1:
        return LN2 * tl.sum(x[0] * a2[0], axis=0)
    else:
        return tl.sum(x[0] * a2[0] * LN2 + x[1] * a2[1], axis=0)


@device_function
def no_steps(PARTS: tl.constexpr, BLOCK_D: tl.constexpr):
    # a sum of step sizes; beside complex A, what rounding took from it too, for the angle over a whole chunk
    total = ()
    for _ in tl.static_range(PARTS):
        total = total + (tl.zeros([BLOCK_D], tl.float32),)
    return total


@device_function
def add_step(total, dt, PARTS: tl.constexpr):
    if PARTS == 1:
        return (total[0] + dt,)
    else:
        longer = total[0] + dt
        came = longer - total[0]
        return (longer, total[1] + ((total[0] - (longer - came)) + (dt - came)))


@device_function
def decay_over(total, a2, PARTS: tl.constexpr):
    # exp(A times a sum of step sizes)
    if PARTS == 1:
        return (steady_exp2(total[0] * a2[0]),)
    else:
        over = decay(total[0], a2, PARTS)
        angle = total[1] * a2[1]
        return (over[0] - angle * over[1], over[1] + angle * over[0])


@device_function
def store_sums_over_lanes(pointer, x, y, N_PADDED: tl.constexpr):
    """Store the sums over lanes of x (N, 32) and y (N, 32) at pointer (2, N).

    Each exchange halves the rows that a lane works on: lanes with the mask's bit keep one half and send the other.
    That is 31 exchanges for 32 rows where a sum a row would take 160. At the end a lane's number says which row it
    holds.
    """
    lane = tl.arange(0, LANES)
    for k in tl.static_range(5):
        mask = 16 >> k
        upper = ((lane & mask) != 0)[None, :]
        if k == 0:
            kept = tl.where(upper, y, x)
            sent = tl.where(upper, x, y)
        else:
            if kept.shape[0] > 1:
                low, high = tl.split(tl.permute(tl.reshape(kept, [2, kept.shape[0] // 2, LANES]), [1, 2, 0]))
                kept = tl.where(upper, high, low)
                sent = tl.where(upper, low, high)
            else:
                sent = kept
        kept += tl.gather(sent, tl.broadcast_to((lane ^ mask)[None, :], sent.shape), axis=1)
    which = lane // 16
    if N_PADDED >= 16:
        row = tl.arange(0, N_PADDED // 16)
        n = (lane % 16)[None, :] * (N_PADDED // 16) + row[:, None]
        tl.store(pointer + which[None, :] * N_PADDED + n, kept)
    else:
        SHARERS: tl.constexpr = 16 // N_PADDED
        n = ((lane % 16) // SHARERS)[None, :]
        tl.store(pointer + which[None, :] * N_PADDED + n, kept, mask=(lane % SHARERS == 0)[None, :])
