"""The next level of a clip, with counted random numbers: final norm, logits, draw, embedding and records.

A program is a clip, whatever their number, so that a clip's results do not depend on it; the definition is
`mamba_seq.counted.draw_counted`, in float32. A guided clip has two rows, with its class and without.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def next_level(
    tokens,
    hidden,
    drawn,
    likelihood,
    positions,
    indices,
    out,
    norm_weight,
    norm_bias,
    weight,
    embedding,
    classes,
    seed,
    origin,
    count,
    inverse_temperature,
    top_k,
    top_p,
    guidance,
    eps,
    V: tl.constexpr,
    M: tl.constexpr,
    V_PADDED: tl.constexpr,
    M_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    DRAWN: tl.constexpr,
    KEEPS_SOME: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    ROWS: tl.constexpr,
):
    clip = tl.program_id(0).to(tl.int64)
    item = clip * ROWS
    v = tl.arange(0, V_PADDED)
    m = tl.arange(0, M_PADDED)
    logits = logits_of(out + item * M, norm_weight, norm_bias, weight, eps, V, M, V_PADDED, M_PADDED, CHUNK, LAYER_NORM)
    steered = logits
    if ROWS == 2:
        without = logits_of(
            out + (item + 1) * M, norm_weight, norm_bias, weight, eps, V, M, V_PADDED, M_PADDED, CHUNK, LAYER_NORM
        )
        steered = without + guidance * (logits - without)
    logits = tl.where(v < V, logits, -float("inf"))
    steered = tl.where(v < V, steered, -float("inf"))
    best = tl.max(logits, axis=0)
    mass = tl.sum(tl.exp2((logits - best) * LOG2E), axis=0)
    position = tl.load(positions + item)
    token = tl.argmax(steered, axis=0)
    if DRAWN:
        p = tl.exp2((steered - tl.max(steered, axis=0)) * (inverse_temperature * LOG2E))
        if KEEPS_SOME:
            before = (steered[None, :] > steered[:, None]) | (
                (steered[None, :] == steered[:, None]) & (v[None, :] < v[:, None])
            )
            place = tl.sum(before.to(tl.int32), axis=1)
            p = tl.where(place < top_k, p, 0.0)
            held = tl.sum(tl.where(before, p[None, :], 0.0), axis=1)
            p = tl.where(held < top_p * tl.sum(p, axis=0), p, 0.0)
        cumulated = tl.cumsum(p, axis=0)
        threshold = uniform(tl.load(seed), tl.load(seed + 1), tl.load(indices + item), position) * tl.max(
            cumulated, axis=0
        )
        first = tl.min(tl.where((cumulated > threshold) & (p > 0), v, V_PADDED), axis=0)
        token = tl.where(first < V, first, token)
    token = tl.minimum(token, V - 1)
    value = (tl.sum(tl.where(v == token, logits, 0.0), axis=0) - best) - tl.log2(mass) * LN2
    tl.debug_barrier()  # all threads have read what one of them changes
    column = (position - origin) % count
    tl.store(drawn + clip * count + column, token.to(tl.int64))
    tl.store(likelihood + clip * count + column, value)
    level = tl.load(embedding + token.to(tl.int64) * M + m, mask=m < M, other=0.0).to(tl.float32)
    for each in tl.static_range(ROWS):
        tl.store(positions + item + each, position + 1)
        tl.store(tokens + item + each, token.to(tl.int64))
        row = level
        if classes is not None:
            row += tl.load(classes + (item + each) * M + m, mask=m < M, other=0.0).to(tl.float32)
        tl.store(hidden + (item + each) * M + m, row, mask=m < M)


@triton.jit
def logits_of(
    out,
    norm_weight,
    norm_bias,
    weight,
    eps,
    V: tl.constexpr,
    M: tl.constexpr,
    V_PADDED: tl.constexpr,
    M_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    LAYER_NORM: tl.constexpr,
):
    v = tl.arange(0, V_PADDED)
    m = tl.arange(0, M_PADDED)
    x = tl.load(out + m, mask=m < M, other=0.0)
    mean = 0.0
    if LAYER_NORM:
        mean = tl.sum(x, axis=0) / M
        x = tl.where(m < M, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / M + eps)
    logits = tl.zeros([V_PADDED], tl.float32)
    for start in tl.static_range(0, M, CHUNK):
        k = start + tl.arange(0, CHUNK)
        w = tl.load(weight + v[:, None] * M + k[None, :], mask=(v < V)[:, None] & (k < M)[None, :], other=0.0)
        part = (tl.load(out + k, mask=k < M, other=0.0) - mean) * scale
        part = part * tl.load(norm_weight + k, mask=k < M, other=0.0).to(tl.float32)
        if norm_bias is not None:
            part += tl.load(norm_bias + k, mask=k < M, other=0.0).to(tl.float32)
        logits += tl.sum(w.to(tl.float32) * part[None, :], axis=1)
    return logits


@triton.jit
def uniform(seed_low, seed_high, index, position):
    # the first word of Philox4x32-10
    k0 = seed_low.to(tl.uint32)
    k1 = seed_high.to(tl.uint32)
    c0 = position.to(tl.uint32)
    c1 = (position >> 32).to(tl.uint32)
    c2 = index.to(tl.uint32)
    c3 = (index >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return (2 * (c0 >> 9) + 1).to(tl.float32) * 5.9604644775390625e-08
