"""What the kernels of the scan share: who works on what, rows of B and C, tiles of states, sums over lanes."""
# mypy: ignore-errors

import triton.language as tl

from mamba_seq.kernels._triton_math import device_function, softplus

LANES = tl.constexpr(32)


@device_function
def step_size(raw, SOFTPLUS: tl.constexpr):
    # raw is delta with its bias
    if SOFTPLUS:
        return softplus(raw)
    else:
        return raw


@device_function
def locate(program, parts, channels, BLOCK_D: tl.constexpr):
    # program -> batch item (int64: it multiplies strides), part of the sequence, channels, and channels clamped for
    # loads of rows, which then need no mask. Neighbours read the same rows of B and C.
    blocks = (channels + BLOCK_D - 1) // BLOCK_D
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = (program // blocks) % parts
    batch = (program // (blocks * parts)).to(tl.int64)
    return batch, part, d, tl.minimum(d, channels - 1)


@device_function
def load_projection(pointer, N: tl.constexpr, N_PADDED: tl.constexpr):
    # the row of B or C at one step, the same for all lanes: float32 and contiguous, so it arrives in 16-byte loads
    n = tl.arange(0, N_PADDED)
    if N == N_PADDED:
        return tl.load(pointer + n)
    else:
        return tl.load(pointer + n, mask=n < N, other=0.0)


@device_function
def load_tile(pointer, d, channels, N: tl.constexpr, N_PADDED: tl.constexpr):
    # a tile (N, BLOCK_D) of A or of a state, both stored with D contiguous; zero outside. The channels must come as
    # they are, not clamped: that they are contiguous is what decides the layout of the tile
    n = tl.arange(0, N_PADDED)
    where = pointer + n[:, None] * channels + d[None, :]
    return tl.load(where, mask=(n < N)[:, None] & (d < channels)[None, :], other=0.0)


@device_function
def store_tile(pointer, tile, d, channels, N: tl.constexpr, N_PADDED: tl.constexpr):
    n = tl.arange(0, N_PADDED)
    where = pointer + n[:, None] * channels + d[None, :]
    tl.store(where, tile, mask=(n < N)[:, None] & (d < channels)[None, :])


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
