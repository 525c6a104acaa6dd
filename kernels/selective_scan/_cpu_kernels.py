"""The loops of the CPU scan, compiled by Numba.

A task is a block of sixteen channels, of one group, of one piece of a sequence; a call does the tasks first to
last - 1, numbered piece by piece. All arguments are ints (addresses of float32 arrays, strides and sizes in elements);
an address of 0 means "not given". `pieces` is a table of PIECE int64 a row: item of the batch, first step, number of
steps, sequence, and the place of its first chunk among those kept for block 0.

u, delta, z, y are (batch, T, D) with strides `*_batch` and `*_step`, and 1; B and C come transposed, (batch, G, N, T),
or constant over time as (blocks, N, 16) with `*_constant` 1. What belongs to a block of channels has them as its last
axis of 16: A2 = A log2(e) (blocks, N, 16), the state (sequences, blocks, N, 16), the states before every chunk
(..., blocks, `kept_chunks`, N, 16).

Time is walked in chunks of CHUNK steps whose tiles live in L1. Inside a chunk each state index n runs over all its
steps with h in a register: the exponentials do not depend on h, so they overlap, and only one multiply-add a step is
serial. Lanes past the last channel compute on zeros and are never stored.

Letters: x input, dt step size, a = exp(dt A) decay, g = dL/dh, s the output before the gate, ds = dL/ds.
"""

from typing import Any

import numba

from mamba_seq.kernels._numba import compiled
from mamba_seq.kernels._simd import (
    LANES,
    LOG2E,
    exp2,
    floats,
    flush,
    fma,
    integers,
    lane_sum,
    load,
    load_part,
    njit,
    sigmoid,
    softplus,
    splat,
    store,
    store_part,
)

CHUNK = 64
"""Steps between two kept states; a row of sixteen floats a step makes a tile of 4 KB."""

# Tiles lie a little over 4 KB apart, the ones that are stored to below the ones that are read: a load that runs ahead
# of a store to the same offset inside a page would wait for it (measured: up to twice the time).
TILE = (CHUNK + 4) * LANES
SCRATCH = 8 * TILE + LANES
"""Floats of scratch memory a thread needs for the scans."""

PIECE = 5
"""Integers of a row of the table of pieces."""

STEP_SCRATCH = 4 * LANES
"""Floats of scratch memory a thread needs for a single step."""

LN2 = 0.6931471805599453


