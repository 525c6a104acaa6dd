"""A step of a stack of residual blocks for one sequence: all matrices are read once, nothing else is large.

A group of PARTS programs serves one sequence, program `part` the channels from part * BLOCK_D on. What it does in a
layer, with M the width of the residual stream x, which every program holds whole:

    x -> norm -> in_proj of its channels -> convolution, SiLU -> its part of the sums of x_proj
                                  --- every program waits for all ---
    sums of x_proj -> dt_proj, softplus, recurrence, gate of its channels -> its part of the sums of out_proj
                                  --- every program waits for all ---
    x = x + sums of out_proj

Parts of sums go through memory and are added up in the order of the programs by each of them, so that all hold the same
bits. With one program a sequence there is nothing to wait for. `stack` goes through all layers in one launch;
`enter` and `leave` are its two halves as kernels of their own, for the interpreter, which runs programs one after
another, and for more programs than a GPU can hold at once.

A layer's weights do not depend on its input: they are asked for a phase ahead, and wait in registers. They are read
where the model has them, through a table of addresses.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import LOG2E, device_function, exp2, sigmoid, softplus, sum_of_products

# where a row of the table has what; layer after layer
SLOTS = tl.constexpr(16)
NORM_WEIGHT = tl.constexpr(0)
NORM_BIAS = tl.constexpr(1)
IN_WEIGHT = tl.constexpr(2)
IN_BIAS = tl.constexpr(3)
CONV_WEIGHT = tl.constexpr(4)
CONV_BIAS = tl.constexpr(5)
X_WEIGHT = tl.constexpr(6)
DT_WEIGHT = tl.constexpr(7)
DT_BIAS = tl.constexpr(8)
A_LOG = tl.constexpr(9)
SKIP = tl.constexpr(10)
OUT_WEIGHT = tl.constexpr(11)
OUT_BIAS = tl.constexpr(12)
CONV_STATE = tl.constexpr(13)
SSM_STATE = tl.constexpr(14)


@triton.jit
def stack(
    out,
    residual,
    table,
    projected,
    added,
    counters,
    final_weight,
    final_bias,
    residual_batch,
    residual_m,
    conv_batch,
    conv_d,
    conv_k,
    ssm_batch,
    ssm_d,
    ssm_n,
    eps,
    final_eps,
    more,
    more_layer,
    streams,
    streams_layer,
    LAYERS: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    M_PADDED: tl.constexpr,
    N_PADDED: tl.constexpr,
    R_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    W: tl.constexpr,
    CONV: tl.constexpr,
    STREAM: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    NORM_HAS_BIAS: tl.constexpr,
    PROJ_BIAS: tl.constexpr,
    HAS_CONV_BIAS: tl.constexpr,
    FINAL: tl.constexpr,
    FINAL_HAS_BIAS: tl.constexpr,
):
    item = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    m = tl.arange(0, M_PADDED)
    conv = item * conv_batch + d * conv_d
    ssm = item * ssm_batch
    projected += item * PARTS * 2 * (R_PADDED + N_PADDED)
    added += item * PARTS * M_PADDED
    counters += item * 2
    x = tl.load(residual + item * residual_batch + m * residual_m, mask=m < M, other=0.0).to(tl.float32)
    w_x, w_z = load_in(table, 0, d, m, M, D, W)
    awaited = 0
    for layer in range(LAYERS):
        w_low, w_b, w_c = load_selection(table, layer, d, D, N, R, N_PADDED, R_PADDED, W)
        w_out = load_out(table, layer, d, m, M, D, W)
        taps, inputs, offset = load_convolution(table, layer, d, conv, conv_k, D, K, K_PADDED, W, CONV, HAS_CONV_BIAS)
        u, z = project_in(
            x, w_x, w_z, taps, inputs, offset, table, layer, d, m, conv, conv_k, eps,
            M, D, K, K_PADDED, W, CONV, LAYER_NORM, NORM_HAS_BIAS, PROJ_BIAS,
        )  # fmt: skip
        w_x, w_z = load_in(table, tl.minimum(layer + 1, LAYERS - 1), d, m, M, D, W)
        a, h, w_dt, dt_bias, skip = load_recurrence(table, layer, d, ssm, ssm_d, ssm_n, D, N, R, N_PADDED, R_PADDED, W)
        low, b, c = select(u, w_low, w_b, w_c)
        if PARTS > 1:
            store_selection(projected, part, low, b, c, R_PADDED, N_PADDED)
            awaited += PARTS
            wait_for_all(counters, awaited)
            low, b, c = sum_selection(projected, PARTS, PARTS_PADDED, R_PADDED, N_PADDED)
        y = recur(u, z, low, b, c, a, h, w_dt, dt_bias, skip, table, layer, d, ssm, ssm_d, ssm_n, D, N, N_PADDED)
        sums = tl.sum(w_out.to(tl.float32) * y[None, :], axis=1)
        if PARTS > 1:
            tl.store(added + part * M_PADDED + m, sums)
            awaited += PARTS
            wait_for_all(counters, awaited)
            sums = sum_added(added, m, PARTS, PARTS_PADDED, M_PADDED)
        x = add_to_stream(x, sums, table, layer, m, M, W, STREAM, PROJ_BIAS)
        if more is not None:
            extra = tl.load(more + layer * more_layer + item * M + m, mask=m < M, other=0.0)
            x = (x + extra).to(STREAM).to(tl.float32)
        if streams is not None:
            # every program of a group holds the same
            tl.store(streams + layer * streams_layer + item * M + m, x, mask=(m < M) & (part == 0))
    if PARTS > 1:
        forget(counters, PARTS)
    if part == 0:
        finish(out, x, final_weight, final_bias, item, m, final_eps, M, LAYER_NORM, FINAL, FINAL_HAS_BIAS)


@triton.jit
def enter(
    stream,
    table,
    held,
    projected,
    added,
    layer,
    batch,
    conv_batch,
    conv_d,
    conv_k,
    eps,
    M: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    M_PADDED: tl.constexpr,
    N_PADDED: tl.constexpr,
    R_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    W: tl.constexpr,
    CONV: tl.constexpr,
    STREAM: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    NORM_HAS_BIAS: tl.constexpr,
    PROJ_BIAS: tl.constexpr,
    HAS_CONV_BIAS: tl.constexpr,
):
    # the stream (2, B, M) is read in one half and left in the other, since the programs of a group all read it
    item = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    m = tl.arange(0, M_PADDED)
    projected += item * PARTS * 2 * (R_PADDED + N_PADDED)
    added += item * PARTS * M_PADDED
    w_x, w_z = load_in(table, layer, d, m, M, D, W)
    w_low, w_b, w_c = load_selection(table, layer, d, D, N, R, N_PADDED, R_PADDED, W)
    x = read_stream(stream, added, table, layer, item, batch, m, M, M_PADDED, PARTS, PARTS_PADDED, W, STREAM, PROJ_BIAS)
    if part == 0:
        tl.store(stream + ((layer + 1) % 2 * batch + item) * M + m, x, mask=m < M)
    conv = item * conv_batch + d * conv_d
    taps, inputs, offset = load_convolution(table, layer, d, conv, conv_k, D, K, K_PADDED, W, CONV, HAS_CONV_BIAS)
    u, z = project_in(
        x, w_x, w_z, taps, inputs, offset, table, layer, d, m, conv, conv_k, eps,
        M, D, K, K_PADDED, W, CONV, LAYER_NORM, NORM_HAS_BIAS, PROJ_BIAS,
    )  # fmt: skip
    low, b, c = select(u, w_low, w_b, w_c)
    store_selection(projected, part, low, b, c, R_PADDED, N_PADDED)
    tl.store(held + item * 2 * D + d, u, mask=d < D)
    tl.store(held + item * 2 * D + D + d, z, mask=d < D)


@triton.jit
def leave(
    table,
    held,
    projected,
    added,
    layer,
    ssm_batch,
    ssm_d,
    ssm_n,
    M: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    M_PADDED: tl.constexpr,
    N_PADDED: tl.constexpr,
    R_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    W: tl.constexpr,
):
    item = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    m = tl.arange(0, M_PADDED)
    projected += item * PARTS * 2 * (R_PADDED + N_PADDED)
    ssm = item * ssm_batch
    w_out = load_out(table, layer, d, m, M, D, W)
    a, h, w_dt, dt_bias, skip = load_recurrence(table, layer, d, ssm, ssm_d, ssm_n, D, N, R, N_PADDED, R_PADDED, W)
    u = tl.load(held + item * 2 * D + d, mask=d < D, other=0.0)
    z = tl.load(held + item * 2 * D + D + d, mask=d < D, other=0.0)
    low, b, c = sum_selection(projected, PARTS, PARTS_PADDED, R_PADDED, N_PADDED)
    y = recur(u, z, low, b, c, a, h, w_dt, dt_bias, skip, table, layer, d, ssm, ssm_d, ssm_n, D, N, N_PADDED)
    more = tl.sum(w_out.to(tl.float32) * y[None, :], axis=1)
    tl.store(added + (item * PARTS + part) * M_PADDED + m, more)


@triton.jit
def end(
    out,
    stream,
    table,
    added,
    final_weight,
    final_bias,
    layers,
    batch,
    final_eps,
    M: tl.constexpr,
    M_PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    W: tl.constexpr,
    STREAM: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    PROJ_BIAS: tl.constexpr,
    FINAL: tl.constexpr,
    FINAL_HAS_BIAS: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    m = tl.arange(0, M_PADDED)
    added += item * PARTS * M_PADDED
    x = read_stream(
        stream, added, table, layers, item, batch, m, M, M_PADDED, PARTS, PARTS_PADDED, W, STREAM, PROJ_BIAS
    )
    finish(out, x, final_weight, final_bias, item, m, final_eps, M, LAYER_NORM, FINAL, FINAL_HAS_BIAS)


@device_function
def address(table, layer, SLOT: tl.constexpr, TYPE: tl.constexpr):
    # matrices and vectors begin at multiples of 16 bytes, as the launcher has checked
    return tl.multiple_of(tl.load(table + layer * SLOTS + SLOT).to(tl.pointer_type(TYPE)), 16)


@device_function
def load_in(table, layer, d, m, M: tl.constexpr, D: tl.constexpr, W: tl.constexpr):
    where = address(table, layer, IN_WEIGHT, W) + d[:, None] * M + m[None, :]
    tile = (d < D)[:, None] & (m < M)[None, :]
    return tl.load(where, mask=tile, other=0.0), tl.load(where + D * M, mask=tile, other=0.0)


@device_function
def load_selection(
    table, layer, d, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, N_PADDED: tl.constexpr,
    R_PADDED: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    where = address(table, layer, X_WEIGHT, W) + d[None, :]
    r = tl.arange(0, R_PADDED)
    n = tl.arange(0, N_PADDED)
    inside = (d < D)[None, :]
    w_low = tl.load(where + r[:, None] * D, mask=(r < R)[:, None] & inside, other=0.0)
    w_b = tl.load(where + (R + n)[:, None] * D, mask=(n < N)[:, None] & inside, other=0.0)
    w_c = tl.load(where + (R + N + n)[:, None] * D, mask=(n < N)[:, None] & inside, other=0.0)
    return w_low, w_b, w_c


@device_function
def load_out(table, layer, d, m, M: tl.constexpr, D: tl.constexpr, W: tl.constexpr):
    where = address(table, layer, OUT_WEIGHT, W) + m[:, None] * D + d[None, :]
    return tl.load(where, mask=(m < M)[:, None] & (d < D)[None, :], other=0.0)


@device_function
def load_recurrence(
    table, layer, d, ssm, ssm_d, ssm_n, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    N_PADDED: tl.constexpr, R_PADDED: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, R_PADDED)
    n = tl.arange(0, N_PADDED)
    inside = d < D
    tile = inside[:, None] & (n < N)[None, :]
    a = tl.load(address(table, layer, A_LOG, tl.float32) + d[:, None] * N + n[None, :], mask=tile, other=0.0)
    state = tl.load(table + layer * SLOTS + SSM_STATE).to(tl.pointer_type(tl.float32)) + ssm
    h = tl.load(state + d[:, None] * ssm_d + n[None, :] * ssm_n, mask=tile, other=0.0)
    where = address(table, layer, DT_WEIGHT, W) + d[:, None] * R + r[None, :]
    w_dt = tl.load(where, mask=inside[:, None] & (r < R)[None, :], other=0.0)
    dt_bias = tl.load(address(table, layer, DT_BIAS, tl.float32) + d, mask=inside, other=0.0)
    skip = tl.load(address(table, layer, SKIP, tl.float32) + d, mask=inside, other=0.0)
    return a, h, w_dt, dt_bias, skip


@device_function
def load_convolution(
    table, layer, d, conv, conv_k, D: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr, W: tl.constexpr,
    CONV: tl.constexpr, HAS_CONV_BIAS: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, K_PADDED)
    inside = d < D
    where = address(table, layer, CONV_WEIGHT, W) + d[:, None] * K + k[None, :]
    taps = tl.load(where, mask=inside[:, None] & (k < K)[None, :], other=0.0)
    past = tl.load(table + layer * SLOTS + CONV_STATE).to(tl.pointer_type(CONV)) + conv[:, None]
    inputs = tl.load(past + k[None, :] * conv_k, mask=inside[:, None] & (k < K - 1)[None, :], other=0.0)
    offset = tl.zeros_like(d).to(tl.float32)
    if HAS_CONV_BIAS:
        offset += tl.load(address(table, layer, CONV_BIAS, W) + d, mask=inside, other=0.0).to(tl.float32)
    return taps, inputs, offset


@device_function
def project_in(
    x, w_x, w_z, taps, inputs, offset, table, layer, d, m, conv, conv_k, eps,
    M: tl.constexpr, D: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr, W: tl.constexpr, CONV: tl.constexpr,
    LAYER_NORM: tl.constexpr, NORM_HAS_BIAS: tl.constexpr, PROJ_BIAS: tl.constexpr,
):  # fmt: skip
    # norm, in_proj, convolution and SiLU; its inputs move on by one
    inside = d < D
    scale = tl.load(address(table, layer, NORM_WEIGHT, W) + m, mask=m < M, other=0.0).to(tl.float32)
    normed = normalise(x, m, eps, M, LAYER_NORM) * scale
    if NORM_HAS_BIAS:
        normed += tl.load(address(table, layer, NORM_BIAS, W) + m, mask=m < M, other=0.0).to(tl.float32)
    now = tl.sum(w_x.to(tl.float32) * normed[None, :], axis=1)
    z = tl.sum(w_z.to(tl.float32) * normed[None, :], axis=1)
    if PROJ_BIAS:
        bias = address(table, layer, IN_BIAS, W)
        now += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
        z += tl.load(bias + D + d, mask=inside, other=0.0).to(tl.float32)
    # what the next steps will read of this one is what this one reads
    kept = now.to(CONV)
    k = tl.arange(0, K_PADDED)
    window = tl.where((k == K - 1)[None, :], kept[:, None], inputs)
    u = tl.sum(taps.to(tl.float32) * window.to(tl.float32), axis=1) + offset
    # several threads hold a channel, and each has read its inputs for itself: all do before one of them moves them on
    tl.debug_barrier()
    past = tl.load(table + layer * SLOTS + CONV_STATE).to(tl.pointer_type(CONV)) + conv
    moved = inside[:, None] & ((k > 0) & (k < K - 1))[None, :]
    tl.store(past[:, None] + (k - 1)[None, :] * conv_k, inputs, mask=moved)
    tl.store(past + (K - 2) * conv_k, kept, mask=inside)
    return u * sigmoid(u), z


@device_function
def select(u, w_low, w_b, w_c):
    low = tl.sum(w_low.to(tl.float32) * u[None, :], axis=1)
    b = tl.sum(w_b.to(tl.float32) * u[None, :], axis=1)
    c = tl.sum(w_c.to(tl.float32) * u[None, :], axis=1)
    return low, b, c


@device_function
def recur(
    u, z, low, b, c, a, h, w_dt, dt_bias, skip, table, layer, d, ssm, ssm_d, ssm_n,
    D: tl.constexpr, N: tl.constexpr, N_PADDED: tl.constexpr,
):  # fmt: skip
    # the recurrence of the operator selective_state_update, with A = -exp(a)
    n = tl.arange(0, N_PADDED)
    tile = (d < D)[:, None] & (n < N)[None, :]
    dt = softplus(sum_of_products(w_dt.to(tl.float32), low[None, :], axis=1) + dt_bias)
    decay = exp2(dt[:, None] * (exp2(a * LOG2E) * -LOG2E))
    h = decay * h + (dt * u)[:, None] * b[None, :]
    state = tl.load(table + layer * SLOTS + SSM_STATE).to(tl.pointer_type(tl.float32)) + ssm
    tl.debug_barrier()  # a small state is in several threads too
    tl.store(state + d[:, None] * ssm_d + n[None, :] * ssm_n, h, mask=tile)
    y = sum_of_products(h, c[None, :], axis=1) + skip * u
    return y * z * sigmoid(z)


@device_function
def normalise(x, m, eps, M: tl.constexpr, LAYER_NORM: tl.constexpr):
    if LAYER_NORM:
        x = tl.where(m < M, x - tl.sum(x, axis=0) / M, 0.0)
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / M + eps)


@device_function
def store_selection(projected, part, low, b, c, R_PADDED: tl.constexpr, N_PADDED: tl.constexpr):
    row = projected + part * 2 * (R_PADDED + N_PADDED)
    n = tl.arange(0, N_PADDED)
    tl.store(row + n, b)
    tl.store(row + N_PADDED + n, c)
    tl.store(row + 2 * N_PADDED + tl.arange(0, R_PADDED), low)


@device_function
def sum_selection(
    projected, PARTS: tl.constexpr, PARTS_PADDED: tl.constexpr, R_PADDED: tl.constexpr, N_PADDED: tl.constexpr
):  # fmt: skip
    p = tl.arange(0, PARTS_PADDED)
    n = tl.arange(0, N_PADDED)
    r = tl.arange(0, R_PADDED)
    rows = projected + p[:, None] * 2 * (R_PADDED + N_PADDED)
    real = (p < PARTS)[:, None]
    # past the first-level cache, which knows nothing of what other multiprocessors write
    b = tl.load(rows + n[None, :], mask=real, other=0.0, cache_modifier=".cg")
    c = tl.load(rows + N_PADDED + n[None, :], mask=real, other=0.0, cache_modifier=".cg")
    low = tl.load(rows + 2 * N_PADDED + r[None, :], mask=real, other=0.0, cache_modifier=".cg")
    return tl.sum(low, axis=0), tl.sum(b, axis=0), tl.sum(c, axis=0)


@device_function
def sum_added(added, m, PARTS: tl.constexpr, PARTS_PADDED: tl.constexpr, M_PADDED: tl.constexpr):
    p = tl.arange(0, PARTS_PADDED)
    where = added + p[:, None] * M_PADDED + m[None, :]
    return tl.sum(tl.load(where, mask=(p < PARTS)[:, None], other=0.0, cache_modifier=".cg"), axis=0)


@device_function
def add_to_stream(
    x, more, table, layer, m, M: tl.constexpr, W: tl.constexpr, STREAM: tl.constexpr, PROJ_BIAS: tl.constexpr
):  # fmt: skip
    if PROJ_BIAS:
        more += tl.load(address(table, layer, OUT_BIAS, W) + m, mask=m < M, other=0.0).to(tl.float32)
    return (x + more).to(STREAM).to(tl.float32)


@device_function
def read_stream(
    stream, added, table, layer, item, batch, m, M: tl.constexpr, M_PADDED: tl.constexpr, PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr, W: tl.constexpr, STREAM: tl.constexpr, PROJ_BIAS: tl.constexpr,
):  # fmt: skip
    # what the layer before has left to add comes first
    x = tl.load(stream + (layer % 2 * batch + item) * M + m, mask=m < M, other=0.0)
    if layer > 0:
        more = sum_added(added, m, PARTS, PARTS_PADDED, M_PADDED)
        x = add_to_stream(x, more, table, layer - 1, m, M, W, STREAM, PROJ_BIAS)
    return x


@device_function
def finish(
    out, x, weight, bias, item, m, eps, M: tl.constexpr, LAYER_NORM: tl.constexpr, FINAL: tl.constexpr,
    FINAL_HAS_BIAS: tl.constexpr,
):  # fmt: skip
    if FINAL:
        x = normalise(x, m, eps, M, LAYER_NORM) * tl.load(weight + m, mask=m < M, other=0.0).to(tl.float32)
        if FINAL_HAS_BIAS:
            x += tl.load(bias + m, mask=m < M, other=0.0).to(tl.float32)
    tl.store(out + item * M + m, x.to(out.dtype.element_ty), mask=m < M)


@triton.jit
def wait_for_all(counter, awaited):
    # what the threads of this program have written is done before one of them says so
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")
    seen = load_acquire(counter)
    while seen < awaited:
        seen = load_acquire(counter)


@triton.jit
def load_acquire(counter):
    # by every thread for itself: none reads on before it has seen the count
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [counter.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def forget(counters, PARTS: tl.constexpr):
    # the last program to come here leaves the counters as the next launch wants them; nobody waits any more
    tl.debug_barrier()
    if tl.atomic_add(counters + 1, 1, sem="acq_rel", scope="gpu") == PARTS - 1:
        tl.store(counters, 0)
        tl.store(counters + 1, 0)
