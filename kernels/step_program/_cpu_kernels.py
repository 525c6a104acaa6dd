"""The interpreter of step programs, compiled by Numba: one call runs many positions of a tile of sequences.

All arguments are ints: addresses, strides and sizes, in elements. A row of a program is an operation and its arguments;
`Builder` in `__init__.py` writes them, and says what each means. `memory` has a row of float32 for each sequence, which
holds its states and activations: an `offset` is a place in a row. Vectors are padded with zeros to sixteen lanes.

Lanes are channels. A product goes through its matrix once for four sequences at a time, in panels of 32 outputs; every
sequence's sums are made in the same order whatever the tile, so a sequence's results do not depend on the others.

Letters: M width, K inputs of a product, D channels, N state size.
"""

import math
from typing import Any

import numba
import numpy as np

from mamba_seq.kernels._numba import compiled
from mamba_seq.kernels._simd import (
    LANES,
    exp,
    exp2,
    floats,
    flush,
    fma,
    integers,
    lane_sum,
    load,
    njit,
    sigmoid,
    softplus,
    splat,
    store,
    unless_beyond,
)
from mamba_seq.kernels.selective_scan._cpu_complex import FARTHEST, _decay

WORDS = 14
"""Integers of a row of a program."""
EMBED, NORM, LINEAR, CONVOLUTION, SELECTIVE, COMPLEX, CONSTANT, CONSTANT_COMPLEX, GELU, GLU, ADD, DRAW = range(12)
PANEL = 2 * LANES
SETTINGS = 8
"""Floats of the settings of a draw: inverse temperature, top_k, top_p, whether greedy, whether some are left out, V,
guidance, and whether there is any: sequences are then pairs, one behind the other, and a tile holds whole pairs."""

numpy_errors: Any = numba.njit(error_model="numpy")