@compiled
def scan_forward(
    u: int,
    u_batch: int,
    u_step: int,
    delta: int,
    delta_batch: int,
    delta_step: int,
    z: int,
    z_batch: int,
    z_step: int,
    B: int,
    C: int,
    y: int,
    y_batch: int,
    y_step: int,
    A2: int,
    skip: int,
    bias: int,
    state: int,
    kept: int,
    kept_chunks: int,
    pieces: int,
    B_constant: int,
    C_constant: int,
    use_softplus: int,
    T: int,
    D: int,
    N: int,
    G: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Run T steps: write y, advance `state`, and write it before every chunk to `kept` where that is given."""
    width = D // G
    blocks = (width + LANES - 1) // LANES * G
    table = integers(pieces)
    for task in range(first_task, last_task):
        piece, k = task // blocks * PIECE, task % blocks
        b, start, length, sequence, kept_place = (
            table[piece],
            table[piece + 1],
            table[piece + 2],
            table[piece + 3],
            table[piece + 4],
        )
        group = k * G // blocks
        column = group * width + (k - group * (blocks // G)) * LANES
        lanes = min(LANES, (group + 1) * width - column)
        own = LANES * N * (sequence * blocks + k)
        u_ = floats(u + 4 * (b * u_batch + start * u_step + column))
        delta_ = floats(delta + 4 * (b * delta_batch + start * delta_step + column))
        z_ = floats(z + 4 * (b * z_batch + start * z_step + column))
        y_ = floats(y + 4 * (b * y_batch + start * y_step + column))
        in_time, in_block = (b * G + group) * N * T + start, LANES * N * k
        B_ = floats(B + 4 * (in_block if B_constant != 0 else in_time))
        C_ = floats(C + 4 * (in_block if C_constant != 0 else in_time))
        A2_, skip_, bias_ = floats(A2 + 4 * in_block), floats(skip + 4 * LANES * k), floats(bias + 4 * LANES * k)
        h_ = floats(state + 4 * own)
        kept_ = floats(kept + 4 * LANES * N * (kept_place + k * kept_chunks))
        s_, dtx_, dt_ = floats(scratch), floats(scratch + 4 * TILE), floats(scratch + 8 * TILE)
        spare = floats(scratch + 32 * TILE)
        for first in range(0, length, CHUNK):
            steps = min(CHUNK, length - first)
            for n in range(N):
                h = flush(load(h_, n * LANES))
                store(h_, n * LANES, h)
                if kept != 0:
                    store(kept_, (first // CHUNK * N + n) * LANES, h)
            for i in range(steps):
                t = first + i
                dt = load_part(delta_, t * delta_step, lanes, spare)
                if bias != 0:
                    dt = dt + load(bias_, 0)
                if use_softplus != 0:
                    dt = softplus(dt)
                x = load_part(u_, t * u_step, lanes, spare)
                store(dt_, i * LANES, dt)
                store(dtx_, i * LANES, dt * x)
                store(s_, i * LANES, x * load(skip_, 0) if skip != 0 else splat(0.0))
            for n in range(N):
                h = load(h_, n * LANES)
                A2n = load(A2_, n * LANES)
                if B_constant + C_constant == 0:  # a loop of its own: choosing inside costs a fifth of the time
                    for i in range(steps):
                        t = first + i
                        dtxB = load(dtx_, i * LANES) * splat(B_[n * T + t])
                        h = fma(exp2(load(dt_, i * LANES) * A2n), h, dtxB)
                        store(s_, i * LANES, fma(h, splat(C_[n * T + t]), load(s_, i * LANES)))
                else:
                    for i in range(steps):
                        t = first + i
                        dtxB = load(dtx_, i * LANES) * at(B_, B_constant, n, T, t)
                        h = fma(exp2(load(dt_, i * LANES) * A2n), h, dtxB)
                        store(s_, i * LANES, fma(h, at(C_, C_constant, n, T, t), load(s_, i * LANES)))
                store(h_, n * LANES, h)
            for i in range(steps):
                t = first + i
                s = load(s_, i * LANES)
                if z != 0:
                    gate = load_part(z_, t * z_step, lanes, spare)
                    s = s * (gate * sigmoid(gate))
                store_part(y_, t * y_step, s, lanes, spare)


@compiled
def scan_backward(
    dy: int,
    dy_batch: int,
    dy_step: int,
    u: int,
    u_batch: int,
    u_step: int,
    delta: int,
    delta_batch: int,
    delta_step: int,
    z: int,
    z_batch: int,
    z_step: int,
    B: int,
    C: int,
    A2: int,
    skip: int,
    bias: int,
    kept: int,
    kept_chunks: int,
    dstate: int,
    du: int,
    ddelta: int,
    dz: int,
    out_batch: int,
    dB: int,
    dC: int,
    dA: int,
    dskip: int,
    dbias: int,
    pieces: int,
    B_constant: int,
    C_constant: int,
    use_softplus: int,
    T: int,
    D: int,
    N: int,
    G: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Run T steps backwards: write du, ddelta, dz (batch, T, D), and add to each task's own dA, dskip and dbias.

    The steps of du, ddelta and dz are D apart, the items of the batch `out_batch`.
    `dstate` is dL/dh after the last step on entry and before the first on return. `kept` is from `scan_forward` for the
    same steps. dB and dC (batch, blocks, N, T) are the sums over the channels of each block; a constant one has a sum
    over time for every channel instead, (sequences, blocks, N, 16), to which is added.
    """
    width = D // G
    blocks = (width + LANES - 1) // LANES * G
    table = integers(pieces)
    for task in range(first_task, last_task):
        piece, k = task // blocks * PIECE, task % blocks
        b, start, length, sequence, kept_place = (
            table[piece],
            table[piece + 1],
            table[piece + 2],
            table[piece + 3],
            table[piece + 4],
        )
        group = k * G // blocks
        column = group * width + (k - group * (blocks // G)) * LANES
        lanes = min(LANES, (group + 1) * width - column)
        own = LANES * N * (sequence * blocks + k)
        dy_ = floats(dy + 4 * (b * dy_batch + start * dy_step + column))
        u_ = floats(u + 4 * (b * u_batch + start * u_step + column))
        delta_ = floats(delta + 4 * (b * delta_batch + start * delta_step + column))
        z_ = floats(z + 4 * (b * z_batch + start * z_step + column))
        in_time, in_block = (b * G + group) * N * T + start, LANES * N * k
        B_ = floats(B + 4 * (in_block if B_constant != 0 else in_time))
        C_ = floats(C + 4 * (in_block if C_constant != 0 else in_time))
        A2_, skip_, bias_ = floats(A2 + 4 * in_block), floats(skip + 4 * LANES * k), floats(bias + 4 * LANES * k)
        kept_, g_ = floats(kept + 4 * LANES * N * (kept_place + k * kept_chunks)), floats(dstate + 4 * own)
        out = 4 * (b * out_batch + start * D + column)
        du_, ddelta_, dz_ = floats(du + out), floats(ddelta + out), floats(dz + out)
        in_time = (b * blocks + k) * N * T + start
        dB_ = floats(dB + 4 * (own if B_constant != 0 else in_time))
        dC_ = floats(dC + 4 * (own if C_constant != 0 else in_time))
        row = 4 * LANES * (sequence * blocks + k)
        dA_, dskip_, dbias_ = floats(dA + 4 * own), floats(dskip + row), floats(dbias + row)
        s_, gB_, gA_ = floats(scratch), floats(scratch + 4 * TILE), floats(scratch + 8 * TILE)
        a_, ah_ = floats(scratch + 12 * TILE), floats(scratch + 16 * TILE)
        dt_, dtx_, ds_ = floats(scratch + 20 * TILE), floats(scratch + 24 * TILE), floats(scratch + 28 * TILE)
        spare = floats(scratch + 32 * TILE)
        chunks = (length + CHUNK - 1) // CHUNK
        for chunk in range(chunks - 1, -1, -1):
            first = chunk * CHUNK
            steps = min(CHUNK, length - first)
            for i in range(steps):
                t = first + i
                dt = load_part(delta_, t * delta_step, lanes, spare)
                if bias != 0:
                    dt = dt + load(bias_, 0)
                if use_softplus != 0:
                    dt = softplus(dt)
                x = load_part(u_, t * u_step, lanes, spare)
                ds = load_part(dy_, t * dy_step, lanes, spare)
                if z != 0:
                    gate = load_part(z_, t * z_step, lanes, spare)
                    ds = ds * (gate * sigmoid(gate))
                store(dt_, i * LANES, dt)
                store(dtx_, i * LANES, dt * x)
                store(ds_, i * LANES, ds)
                store(s_, i * LANES, x * load(skip_, 0) if skip != 0 else splat(0.0))
                store(gB_, i * LANES, splat(0.0))
                store(gA_, i * LANES, splat(0.0))
            for n in range(N):
                A2n = load(A2_, n * LANES)
                h = load(kept_, (chunk * N + n) * LANES)
                for i in range(steps):
                    a = exp2(load(dt_, i * LANES) * A2n)
                    ah = a * h
                    h = fma(load(dtx_, i * LANES), at(B_, B_constant, n, T, first + i), ah)
                    store(a_, i * LANES, a)
                    store(ah_, i * LANES, ah)
                    store(s_, i * LANES, fma(h, at(C_, C_constant, n, T, first + i), load(s_, i * LANES)))
                g = flush(load(g_, n * LANES))
                dAn, dBn, dCn = splat(0.0), splat(0.0), splat(0.0)
                for i in range(steps - 1, -1, -1):
                    t = first + i
                    Bt = at(B_, B_constant, n, T, t)
                    dtx, ds, ah = load(dtx_, i * LANES), load(ds_, i * LANES), load(ah_, i * LANES)
                    g = fma(ds, at(C_, C_constant, n, T, t), g)
                    if B_constant != 0:
                        dBn = fma(g, dtx, dBn)
                    else:
                        dB_[n * T + t] = lane_sum(g * dtx)
                    if C_constant != 0:
                        dCn = fma(ds, fma(dtx, Bt, ah), dCn)
                    else:
                        dC_[n * T + t] = lane_sum(ds * fma(dtx, Bt, ah))
                    gah = g * ah
                    dAn = fma(gah, load(dt_, i * LANES), dAn)
                    store(gB_, i * LANES, fma(g, Bt, load(gB_, i * LANES)))
                    store(gA_, i * LANES, fma(gah, A2n, load(gA_, i * LANES)))
                    g = g * load(a_, i * LANES)
                store(g_, n * LANES, g)
                store(dA_, n * LANES, load(dA_, n * LANES) + dAn)
                if B_constant != 0:
                    store(dB_, n * LANES, load(dB_, n * LANES) + dBn)
                if C_constant != 0:
                    store(dC_, n * LANES, load(dC_, n * LANES) + dCn)
            dskip_sum, dbias_sum = splat(0.0), splat(0.0)
            for i in range(steps):
                t = first + i
                x = load_part(u_, t * u_step, lanes, spare)
                ds, gB = load(ds_, i * LANES), load(gB_, i * LANES)
                dskip_sum = fma(ds, x, dskip_sum)
                dx = load(dt_, i * LANES) * gB
                if skip != 0:
                    dx = fma(ds, load(skip_, 0), dx)
                store_part(du_, t * D, dx, lanes, spare)
                ddt = fma(x, gB, load(gA_, i * LANES) * splat(numba.float32(LN2)))
                if use_softplus != 0:
                    before = load_part(delta_, t * delta_step, lanes, spare)
                    if bias != 0:
                        before = before + load(bias_, 0)
                    ddt = ddt * sigmoid(before)
                dbias_sum = dbias_sum + ddt
                store_part(ddelta_, t * D, ddt, lanes, spare)
                if z != 0:
                    gate = load_part(z_, t * z_step, lanes, spare)
                    share = sigmoid(gate)
                    slope = share * fma(gate, splat(1.0) - share, splat(1.0))
                    dgate = load_part(dy_, t * dy_step, lanes, spare) * load(s_, i * LANES) * slope
                    store_part(dz_, t * D, dgate, lanes, spare)
            store(dskip_, 0, load(dskip_, 0) + dskip_sum)
            store(dbias_, 0, load(dbias_, 0) + dbias_sum)


@compiled
def step_blocks(
    state: int,
    u: int,
    u_row: int,
    delta: int,
    delta_row: int,
    z: int,
    z_row: int,
    A: int,
    B: int,
    B_row: int,
    B_span: int,
    B_next: int,
    C: int,
    C_row: int,
    C_span: int,
    C_next: int,
    y: int,
    skip: int,
    bias: int,
    use_softplus: int,
    D: int,
    N: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Advance `state` (B, D, N), dense, by a single step.

    Every `B_span` channels share a row of B and are `B_next` floats before the next that do; C is the same.
    Lanes are channels for the step size and the gate, and states in between, so that nothing is transposed. `*_row` are
    strides over the batch; y is (B, D), contiguous; `scratch` holds STEP_SCRATCH floats.
    """
    h_, A_, B_, C_ = floats(state), floats(A), floats(B), floats(C)
    dt_, x_, s_, spare = floats(scratch), floats(scratch + 64), floats(scratch + 128), floats(scratch + 192)
    blocks = (D + LANES - 1) // LANES
    for task in range(first_task, last_task):
        b, d = task // blocks, task % blocks * LANES
        lanes = min(LANES, D - d)
        dt = load_part(floats(delta), b * delta_row + d, lanes, spare)
        if bias != 0:
            dt = dt + load_part(floats(bias), d, lanes, spare)
        if use_softplus != 0:
            dt = softplus(dt)
        x = load_part(floats(u), b * u_row + d, lanes, spare)
        store(dt_, 0, dt * splat(numba.float32(LOG2E)))
        store(x_, 0, dt * x)
        for lane in range(lanes):
            dt2, dtx, s = splat(dt_[lane]), splat(x_[lane]), splat(0.0)
            channel = d + lane
            B_at = b * B_row + (0 if B_next == 0 else channel // B_span * B_next)
            C_at = b * C_row + (0 if C_next == 0 else channel // C_span * C_next)
            for n in range(0, N, LANES):
                part = min(LANES, N - n)
                a = exp2(dt2 * load_part(A_, channel * N + n, part, spare))
                h = load_part(h_, (b * D + channel) * N + n, part, spare)
                h = fma(a, h, dtx * load_part(B_, B_at + n, part, spare))
                store_part(h_, (b * D + channel) * N + n, h, part, spare)
                s = fma(h, load_part(C_, C_at + n, part, spare), s)
            s_[lane] = lane_sum(s)
        out = load(s_, 0)
        if skip != 0:
            out = fma(x, load_part(floats(skip), d, lanes, spare), out)
        if z != 0:
            gate = load_part(floats(z), b * z_row + d, lanes, spare)
            out = out * (gate * sigmoid(gate))
        store_part(floats(y), b * D + d, out, lanes, spare)


@njit(forceinline=True)
def at(parameter: Any, constant: int, n: int, T: int, t: int) -> Any:
    """Return B or C of state n at step t for sixteen channels."""
    return load(parameter, n * LANES) if constant != 0 else splat(parameter[n * T + t])
