"""A step of a stack of residual blocks for many sequences: the projections as products of tiles.

A group of PARTS programs serves ROWS sequences. A layer is three phases, in each of which a program makes a tile
(ROWS, BLOCK) of what the next needs whole:

    enter    norm of x, in_proj of its channels, convolution, SiLU                       -> u, z
    middle   all of x_proj (small, so each does it), dt_proj, recurrence, gate           -> y, where z was
    leave    out_proj of its part of the width, added to x

`stack` runs all layers in one launch, where a program waits behind each phase for those of its group; `enter`,
`middle` and `leave` are launches of one phase, for more programs than a GPU can hold at once, and for the interpreter.
Both give the same bits: where a compiler may choose which product of a sum to fuse, the code says so (`fma`).
"""
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import (
    APPROXIMATE,
    LOG2E,
    device_function,
    exp2,
    fma,
    sigmoid,
    softplus,
    sum_of_products,
)
from mamba_seq.kernels.block_step._triton_kernels import (
    A_LOG,
    CONV_BIAS,
    CONV_STATE,
    CONV_WEIGHT,
    DT_BIAS,
    DT_WEIGHT,
    IN_BIAS,
    IN_WEIGHT,
    NORM_BIAS,
    NORM_WEIGHT,
    OUT_BIAS,
    OUT_WEIGHT,
    SKIP,
    SLOTS,
    SSM_STATE,
    X_WEIGHT,
    address,
    forget,
    wait_for_all,
)


