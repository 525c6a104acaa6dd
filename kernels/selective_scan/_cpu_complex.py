"""The loops of the CPU scan for complex A, B, C and state; what `_cpu_kernels.py` says holds here too.

A complex number is two rows of real ones, first the real part, then the imaginary: where `_cpu_kernels.py` has N rows,
these kernels have 2 N. A2 is Re(A) log2(e) and Im(A). A gradient is dL/dRe + i dL/dIm, as autograd has it, so
the backward pass is that of the real numbers: with g = dL/dh, g_(t-1) = conj(a_t) g_t.
"""

from typing import Any

import numba

from mamba_seq.kernels._numba import compiled
from mamba_seq.kernels._simd import (
    LANES,
    exp2,
    floats,
    flush,
    fma,
    integers,
    lane_sum,
    load,
    load_part,
    minus_abs,
    nearest,
    njit,
    sigmoid,
    sin_cos,
    softplus,
    splat,
    store,
    store_part,
    unless_beyond,
)
from mamba_seq.kernels.selective_scan._cpu_kernels import CHUNK, LN2, PIECE, TILE, at

COMPLEX_SCRATCH = 10 * TILE + LANES
"""Floats of scratch memory a thread needs."""

QUARTER = 1.5707963267948966  # of a turn, in radians
QUARTER_ROUNDED = 1.5707963705062866  # to float32
FARTHEST = 4194304.0
"""Radians a step from which on an angle is taken for 0: a rounding of the step size is a quarter of a radian there."""