@compiled
def run_program(
    program: int,
    starts: int,
    period: int,
    memory: int,
    stride: int,
    sequences: int,
    tile: int,
    position: int,
    count: int,
    tokens: int,
    indices: int,
    seed: int,
    settings: int,
    drawn: int,
    likelihood: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Run `count` positions from `position` on, for the tiles first_task to last_task - 1.

    `starts` (period + 1) says where in `program` the rows of each phase begin. `tokens` (sequences,) int64 are read and
    replaced by what is drawn, which `drawn` (sequences, count) int64 records, and `likelihood` (sequences, count)
    float32 its log-probability; of pairs, these two have a row each. `indices` (sequences,) int64 are the counters of
    the random numbers. `scratch` holds 4 V floats, V rounded up to whole lanes.
    """
    rows, begins, token, index, out = (
        integers(program), integers(starts), integers(tokens), integers(indices), integers(drawn),
    )  # fmt: skip
    log_p = floats(likelihood)
    for task in range(first_task, last_task):
        first = task * tile
        clips = min(tile, sequences - first)
        base = memory + 4 * first * stride
        for i in range(count):
            phase = (position + i) % period
            for row in range(begins[phase], begins[phase + 1]):
                at = row * WORDS
                kind, a, b, c, d = rows[at], rows[at + 1], rows[at + 2], rows[at + 3], rows[at + 4]
                e, f, g, h = rows[at + 5], rows[at + 6], rows[at + 7], rows[at + 8]
                if kind == LINEAR:
                    linear(base, stride, clips, a, b, c, d, e, f, g, h)
                elif kind == SELECTIVE:
                    selective(base, stride, clips, a, b, c, d, e, f, g, h, rows[at + 9], rows[at + 10])
                elif kind == CONVOLUTION:
                    convolution(base, stride, clips, a, b, c, d, e, f)
                elif kind == NORM:
                    norm(base, stride, clips, a, b, c, d, e, f)
                elif kind == ADD:
                    add(base, stride, clips, a, b, c, d)
                elif kind == COMPLEX:
                    complex_selective(base, stride, clips, a, b, c, d, e, f, g, h, rows[at + 9], rows[at + 10])
                elif kind == CONSTANT:
                    constant(base, stride, clips, a, b, c, d, e, f, g)
                elif kind == CONSTANT_COMPLEX:
                    constant_complex(base, stride, clips, a, b, c, d, e, f, g)
                elif kind == GELU:
                    gelu(base, stride, clips, a, b, c)
                elif kind == GLU:
                    glu(base, stride, clips, a, b, c)
                elif kind == EMBED:
                    for clip in range(clips):
                        table, x = floats(a), floats(base + 4 * clip * stride)
                        for lane in range(0, d, LANES):
                            store(x, c + lane, load(table, token[first + clip] * d + lane) + load(x, b + lane))
                elif kind == DRAW and floats(settings)[7] != 0:
                    for clip in range(0, clips, 2):
                        n = first + clip
                        chosen, value = draw_guided(
                            base + 4 * (clip * stride + a), base + 4 * ((clip + 1) * stride + a), floats(settings),
                            seed, index[n], position + i, scratch,
                        )  # fmt: skip
                        token[n] = chosen
                        token[n + 1] = chosen
                        out[n // 2 * count + i] = chosen
                        log_p[n // 2 * count + i] = value
                elif kind == DRAW:
                    for clip in range(clips):
                        n = first + clip
                        chosen, value = draw(
                            floats(base + 4 * (clip * stride + a)), floats(settings), seed, index[n], position + i,
                            scratch,
                        )  # fmt: skip
                        token[n] = chosen
                        out[n * count + i] = chosen
                        log_p[n * count + i] = value


@njit
def linear(
    base: int,
    stride: int,
    clips: int,
    source: int,
    K: int,
    weight: int,
    bias: int,
    out: int,
    panels: int,
    plus: int,
    more: int,
) -> None:
    """Store weight x + bias, and what stands at `plus` and `more` unless these are negative."""
    offsets = floats(bias)
    for panel in range(panels):
        w = floats(weight + 4 * PANEL * K * panel)
        o0, o1 = load(offsets, panel * PANEL), load(offsets, panel * PANEL + LANES)
        place = out + panel * PANEL
        clip = 0
        while clip + 4 <= clips:
            x = floats(base + 4 * (clip * stride + source))
            a0, b0, c0, d0 = o0, o0, o0, o0
            a1, b1, c1, d1 = o1, o1, o1, o1
            for k in range(K):
                w0, w1 = load(w, PANEL * k), load(w, PANEL * k + LANES)
                s = splat(x[k])
                a0, a1 = fma(w0, s, a0), fma(w1, s, a1)
                s = splat(x[k + stride])
                b0, b1 = fma(w0, s, b0), fma(w1, s, b1)
                s = splat(x[k + 2 * stride])
                c0, c1 = fma(w0, s, c0), fma(w1, s, c1)
                s = splat(x[k + 3 * stride])
                d0, d1 = fma(w0, s, d0), fma(w1, s, d1)
            at = base + 4 * clip * stride
            leave(floats(at), place, panel, plus, more, a0, a1)
            leave(floats(at + 4 * stride), place, panel, plus, more, b0, b1)
            leave(floats(at + 8 * stride), place, panel, plus, more, c0, c1)
            leave(floats(at + 12 * stride), place, panel, plus, more, d0, d1)
            clip += 4
        while clip < clips:
            x = floats(base + 4 * (clip * stride + source))
            a0, a1 = o0, o1
            for k in range(K):
                s = splat(x[k])
                a0, a1 = fma(load(w, PANEL * k), s, a0), fma(load(w, PANEL * k + LANES), s, a1)
            leave(floats(base + 4 * clip * stride), place, panel, plus, more, a0, a1)
            clip += 1


@njit(forceinline=True)
def leave(row: Any, place: int, panel: int, plus: int, more: int, a: Any, b: Any) -> None:
    """Store a panel of a product."""
    if plus >= 0:
        a = load(row, plus + panel * PANEL) + a
        b = load(row, plus + panel * PANEL + LANES) + b
    if more >= 0:
        a = a + load(row, more + panel * PANEL)
        b = b + load(row, more + panel * PANEL + LANES)
    store(row, place, a)
    store(row, place + LANES, b)


@njit
def norm(
    base: int, stride: int, clips: int, source: int, out: int, weights: int, M: int, padded: int, centred: int
) -> None:
    """Normalise; `weights` has the gain, the shift, a mask of the real lanes, and eps."""
    w = floats(weights)
    width, eps = numba.float32(M), w[3 * padded]
    for clip in range(clips):
        x = floats(base + 4 * clip * stride)
        total = splat(0.0)
        if centred != 0:
            for lane in range(0, padded, LANES):
                total = total + load(x, source + lane)
        mean = splat(lane_sum(total) / width)
        square = splat(0.0)
        for lane in range(0, padded, LANES):
            value = (load(x, source + lane) - mean) * load(w, 2 * padded + lane)
            square = fma(value, value, square)
        scale = splat(numba.float32(1.0) / numba.float32(math.sqrt(lane_sum(square) / width + eps)))
        for lane in range(0, padded, LANES):
            value = (load(x, source + lane) - mean) * scale
            store(x, out + lane, fma(value, load(w, lane), load(w, padded + lane)))


@njit
def convolution(
    base: int, stride: int, clips: int, x: int, out: int, weights: int, state: int, taps: int, padded: int
) -> None:
    """Convolve, SiLU; `weights` has the taps, oldest first, and the bias. The state has the inputs, oldest first."""
    w = floats(weights)
    for clip in range(clips):
        row = floats(base + 4 * clip * stride)
        for lane in range(0, padded, LANES):
            now = load(row, x + lane)
            u = fma(now, load(w, (taps - 1) * padded + lane), load(w, taps * padded + lane))
            for k in range(taps - 1):
                past = load(row, state + k * padded + lane)
                u = fma(past, load(w, k * padded + lane), u)
                if k > 0:
                    store(row, state + (k - 1) * padded + lane, past)
            store(row, state + (taps - 2) * padded + lane, now)
            store(row, out + lane, u * sigmoid(u))


@njit
def selective(
    base: int,
    stride: int,
    clips: int,
    u: int,
    z: int,
    delta: int,
    selection: int,
    out: int,
    weights: int,
    state: int,
    N: int,
    padded: int,
    rank: int,
) -> None:
    """Advance a real selective recurrence; `weights` has A log2(e) (blocks, N, 16), dt_bias and D."""
    w = floats(weights)
    for lane in range(0, padded, LANES):
        bias, skip = load(w, N * padded + lane), load(w, (N + 1) * padded + lane)
        for clip in range(clips):
            row = floats(base + 4 * clip * stride)
            dt = softplus(load(row, delta + lane) + bias)
            x = load(row, u + lane)
            dtx, s = dt * x, x * skip
            b, c = selection + rank, selection + rank + N
            place, at = state + N * lane, N * lane
            for n in range(N):
                h = fma(exp2(dt * load(w, at + n * LANES)), load(row, place + n * LANES), dtx * splat(row[b + n]))
                h = flush(h)
                store(row, place + n * LANES, h)
                s = fma(h, splat(row[c + n]), s)
            gate = load(row, z + lane)
            store(row, out + lane, s * (gate * sigmoid(gate)))


@njit
def complex_selective(
    base: int,
    stride: int,
    clips: int,
    u: int,
    z: int,
    delta: int,
    selection: int,
    out: int,
    weights: int,
    state: int,
    N: int,
    padded: int,
    rank: int,
) -> None:
    """Advance a complex one; `weights` has A (blocks, N, 2, 16), its real part times log2(e), dt_bias and D."""
    w = floats(weights)
    for lane in range(0, padded, LANES):
        bias, skip = load(w, 2 * N * padded + lane), load(w, (2 * N + 1) * padded + lane)
        for clip in range(clips):
            row = floats(base + 4 * clip * stride)
            dt = softplus(load(row, delta + lane) + bias)
            x = load(row, u + lane)
            dtx, s = dt * x, splat(0.0)
            b, c = selection + rank, selection + rank + 2 * N
            place, at = state + 2 * N * lane, 2 * N * lane
            for n in range(0, 2 * N, 2):
                re, im = load(row, place + n * LANES), load(row, place + (n + 1) * LANES)
                A2_re, A2_im = load(w, at + n * LANES), load(w, at + (n + 1) * LANES)
                turning = unless_beyond(dt, dt * A2_im, splat(numba.float32(FARTHEST)))  # a division would cost a third
                a_re, a_im = _decay(dt, turning, A2_re, A2_im)
                h_re = flush(fma(dtx, splat(row[b + n]), a_re * re - a_im * im))
                h_im = flush(fma(dtx, splat(row[b + n + 1]), a_re * im + a_im * re))
                store(row, place + n * LANES, h_re)
                store(row, place + (n + 1) * LANES, h_im)
                s = s + (h_re * splat(row[c + n]) - h_im * splat(row[c + n + 1]))
            gate = load(row, z + lane)
            store(row, out + lane, fma(splat(2.0), s, x * skip) * (gate * sigmoid(gate)))


@njit
def constant(
    base: int, stride: int, clips: int, u: int, z: int, out: int, weights: int, state: int, N: int, padded: int
) -> None:
    """Advance a real time-invariant recurrence; `weights` has Abar - 1, Bbar, C (blocks, N, 16) each, and D."""
    w, part = floats(weights), N * padded
    for lane in range(0, padded, LANES):
        for clip in range(clips):
            row = floats(base + 4 * clip * stride)
            x = load(row, u + lane)
            s = x * load(w, 3 * part + lane)
            for n in range(N * lane, N * lane + N * LANES, LANES):
                h = load(row, state + n)
                h = flush(h + fma(load(w, n), h, load(w, part + n) * x))
                store(row, state + n, h)
                s = fma(h, load(w, 2 * part + n), s)
            if z >= 0:
                gate = load(row, z + lane)
                s = s * (gate * sigmoid(gate))
            store(row, out + lane, s)


@njit
def constant_complex(
    base: int, stride: int, clips: int, u: int, z: int, out: int, weights: int, state: int, N: int, padded: int
) -> None:
    """Advance a complex one; `weights` has Abar - 1, Bbar, C (blocks, N, 2, 16) each, and D."""
    w, part = floats(weights), 2 * N * padded
    for lane in range(0, padded, LANES):
        for clip in range(clips):
            row = floats(base + 4 * clip * stride)
            x = load(row, u + lane)
            s = splat(0.0)
            for n in range(2 * N * lane, 2 * N * (lane + LANES), 2 * LANES):
                re, im = load(row, state + n), load(row, state + n + LANES)
                a_re, a_im = load(w, n), load(w, n + LANES)
                h_re = flush(re + fma(load(w, part + n), x, a_re * re - a_im * im))
                h_im = flush(im + fma(load(w, part + n + LANES), x, a_re * im + a_im * re))
                store(row, state + n, h_re)
                store(row, state + n + LANES, h_im)
                s = s + (h_re * load(w, 2 * part + n) - h_im * load(w, 2 * part + n + LANES))
            s = fma(splat(2.0), s, x * load(w, 3 * part + lane))
            if z >= 0:
                gate = load(row, z + lane)
                s = s * (gate * sigmoid(gate))
            store(row, out + lane, s)


@njit
def gelu(base: int, stride: int, clips: int, source: int, out: int, padded: int) -> None:
    """Store x Phi(x)."""
    for clip in range(clips):
        row = floats(base + 4 * clip * stride)
        for lane in range(padded):
            x = row[source + lane]
            row[out + lane] = numba.float32(0.5 * x * (1.0 + math.erf(x * 0.7071067811865476)))


@njit
def glu(base: int, stride: int, clips: int, source: int, out: int, padded: int) -> None:
    """Store the first half times the sigmoid of the second."""
    for clip in range(clips):
        row = floats(base + 4 * clip * stride)
        for lane in range(0, padded, LANES):
            store(row, out + lane, load(row, source + lane) * sigmoid(load(row, source + padded + lane)))


@njit
def add(base: int, stride: int, clips: int, a: int, b: int, out: int, padded: int) -> None:
    """Store a + b, or a alone where b is negative."""
    for clip in range(clips):
        row = floats(base + 4 * clip * stride)
        for lane in range(0, padded, LANES):
            value = load(row, a + lane)
            if b >= 0:
                value = value + load(row, b + lane)
            store(row, out + lane, value)


@numpy_errors
def draw(logits: Any, settings: Any, seed: int, index: int, position: int, scratch: int) -> Any:
    """Choose a token of a row of logits, as `mamba_seq.counted.draw_counted`; return it and its log-probability."""
    V = int(settings[5])
    padded = (V + LANES - 1) // LANES * LANES
    weights = floats(scratch)
    best, chosen = logits[0], 0
    for v in range(1, V):
        if logits[v] > best:
            best, chosen = logits[v], v
    top = splat(best)
    for v in range(0, padded, LANES):
        store(weights, v, exp(load(logits, v) - top))
    mass = 0.0
    for v in range(V):
        mass += weights[v]
    if settings[3] == 0:
        if settings[0] != 1:
            scale = splat(settings[0])
            for v in range(0, padded, LANES):
                store(weights, v, exp((load(logits, v) - top) * scale))
        if settings[4] != 0:
            keep_some(logits, weights, V, int(settings[1]), settings[2], scratch + 4 * padded)
        total = 0.0
        for v in range(V):
            total += weights[v]
        threshold = uniform(seed, index, position) * total
        chosen, total = -1, 0.0
        for v in range(V):
            total += weights[v]
            if total > threshold:
                chosen = v
                break
        if chosen < 0:  # of logits that are not numbers, any token, but one
            chosen = V - 1
    return chosen, numba.float32(logits[chosen] - best - math.log(mass))


@numpy_errors
def draw_guided(given: int, without: int, settings: Any, seed: int, index: int, position: int, scratch: int) -> Any:
    """Choose a token by two rows of logits; its log-probability is that of the first, given the class."""
    V = int(settings[5])
    padded = (V + LANES - 1) // LANES * LANES
    logits, other, steered = floats(given), floats(without), floats(scratch + 4 * 3 * padded)
    w = splat(settings[6])
    for v in range(0, padded, LANES):
        plain = load(other, v)
        store(steered, v, plain + w * (load(logits, v) - plain))
    chosen, _ = draw(steered, settings, seed, index, position, scratch)
    best = logits[0]
    for v in range(1, V):
        best = max(best, logits[v])
    weights, top, mass = floats(scratch), splat(best), 0.0
    for v in range(0, padded, LANES):
        store(weights, v, exp(load(logits, v) - top))
    for v in range(V):
        mass += weights[v]
    return chosen, numba.float32(logits[chosen] - best - math.log(mass))


@numpy_errors
def keep_some(logits: Any, weights: Any, V: int, top_k: int, top_p: float, scratch: int) -> None:
    """Set the weights of tokens beyond the k most probable, and beyond a mass of p, to zero; first equals stay."""
    here, there = floats(scratch), floats(scratch + 4 * V)  # tokens by falling logits: a merge sort, which is stable
    for v in range(V):
        here[v] = v
    width = 1
    while width < V:
        for begin in range(0, V, 2 * width):
            middle, end = min(begin + width, V), min(begin + 2 * width, V)
            i, j = begin, middle
            for k in range(begin, end):
                if i < middle and (j >= end or logits[int(here[i])] >= logits[int(here[j])]):
                    there[k] = here[i]
                    i += 1
                else:
                    there[k] = here[j]
                    j += 1
        for v in range(V):
            here[v] = there[v]
        width *= 2
    total = 0.0
    for k in range(V):
        if k >= top_k:
            weights[int(here[k])] = 0.0
        total += weights[int(here[k])]
    before = 0.0
    for k in range(V):
        value = weights[int(here[k])]
        if before >= top_p * total:
            weights[int(here[k])] = 0.0
        before += value


@numpy_errors
def uniform(seed: int, index: int, position: int) -> float:
    """Return a number in (0, 1), a function of its arguments alone: the first word of Philox4x32-10."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    k0, k1 = np.uint64(seed) & low, np.uint64(seed) >> shift
    c0, c1 = np.uint64(position) & low, np.uint64(position) >> shift
    c2, c3 = np.uint64(index) & low, np.uint64(index) >> shift
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ k0, b & low, (a >> shift) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return (2 * float(c0 >> np.uint64(9)) + 1) * 2.0**-24