@triton.jit
def stack(
    stream,
    table,
    inner,
    gates,
    counters,
    batch,
    conv_batch,
    conv_d,
    conv_k,
    ssm_batch,
    ssm_d,
    ssm_n,
    eps,
    extra,
    extra_layer,
    streams,
    streams_layer,
    LAYERS: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    M_PADDED: tl.constexpr,
    N_PADDED: tl.constexpr,
    R_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    W: tl.constexpr,
    CONV: tl.constexpr,
    STREAM: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    NORM_HAS_BIAS: tl.constexpr,
    PROJ_BIAS: tl.constexpr,
    HAS_CONV_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    counters += (tl.program_id(0) // PARTS) * 2
    awaited = 0
    for layer in range(LAYERS):
        enter_layer(
            stream, table, inner, gates, layer, batch, conv_batch, conv_d, conv_k, eps, M, D, K, M_PADDED, PARTS,
            ROWS, BLOCK_D, W, CONV, LAYER_NORM, NORM_HAS_BIAS, PROJ_BIAS, HAS_CONV_BIAS, PRECISION,
        )  # fmt: skip
        awaited += PARTS
        wait_for_all(counters, awaited)
        pass_layer(
            table, inner, gates, layer, batch, ssm_batch, ssm_d, ssm_n, D, N, R, N_PADDED, R_PADDED, PARTS, ROWS,
            BLOCK_D, CHUNK, W, PRECISION,
        )  # fmt: skip
        awaited += PARTS
        wait_for_all(counters, awaited)
        leave_layer(
            stream, table, gates, layer, batch, extra, extra_layer, streams, streams_layer, M, D, PARTS, ROWS, BLOCK_M,
            CHUNK, W, STREAM, PROJ_BIAS, PRECISION,
        )  # fmt: skip
        awaited += PARTS
        wait_for_all(counters, awaited)
    forget(counters, PARTS)


@triton.jit
def enter(
    stream,
    table,
    inner,
    gates,
    layer,
    batch,
    conv_batch,
    conv_d,
    conv_k,
    eps,
    M: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    W: tl.constexpr,
    CONV: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    NORM_HAS_BIAS: tl.constexpr,
    PROJ_BIAS: tl.constexpr,
    HAS_CONV_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    enter_layer(
        stream, table, inner, gates, layer, batch, conv_batch, conv_d, conv_k, eps, M, D, K, M_PADDED, PARTS,
        ROWS, BLOCK_D, W, CONV, LAYER_NORM, NORM_HAS_BIAS, PROJ_BIAS, HAS_CONV_BIAS, PRECISION,
    )  # fmt: skip


@triton.jit
def middle(
    table,
    inner,
    gates,
    layer,
    batch,
    ssm_batch,
    ssm_d,
    ssm_n,
    D: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    N_PADDED: tl.constexpr,
    R_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pass_layer(
        table, inner, gates, layer, batch, ssm_batch, ssm_d, ssm_n, D, N, R, N_PADDED, R_PADDED, PARTS, ROWS, BLOCK_D,
        CHUNK, W, PRECISION,
    )  # fmt: skip


@triton.jit
def leave(
    stream,
    table,
    gates,
    layer,
    batch,
    extra,
    extra_layer,
    streams,
    streams_layer,
    M: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    W: tl.constexpr,
    STREAM: tl.constexpr,
    PROJ_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    leave_layer(
        stream, table, gates, layer, batch, extra, extra_layer, streams, streams_layer, M, D, PARTS, ROWS, BLOCK_M,
        CHUNK, W, STREAM, PROJ_BIAS, PRECISION,
    )  # fmt: skip


@device_function
def enter_layer(
    stream, table, inner, gates, layer, batch, conv_batch, conv_d, conv_k, eps, M: tl.constexpr, D: tl.constexpr,
    K: tl.constexpr, M_PADDED: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    W: tl.constexpr, CONV: tl.constexpr, LAYER_NORM: tl.constexpr, NORM_HAS_BIAS: tl.constexpr,
    PROJ_BIAS: tl.constexpr, HAS_CONV_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = ((tl.program_id(0) // PARTS).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    d = (tl.program_id(0) % PARTS) * BLOCK_D + tl.arange(0, BLOCK_D)
    m = tl.arange(0, M_PADDED)
    inside = d < D
    tile = (row < batch) & inside[None, :]
    weights = address(table, layer, IN_WEIGHT, W) + d[None, :] * M + m[:, None]
    weights_tile = (m < M)[:, None] & inside[None, :]
    w_x = tl.load(weights, mask=weights_tile, other=0.0)
    w_z = tl.load(weights + D * M, mask=weights_tile, other=0.0)
    scale = tl.load(address(table, layer, NORM_WEIGHT, W) + m, mask=m < M, other=0.0).to(tl.float32)
    real = (row < batch) & (m < M)[None, :]
    x = tl.load(stream + row * M + m[None, :], mask=real, other=0.0, cache_modifier=".cg")
    if LAYER_NORM:
        x = tl.where((m < M)[None, :], x - (tl.sum(x, axis=1) / M)[:, None], 0.0)
    normed = x * tl.rsqrt(sum_of_products(x, x, axis=1) / M + eps)[:, None] * scale[None, :]
    if NORM_HAS_BIAS:
        normed += tl.load(address(table, layer, NORM_BIAS, W) + m, mask=m < M, other=0.0).to(tl.float32)[None, :]
    now = product(normed, w_x, tl.zeros([ROWS, BLOCK_D], tl.float32), W, PRECISION)
    z = product(normed, w_z, tl.zeros([ROWS, BLOCK_D], tl.float32), W, PRECISION)
    if PROJ_BIAS:
        bias = address(table, layer, IN_BIAS, W) + d
        now += tl.load(bias, mask=inside, other=0.0).to(tl.float32)[None, :]
        z += tl.load(bias + D, mask=inside, other=0.0).to(tl.float32)[None, :]
    kept = now.to(CONV)
    taps = address(table, layer, CONV_WEIGHT, W) + d * K
    past = tl.load(table + layer * SLOTS + CONV_STATE).to(tl.pointer_type(CONV))
    past += row * conv_batch + d[None, :] * conv_d
    u = tl.load(taps + (K - 1), mask=inside, other=0.0).to(tl.float32)[None, :] * kept.to(tl.float32)
    values = ()
    for k in tl.static_range(K - 1):
        values = values + (tl.load(past + k * conv_k, mask=tile, other=0.0),)
        u = fma(tl.load(taps + k, mask=inside, other=0.0).to(tl.float32)[None, :], values[k].to(tl.float32), u)
    tl.debug_barrier()  # as in project_in of _triton_kernels.py
    for k in tl.static_range(1, K - 1):
        tl.store(past + (k - 1) * conv_k, values[k], mask=tile)
    tl.store(past + (K - 2) * conv_k, kept, mask=tile)
    if HAS_CONV_BIAS:
        u += tl.load(address(table, layer, CONV_BIAS, W) + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(inner + row * D + d[None, :], u * sigmoid(u), mask=tile)
    tl.store(gates + row * D + d[None, :], z, mask=tile)


@device_function
def pass_layer(
    table, inner, gates, layer, batch, ssm_batch, ssm_d, ssm_n, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    N_PADDED: tl.constexpr, R_PADDED: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = ((tl.program_id(0) // PARTS).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    d = (tl.program_id(0) % PARTS) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, N_PADDED)
    r = tl.arange(0, R_PADDED)
    inside = d < D
    tile = (row < batch) & inside[None, :]
    # the state is the largest thing by far: asked for first
    whole = tile[:, :, None] & (n < N)[None, None, :]
    state = tl.load(table + layer * SLOTS + SSM_STATE).to(tl.pointer_type(tl.float32))
    state += (row * ssm_batch + d[None, :] * ssm_d)[:, :, None] + n[None, None, :] * ssm_n
    h = tl.load(state, mask=whole, other=0.0)
    low = tl.zeros([ROWS, R_PADDED], tl.float32)
    b = tl.zeros([ROWS, N_PADDED], tl.float32)
    c = tl.zeros([ROWS, N_PADDED], tl.float32)
    weights = address(table, layer, X_WEIGHT, W)
    for start in range(0, D, CHUNK):
        e = start + tl.arange(0, CHUNK)
        real = (row < batch) & (e < D)[None, :]
        u = tl.load(inner + row * D + e[None, :], mask=real, other=0.0, cache_modifier=".cg")
        from_here = weights + e[:, None]
        w_low = tl.load(from_here + r[None, :] * D, mask=(e < D)[:, None] & (r < R)[None, :], other=0.0)
        w_b = tl.load(from_here + (R + n)[None, :] * D, mask=(e < D)[:, None] & (n < N)[None, :], other=0.0)
        w_c = tl.load(from_here + (R + N + n)[None, :] * D, mask=(e < D)[:, None] & (n < N)[None, :], other=0.0)
        low = product(u, w_low, low, W, PRECISION)
        b = product(u, w_b, b, W, PRECISION)
        c = product(u, w_c, c, W, PRECISION)
    where = address(table, layer, DT_WEIGHT, W) + d[None, :] * R + r[:, None]
    w_dt = tl.load(where, mask=(r < R)[:, None] & inside[None, :], other=0.0)
    dt_bias = tl.load(address(table, layer, DT_BIAS, tl.float32) + d, mask=inside, other=0.0)
    raw = product(low, w_dt, tl.zeros([ROWS, BLOCK_D], tl.float32), W, PRECISION)
    dt = softplus(raw + dt_bias[None, :])
    u = tl.load(inner + row * D + d[None, :], mask=tile, other=0.0, cache_modifier=".cg")
    log_a = address(table, layer, A_LOG, tl.float32) + d[:, None] * N + n[None, :]
    a = exp2(tl.load(log_a, mask=inside[:, None] & (n < N)[None, :], other=0.0) * LOG2E) * -LOG2E
    h = fma(exp2(dt[:, :, None] * a[None, :, :]), h, (dt * u)[:, :, None] * b[:, None, :])
    skip = tl.load(address(table, layer, SKIP, tl.float32) + d, mask=inside, other=0.0)
    y = fma(skip[None, :], u, sum_of_products(h, c[:, None, :], axis=2))
    gate = gates + row * D + d[None, :]
    z = tl.load(gate, mask=tile, other=0.0, cache_modifier=".cg")
    tl.debug_barrier()  # what several threads have read is changed when all have
    tl.store(state, h, mask=whole)
    tl.store(gate, y * z * sigmoid(z), mask=tile)


@device_function
def leave_layer(
    stream, table, gates, layer, batch, extra, extra_layer, streams, streams_layer, M: tl.constexpr, D: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr, W: tl.constexpr,
    STREAM: tl.constexpr, PROJ_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = ((tl.program_id(0) // PARTS).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    first = (tl.program_id(0) % PARTS) * BLOCK_M
    if first < M:
        m = first + tl.arange(0, BLOCK_M)
        more = tl.zeros([ROWS, BLOCK_M], tl.float32)
        weights = address(table, layer, OUT_WEIGHT, W) + m[None, :] * D
        for start in range(0, D, CHUNK):
            e = start + tl.arange(0, CHUNK)
            real = (row < batch) & (e < D)[None, :]
            y = tl.load(gates + row * D + e[None, :], mask=real, other=0.0, cache_modifier=".cg")
            w = tl.load(weights + e[:, None], mask=(e < D)[:, None] & (m < M)[None, :], other=0.0)
            more = product(y, w, more, W, PRECISION)
        if PROJ_BIAS:
            more += tl.load(address(table, layer, OUT_BIAS, W) + m, mask=m < M, other=0.0).to(tl.float32)[None, :]
        tile = (row < batch) & (m < M)[None, :]
        x = tl.load(stream + row * M + m[None, :], mask=tile, other=0.0, cache_modifier=".cg")
        x = (x + more).to(STREAM).to(tl.float32)
        if extra is not None:
            also = tl.load(extra + layer * extra_layer + row * M + m[None, :], mask=tile, other=0.0)
            x = (x + also).to(STREAM).to(tl.float32)
        tl.debug_barrier()
        tl.store(stream + row * M + m[None, :], x, mask=tile)
        if streams is not None:
            tl.store(streams + layer * streams_layer + row * M + m[None, :], x, mask=tile)


@device_function
def product(a, b, total, W: tl.constexpr, PRECISION: tl.constexpr):
    if APPROXIMATE:
        return tl.dot(a.to(W), b, total, input_precision=PRECISION)
    else:  # the interpreter would multiply the bits of bfloat16
        return tl.dot(a.to(W).to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