@compiled
def complex_forward(
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
    R, width = 2 * N, D // G
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
        own = LANES * R * (sequence * blocks + k)
        u_ = floats(u + 4 * (b * u_batch + start * u_step + column))
        delta_ = floats(delta + 4 * (b * delta_batch + start * delta_step + column))
        z_ = floats(z + 4 * (b * z_batch + start * z_step + column))
        y_ = floats(y + 4 * (b * y_batch + start * y_step + column))
        in_time, in_block = (b * G + group) * R * T + start, LANES * R * k
        B_ = floats(B + 4 * (in_block if B_constant != 0 else in_time))
        C_ = floats(C + 4 * (in_block if C_constant != 0 else in_time))
        A2_, skip_, bias_ = floats(A2 + 4 * in_block), floats(skip + 4 * LANES * k), floats(bias + 4 * LANES * k)
        h_ = floats(state + 4 * own)
        kept_ = floats(kept + 4 * LANES * R * (kept_place + k * kept_chunks))
        s_, dtx_, dt_ = floats(scratch), floats(scratch + 4 * TILE), floats(scratch + 8 * TILE)
        spare = floats(scratch + 32 * TILE)
        for first in range(0, length, CHUNK):
            steps = min(CHUNK, length - first)
            for row in range(R):
                h = flush(load(h_, row * LANES))
                store(h_, row * LANES, h)
                if kept != 0:
                    store(kept_, (first // CHUNK * R + row) * LANES, h)
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
            for n in range(0, R, 2):
                h_re, h_im = load(h_, n * LANES), load(h_, (n + 1) * LANES)
                A2_re, A2_im = load(A2_, n * LANES), load(A2_, (n + 1) * LANES)
                longest = splat(numba.float32(FARTHEST)) / A2_im
                for i in range(steps):
                    t = first + i
                    dt, dtx = load(dt_, i * LANES), load(dtx_, i * LANES)
                    a_re, a_im = _decay(dt, unless_beyond(dt, dt, longest), A2_re, A2_im)
                    ah_re, ah_im = a_re * h_re - a_im * h_im, a_re * h_im + a_im * h_re
                    h_re = fma(dtx, at(B_, B_constant, n, T, t), ah_re)
                    h_im = fma(dtx, at(B_, B_constant, n + 1, T, t), ah_im)
                    C_re, C_im = at(C_, C_constant, n, T, t), at(C_, C_constant, n + 1, T, t)
                    s = h_re * C_re - h_im * C_im
                    store(s_, i * LANES, fma(splat(2.0), s, load(s_, i * LANES)))
                store(h_, n * LANES, h_re)
                store(h_, (n + 1) * LANES, h_im)
            for i in range(steps):
                t = first + i
                s = load(s_, i * LANES)
                if z != 0:
                    gate = load_part(z_, t * z_step, lanes, spare)
                    s = s * (gate * sigmoid(gate))
                store_part(y_, t * y_step, s, lanes, spare)


@compiled
def complex_backward(
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
    `dstate` is dL/dh after the last step on entry and before the first on return. `kept` is from `complex_forward` for
    the same steps. dB and dC (batch, blocks, 2 N, T) are the sums over the channels of each block; a constant one has a
    sum over time for every channel instead, (sequences, blocks, 2 N, 16), to which is added.
    """
    R, width = 2 * N, D // G
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
        own = LANES * R * (sequence * blocks + k)
        dy_ = floats(dy + 4 * (b * dy_batch + start * dy_step + column))
        u_ = floats(u + 4 * (b * u_batch + start * u_step + column))
        delta_ = floats(delta + 4 * (b * delta_batch + start * delta_step + column))
        z_ = floats(z + 4 * (b * z_batch + start * z_step + column))
        in_time, in_block = (b * G + group) * R * T + start, LANES * R * k
        B_ = floats(B + 4 * (in_block if B_constant != 0 else in_time))
        C_ = floats(C + 4 * (in_block if C_constant != 0 else in_time))
        A2_, skip_, bias_ = floats(A2 + 4 * in_block), floats(skip + 4 * LANES * k), floats(bias + 4 * LANES * k)
        kept_, g_ = floats(kept + 4 * LANES * R * (kept_place + k * kept_chunks)), floats(dstate + 4 * own)
        out = 4 * (b * out_batch + start * D + column)
        du_, ddelta_, dz_ = floats(du + out), floats(ddelta + out), floats(dz + out)
        in_time = (b * blocks + k) * R * T + start
        dB_ = floats(dB + 4 * (own if B_constant != 0 else in_time))
        dC_ = floats(dC + 4 * (own if C_constant != 0 else in_time))
        row = 4 * LANES * (sequence * blocks + k)
        dA_, dskip_, dbias_ = floats(dA + 4 * own), floats(dskip + row), floats(dbias + row)
        s_, gB_, gA_ = floats(scratch), floats(scratch + 4 * TILE), floats(scratch + 8 * TILE)
        a_, ah_ = floats(scratch + 12 * TILE), floats(scratch + 16 * TILE)
        dt_, dtx_, ds_ = floats(scratch + 20 * TILE), floats(scratch + 24 * TILE), floats(scratch + 28 * TILE)
        a_im_, ah_im_ = floats(scratch + 32 * TILE), floats(scratch + 36 * TILE)
        spare = floats(scratch + 40 * TILE)
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
            for n in range(0, R, 2):
                A2_re, A2_im = load(A2_, n * LANES), load(A2_, (n + 1) * LANES)
                longest = splat(numba.float32(FARTHEST)) / A2_im
                place = (chunk * R + n) * LANES
                h_re, h_im = load(kept_, place), load(kept_, place + LANES)
                for i in range(steps):
                    t = first + i
                    dt = load(dt_, i * LANES)
                    a_re, a_im = _decay(dt, unless_beyond(dt, dt, longest), A2_re, A2_im)
                    ah_re, ah_im = a_re * h_re - a_im * h_im, a_re * h_im + a_im * h_re
                    dtx = load(dtx_, i * LANES)
                    h_re = fma(dtx, at(B_, B_constant, n, T, t), ah_re)
                    h_im = fma(dtx, at(B_, B_constant, n + 1, T, t), ah_im)
                    store(a_, i * LANES, a_re)
                    store(a_im_, i * LANES, a_im)
                    store(ah_, i * LANES, ah_re)
                    store(ah_im_, i * LANES, ah_im)
                    s = h_re * at(C_, C_constant, n, T, t) - h_im * at(C_, C_constant, n + 1, T, t)
                    store(s_, i * LANES, fma(splat(2.0), s, load(s_, i * LANES)))
                g_re, g_im = flush(load(g_, n * LANES)), flush(load(g_, (n + 1) * LANES))
                dA_re, dA_im, dB_re, dB_im = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
                dC_re, dC_im = splat(0.0), splat(0.0)
                A_re, A_im = A2_re * splat(numba.float32(LN2)), A2_im
                for i in range(steps - 1, -1, -1):
                    t = first + i
                    B_re, B_im = at(B_, B_constant, n, T, t), at(B_, B_constant, n + 1, T, t)
                    dt, dtx, ds = load(dt_, i * LANES), load(dtx_, i * LANES), load(ds_, i * LANES) * splat(2.0)
                    ah_re, ah_im = load(ah_, i * LANES), load(ah_im_, i * LANES)
                    g_re = g_re + ds * at(C_, C_constant, n, T, t)
                    g_im = g_im - ds * at(C_, C_constant, n + 1, T, t)
                    if B_constant != 0:
                        dB_re, dB_im = fma(g_re, dtx, dB_re), fma(g_im, dtx, dB_im)
                    else:
                        dB_[n * T + t] = lane_sum(g_re * dtx)
                        dB_[(n + 1) * T + t] = lane_sum(g_im * dtx)
                    to_C_re, to_C_im = ds * fma(dtx, B_re, ah_re), ds * fma(dtx, B_im, ah_im)
                    if C_constant != 0:
                        dC_re, dC_im = dC_re + to_C_re, dC_im - to_C_im
                    else:
                        dC_[n * T + t] = lane_sum(to_C_re)
                        dC_[(n + 1) * T + t] = lane_sum(splat(0.0) - to_C_im)
                    along, across = g_re * ah_re + g_im * ah_im, g_im * ah_re - g_re * ah_im
                    dA_re, dA_im = fma(along, dt, dA_re), fma(across, dt, dA_im)
                    store(gB_, i * LANES, load(gB_, i * LANES) + (g_re * B_re + g_im * B_im))
                    store(gA_, i * LANES, load(gA_, i * LANES) + (along * A_re + across * A_im))
                    a_re, a_im = load(a_, i * LANES), load(a_im_, i * LANES)
                    g_re, g_im = g_re * a_re + g_im * a_im, g_im * a_re - g_re * a_im
                store(g_, n * LANES, g_re)
                store(g_, (n + 1) * LANES, g_im)
                _add(dA_, n, dA_re, dA_im)
                if B_constant != 0:
                    _add(dB_, n, dB_re, dB_im)
                if C_constant != 0:
                    _add(dC_, n, dC_re, dC_im)
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
                ddt = fma(x, gB, load(gA_, i * LANES))
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


@njit(forceinline=True)
def _decay(dt: Any, turning: Any, A2_re: Any, A_im: Any) -> Any:
    """Return exp(dt A), real and imaginary part; `turning` is dt, or 0 where dt |Im(A)| is above FARTHEST.

    Errors of the angle add up over the memory of the state, so what rounding takes from dt Im(A) is added again after
    whole quarter turns are taken away, in two parts. Quarter turns swap sine and cosine and change signs, which is
    exact with factors of 0 and 1; by the identities of half angles the size would be short by 1.2e-8 at every step.
    An angle beyond FARTHEST would leave a remainder whose polynomials overflow: any angle does there, but a number.
    """
    size = exp2(dt * A2_re)
    angle = turning * A_im
    lost = fma(turning, A_im, splat(0.0) - angle)
    quarters = nearest(angle * splat(numba.float32(1 / QUARTER)))
    rest = fma(quarters, splat(numba.float32(-QUARTER)), angle)
    rest = fma(quarters, splat(numba.float32(QUARTER_ROUNDED - QUARTER)), rest) + lost
    sine, cosine = sin_cos(rest)
    of_turn = fma(nearest(quarters * splat(0.25)), splat(-4.0), quarters)  # -2 to 2
    along, across = splat(1.0) + minus_abs(of_turn), of_turn * (splat(2.0) + minus_abs(of_turn))
    return size * (along * cosine - across * sine), size * (along * sine + across * cosine)


@njit(forceinline=True)
def _add(total: Any, n: int, re: Any, im: Any) -> None:
    store(total, n * LANES, load(total, n * LANES) + re)
    store(total, (n + 1) * LANES, load(total, (n + 1) * LANES) + im)
