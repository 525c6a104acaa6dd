"""The kernels of the causal convolution. `triton.py` says how they work and launches them."""
# Triton's language is not quite Python: it has tuples but no unpacking into one, and its interpreter cannot count a
# `for` over a loaded bound, hence `while`
# ruff: noqa: RUF005
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import device_function, sigmoid


@triton.jit(do_not_specialize=["length", "stretch"])
def convolution(
    y,
    x,
    weight,
    bias,
    state,
    pieces,
    cu_seqlens,
    x_batch,
    x_row,
    length,
    channels,
    stretch,
    K: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    batch, sequence, first, t, end, _last_end, d = locate(
        pieces, cu_seqlens, length, channels, stretch, BLOCK_D, PACKED
    )  # fmt: skip
    inside = d < channels
    taps, offset = load_weights(weight, bias, d, inside, K, HAS_BIAS)
    x += batch * x_batch + d
    y += batch * length * channels + d
    window = load_window(x, state, sequence, first, t, x_row, channels, d, inside, K, HAS_STATE)
    while t < end:
        for i in tl.static_range(GROUP):
            here = inside & (t + i < end)
            window = window + (tl.load(x + (t + i).to(tl.int64) * x_row, mask=here, other=0.0).to(tl.float32),)
        for i in tl.static_range(GROUP):
            value = convolve(window, i, taps, offset, K)
            if SILU:
                value *= sigmoid(value)
            here = inside & (t + i < end)
            tl.store(y + (t + i).to(tl.int64) * channels, value.to(y.dtype.element_ty), mask=here)
        window = last(window, GROUP, K - 1)
        t += GROUP


@triton.jit(do_not_specialize=["length", "stretch"])
def convolution_gradients(
    dx,
    partials,
    dstate,
    dy,
    x,
    weight,
    bias,
    state,
    pieces,
    cu_seqlens,
    dx_batch,
    dx_row,
    dy_batch,
    dy_row,
    x_batch,
    x_row,
    length,
    channels,
    stretch,
    K: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    # partials (B * parts, D K + D) are sums over one stretch each: the gradients of weight (D, K) and bias (D,)
    batch, sequence, first, start, end, last_end, d = locate(
        pieces, cu_seqlens, length, channels, stretch, BLOCK_D, PACKED
    )  # fmt: skip
    inside = d < channels
    taps, offset = load_weights(weight, bias, d, inside, K, HAS_BIAS)
    x += batch * x_batch + d
    dy += batch * dy_batch + d
    dx += batch * dx_batch + d
    if HAS_STATE:
        dstate += (sequence * channels + d) * (K - 1)
    window = load_window(x, state, sequence, first, start, x_row, channels, d, inside, K, HAS_STATE)
    zero = tl.zeros([BLOCK_D], tl.float32)
    gs = ()  # gradients before the activation of the K - 1 steps before t
    dtaps = ()
    for _ in tl.static_range(K - 1):
        gs = gs + (zero,)
    for _ in tl.static_range(K):
        dtaps = dtaps + (zero,)
    doffset = zero

    t = start
    while t < end + K - 1:
        raws = ()
        for i in tl.static_range(GROUP):
            here = inside & (t + i < last_end) & (t + i < end + K - 1)
            window = window + (tl.load(x + (t + i).to(tl.int64) * x_row, mask=here, other=0.0).to(tl.float32),)
            raws = raws + (tl.load(dy + (t + i).to(tl.int64) * dy_row, mask=here, other=0.0),)
        for i in tl.static_range(GROUP):
            g = raws[i].to(tl.float32)
            if SILU:
                value = convolve(window, i, taps, offset, K)
                s = sigmoid(value)
                g *= s * (1.0 + value * (1.0 - s))
            gs = gs + (g,)
            own = tl.where(t + i < end, g, 0.0)  # later steps belong to the next stretch
            doffset += own
            new = ()
            for k in tl.static_range(K):
                new = new + (dtaps[k] + own * window[i + k],)
            dtaps = new
            total = zero
            for k in tl.static_range(K):
                total += taps[K - 1 - k] * gs[i + k]
            s_time = t + i - (K - 1)
            here = inside & (s_time >= start) & (s_time < end)
            tl.store(dx + s_time.to(tl.int64) * dx_row, total.to(dx.dtype.element_ty), mask=here)
            if HAS_STATE:
                here = inside & (start == first) & (s_time < first)
                tl.store(dstate + (t + i - first), total.to(dstate.dtype.element_ty), mask=here)
        window = last(window, GROUP, K - 1)
        gs = last(gs, GROUP, K - 1)
        t += GROUP

    slot = (tl.program_id(0) // ((channels + BLOCK_D - 1) // BLOCK_D)).to(tl.int64)
    if HAS_BIAS:
        partials += slot * (channels * (K + 1))
        tl.store(partials + channels * K + d, doffset, mask=inside)
    else:
        partials += slot * (channels * K)
    for k in tl.static_range(K):
        tl.store(partials + d * K + k, dtaps[k], mask=inside)


@triton.jit
def convolution_step(
    y,
    x,
    state,
    weight,
    bias,
    x_batch,
    x_d,
    state_batch,
    state_d,
    state_k,
    weight_d,
    weight_k,
    channels,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = (channels + BLOCK_D - 1) // BLOCK_D
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < channels
    state += batch * state_batch + d * state_d
    weight += d * weight_d
    now = tl.load(x + batch * x_batch + d * x_d, mask=inside, other=0.0)
    value = tl.load(weight + (K - 1) * weight_k, mask=inside, other=0.0).to(tl.float32) * now.to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(K - 1):
        past = tl.load(state + k * state_k, mask=inside, other=0.0)
        value += tl.load(weight + k * weight_k, mask=inside, other=0.0).to(tl.float32) * past.to(tl.float32)
        if k > 0:
            tl.store(state + (k - 1) * state_k, past, mask=inside)
    tl.store(state + (K - 2) * state_k, now, mask=inside)
    if SILU:
        value *= sigmoid(value)
    tl.store(y + batch * channels + d, value.to(y.dtype.element_ty), mask=inside)


@device_function
def locate(pieces, cu_seqlens, length, channels, stretch, BLOCK_D: tl.constexpr, PACKED: tl.constexpr):
    # program -> batch item and sequence (int64: they multiply strides), where that begins, stretch of time, where the
    # sequence ends, channels
    blocks = (channels + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    if PACKED:
        piece = pieces + program // blocks * 3
        sequence = tl.load(piece)
        first = tl.load(cu_seqlens + sequence)
        last_end = tl.load(cu_seqlens + sequence + 1)
        sequence = sequence.to(tl.int64)
        return sequence * 0, sequence, first, tl.load(piece + 1), tl.load(piece + 2), last_end, d
    else:
        parts = (length + stretch - 1) // stretch
        batch = (program // (blocks * parts)).to(tl.int64)
        start = (program // blocks) % parts * stretch
        return batch, batch, 0, start, tl.minimum(start + stretch, length), length, d


@device_function
def load_weights(weight, bias, d, inside, K: tl.constexpr, HAS_BIAS: tl.constexpr):
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight + d * K + k, mask=inside, other=0.0).to(tl.float32),)
    offset = tl.zeros(d.shape, tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    return taps, offset


@device_function
def load_window(x, state, sequence, first, t, x_row, channels, d, inside, K: tl.constexpr, HAS_STATE: tl.constexpr):
    # the K - 1 rows before t, oldest first; before the sequence, those of the state (B or S, D, K-1), or zeros
    window = ()
    for k in tl.static_range(K - 1):
        at = t + (k - (K - 1))
        row = tl.load(x + at.to(tl.int64) * x_row, mask=inside & (at >= first), other=0.0).to(tl.float32)
        if HAS_STATE:
            past = state + (sequence * channels + d) * (K - 1) + (t + k - first)
            row += tl.load(past, mask=inside & (at < first), other=0.0).to(tl.float32)
        window = window + (row,)
    return window


@device_function
def convolve(window, i, taps, offset, K: tl.constexpr):
    value = offset
    for k in tl.static_range(K):
        value += taps[k] * window[i + k]
    return value


@device_function
def last(window, START: tl.constexpr, COUNT: tl.constexpr):
    rest = ()
    for k in tl.static_range(COUNT):
        rest = rest + (window[START + k],)
    return rest
