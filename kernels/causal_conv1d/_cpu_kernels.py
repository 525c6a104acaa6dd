"""The loops of the CPU convolution, compiled by Numba.

A task is a stretch of ROWS steps of one item of the batch, over all channels, sixteen at a time; a call does the tasks
first to last - 1, numbered batch by batch. All arguments are ints (addresses of float32 arrays, strides and sizes in
elements); an address of 0 means "not given". x and dy are (batch, T, D) with strides `*_batch` and `*_step`, and 1;
`history` holds the K - 1 rows before x, oldest first, (batch, K-1, D); weight is (K, P) and bias (P,), where P is D
rounded up to whole blocks of sixteen, with zeros.
"""

from typing import Any

from mamba_seq.kernels._numba import compiled
from mamba_seq.kernels._simd import (
    LANES,
    floats,
    fma,
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
    T: int,
    D: int,
    K: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Write y (batch, T, D). `scratch` holds sixteen floats."""
    stretches = (T + ROWS - 1) // ROWS
    padded = (D + LANES - 1) // LANES * LANES
    weight_, spare = floats(weight), floats(scratch)
    for task in range(first_task, last_task):
        b, start = task // stretches, task % stretches * ROWS
        x_, y_ = floats(x + 4 * b * x_batch), floats(y + 4 * b * y_batch)
        history_ = floats(history + 4 * b * (K - 1) * D)
        for t in range(start, min(start + ROWS, T)):
            for d in range(0, D, LANES):
                lanes = min(LANES, D - d)
                total = load(floats(bias), d) if bias != 0 else splat(0.0)
                for k in range(K):
                    row = _row(x_, x_step, history_, t - K + 1 + k, d, D, K, lanes, spare)
                    total = fma(load(weight_, k * padded + d), row, total)
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
    own: int,
    T: int,
    D: int,
    K: int,
    first_task: int,
    last_task: int,
    scratch: int,
) -> None:
    """Write dx, dhistory (batch, K-1, D), and for every task its part of the sums over time, dweight (tasks, K + 1, P).

    The last row of dweight is dbias. Only the first `own` of the T rows are this call's; row t of x meets the outputs t
    to t + K - 1, so a task first computes g, dL/d(output before the activation), for its own steps and the K - 1 after
    them. `scratch` holds (ROWS + K) * 16 floats.
    """
    stretches = (own + ROWS - 1) // ROWS
    padded = (D + LANES - 1) // LANES * LANES
    weight_, g_ = floats(weight), floats(scratch)
    spare = floats(scratch + 4 * LANES * (ROWS + K - 1))
    for task in range(first_task, last_task):
        b, start = task // stretches, task % stretches * ROWS
        end = min(start + ROWS, own)
        dy_, x_, dx_ = floats(dy + 4 * b * dy_batch), floats(x + 4 * b * x_batch), floats(dx + 4 * b * dx_batch)
        history_, dhistory_ = floats(history + 4 * b * (K - 1) * D), floats(dhistory + 4 * b * (K - 1) * D)
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
                            row = _row(x_, x_step, history_, t - K + 1 + k, d, D, K, lanes, spare)
                            total = fma(load(weight_, k * padded + d), row, total)
                        share = sigmoid(total)
                        g = g * share * fma(total, splat(1.0) - share, splat(1.0))
                store(g_, (t - start) * LANES, g)
            for t in range(start, end):
                total = splat(0.0)
                for k in range(K):
                    total = fma(load(weight_, k * padded + d), load(g_, (t - start + K - 1 - k) * LANES), total)
                store_part(dx_, t * dx_step + d, total, lanes, spare)
            if dhistory != 0 and start == 0:
                for t in range(1 - K, 0):
                    total = splat(0.0)
                    for later in range(t + K):
                        total = fma(load(weight_, (t - later + K - 1) * padded + d), load(g_, later * LANES), total)
                    store_part(dhistory_, (t + K - 1) * D + d, total, lanes, spare)
            for k in range(K):
                total = splat(0.0)
                for t in range(start, end):
                    row = _row(x_, x_step, history_, t - K + 1 + k, d, D, K, lanes, spare)
                    total = fma(load(g_, (t - start) * LANES), row, total)
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
