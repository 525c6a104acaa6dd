"""The loops of the CPU convolution, compiled by Numba.

A task is a stretch of at most ROWS steps of one sequence, over all channels, sixteen at a time; a call does the tasks
first to last - 1 of the table `stretches`, STRETCH int64 a row: item of the batch, where the sequence (or what is seen
of it) begins there, first and last step + 1 of the stretch counted from that, how many steps are seen, which of the
histories comes before, and 1 where the sequence itself begins there. All arguments are ints (addresses of float32
arrays, strides and sizes in elements); an address of 0 means "not given". x and dy are (batch, T, D) with strides
`*_batch` and `*_step`, and 1; `history` holds the K - 1 rows before, oldest first, (histories, K-1, D); weight is
(K, P) and bias (P,), where P is D rounded up to whole blocks of sixteen, with zeros.
"""

from typing import Any

from mamba_seq.kernels._numba import compiled
from mamba_seq.kernels._simd import (
    LANES,
    floats,
    fma,
    integers,
    load,
    load_part,
    njit,
    sigmoid,
    splat,
    store,
    store_part,
)

ROWS = 128
"""Steps of a task; the backward pass repeats K - 1 steps at every seam."""

STRETCH = 7
"""Integers of a row of the table of stretches."""


@compiled
def conv_forward(
    x: int,
    x_batch: int,
    x_step: int,
    history: int,
    weight: int,
    bias: int,
    y: int,
    y_batch: int,
    y_step: int,
    silu: int,
    stretches: int,
    D: int,
    K: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Write y (batch, T, D). `scratch` holds sixteen floats."""
    padded = (D + LANES - 1) // LANES * LANES
    weight_, spare, table = floats(weight), floats(scratch), integers(stretches)
    for task in range(first_task, last_task):
        row = task * STRETCH
        b, base, start, end = table[row], table[row + 1], table[row + 2], table[row + 3]
        x_, y_ = floats(x + 4 * (b * x_batch + base * x_step)), floats(y + 4 * (b * y_batch + base * y_step))
        history_ = floats(history + 4 * table[row + 5] * (K - 1) * D)
        for t in range(start, end):
            for d in range(0, D, LANES):
                lanes = min(LANES, D - d)
                total = load(floats(bias), d) if bias != 0 else splat(0.0)
                for k in range(K):
                    past = _row(x_, x_step, history_, t - K + 1 + k, d, D, K, lanes, spare)
                    total = fma(load(weight_, k * padded + d), past, total)
                if silu != 0:
                    total = total * sigmoid(total)
                store_part(y_, t * y_step + d, total, lanes, spare)


@compiled
def conv_backward(
    dy: int,
    dy_batch: int,
    dy_step: int,
    x: int,
    x_batch: int,
    x_step: int,
    history: int,
    weight: int,
    bias: int,
    dx: int,
    dx_batch: int,
    dx_step: int,
    dhistory: int,
    dweight: int,
    silu: int,
    stretches: int,
    D: int,
    K: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Write dx, dhistory (batch, K-1, D), and for every task its part of the sums over time, dweight (tasks, K + 1, P).

    The last row of dweight is dbias. Row t of x meets the outputs t to t + K - 1, as far as they are seen, so a task
    first computes g, dL/d(output before the activation), for its own steps and the K - 1 after them. `scratch` holds
    (ROWS + K) * 16 floats.
    """
    padded = (D + LANES - 1) // LANES * LANES
    weight_, g_ = floats(weight), floats(scratch)
    spare = floats(scratch + 4 * LANES * (ROWS + K - 1))
    table = integers(stretches)
    for task in range(first_task, last_task):
        row = task * STRETCH
        b, base, start, end, T = table[row], table[row + 1], table[row + 2], table[row + 3], table[row + 4]
        dy_ = floats(dy + 4 * (b * dy_batch + base * dy_step))
        x_, dx_ = floats(x + 4 * (b * x_batch + base * x_step)), floats(dx + 4 * (b * dx_batch + base * dx_step))
        before = 4 * table[row + 5] * (K - 1) * D
        history_, dhistory_ = floats(history + before), floats(dhistory + before)
        dweight_ = floats(dweight + 4 * task * (K + 1) * padded)
        for d in range(0, D, LANES):
            lanes = min(LANES, D - d)
            for t in range(start, end + K - 1):
                g = splat(0.0)
                if t < T:
                    g = load_part(dy_, t * dy_step + d, lanes, spare)
                    if silu != 0:
                        total = load(floats(bias), d) if bias != 0 else splat(0.0)
                        for k in range(K):
                            past = _row(x_, x_step, history_, t - K + 1 + k, d, D, K, lanes, spare)
                            total = fma(load(weight_, k * padded + d), past, total)
                        share = sigmoid(total)
                        g = g * share * fma(total, splat(1.0) - share, splat(1.0))
                store(g_, (t - start) * LANES, g)
            for t in range(start, end):
                total = splat(0.0)
                for k in range(K):
                    total = fma(load(weight_, k * padded + d), load(g_, (t - start + K - 1 - k) * LANES), total)
                store_part(dx_, t * dx_step + d, total, lanes, spare)
            if dhistory != 0 and start == 0 and table[row + 6] != 0:
                for t in range(1 - K, 0):
                    total = splat(0.0)
                    for later in range(t + K):
                        total = fma(load(weight_, (t - later + K - 1) * padded + d), load(g_, later * LANES), total)
                    store_part(dhistory_, (t + K - 1) * D + d, total, lanes, spare)
            for k in range(K):
                total = splat(0.0)
                for t in range(start, end):
                    past = _row(x_, x_step, history_, t - K + 1 + k, d, D, K, lanes, spare)
                    total = fma(load(g_, (t - start) * LANES), past, total)
                store(dweight_, k * padded + d, total)
            total = splat(0.0)
            for t in range(start, end):
                total = total + load(g_, (t - start) * LANES)
            store(dweight_, K * padded + d, total)


@compiled
def conv_step(
    x: int,
    x_row: int,
    state: int,
    weight: int,
    bias: int,
    y: int,
    silu: int,
    D: int,
    K: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Write y (batch, D) and shift x into `state` (batch, D, K-1); here a task is a block of sixteen channels.

    weight is (D, K), bias (D,), all dense but x, whose rows are `x_row` apart. `scratch` holds 32 floats.
    """
    blocks = (D + LANES - 1) // LANES
    weight_, spare = floats(weight), floats(scratch + 4 * LANES)
    totals = floats(scratch)
    for task in range(first_task, last_task):
        b, d = task // blocks, task % blocks * LANES
        lanes = min(LANES, D - d)
        x_, state_ = floats(x + 4 * (b * x_row + d)), floats(state + 4 * (b * D + d) * (K - 1))
        for lane in range(lanes):
            total, row = x_[lane] * weight_[(d + lane) * K + K - 1], lane * (K - 1)
            for k in range(K - 1):
                total += state_[row + k] * weight_[(d + lane) * K + k]
            for k in range(K - 2):
                state_[row + k] = state_[row + k + 1]
            state_[row + K - 2] = x_[lane]
            totals[lane] = total
        out = load(totals, 0)
        if bias != 0:
            out = out + load_part(floats(bias), d, lanes, spare)
        if silu != 0:
            out = out * sigmoid(out)
        store_part(floats(y), b * D + d, out, lanes, spare)


@njit(forceinline=True)
def _row(x: Any, x_step: int, history: Any, t: int, d: int, D: int, K: int, lanes: int, spare: Any) -> Any:
    """Load sixteen channels of row t, which lies in `history` where t is negative."""
    if t >= 0:
        return load_part(x, t * x_step + d, lanes, spare)
    return load_part(history, (t + K - 1) * D + d, lanes, spare)
