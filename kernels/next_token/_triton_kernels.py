"""The next token of one sequence: a program reads the whole output matrix, so it is for few sequences and small V.

Logits are rounded to the weights' type, as a product in that type leaves them: tokens that are equal then are equal
here. The draw is that of `mamba_seq.sampling.draw`, the largest of p / e with e exponential.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def next_token(
    tokens,
    hidden,
    history,
    positions,
    ended,
    out,
    weight,
    embedding,
    noise,
    history_batch,
    length,
    inverse_temperature,
    top_k,
    top_p,
    stop_token,
    V: tl.constexpr,
    M: tl.constexpr,
    V_PADDED: tl.constexpr,
    M_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    DRAWN: tl.constexpr,
    KEEPS_SOME: tl.constexpr,
    HAS_STOP: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, V_PADDED)
    logits = tl.zeros([V_PADDED], tl.float32)
    for start in tl.static_range(0, M, CHUNK):
        m = start + tl.arange(0, CHUNK)
        w = tl.load(weight + v[:, None] * M + m[None, :], mask=(v < V)[:, None] & (m < M)[None, :], other=0.0)
        x = tl.load(out + item * M + m, mask=m < M, other=0.0)
        logits += tl.sum(w.to(tl.float32) * x.to(tl.float32)[None, :], axis=1)
    logits = tl.where(v < V, logits.to(weight.dtype.element_ty).to(tl.float32), -float("inf"))
    if DRAWN:
        p = tl.exp2((logits - tl.max(logits, axis=0)) * (inverse_temperature * LOG2E))
        if KEEPS_SOME:
            # in the order of sorting, a token's place and what comes before it; all pairs are fewer steps than a sort
            before = (logits[None, :] > logits[:, None]) | (
                (logits[None, :] == logits[:, None]) & (v[None, :] < v[:, None])
            )
            place = tl.sum(before.to(tl.int32), axis=1)
            p = tl.where(place < top_k, p, 0.0)
            mass = tl.sum(tl.where(before, p[None, :], 0.0), axis=1)
            p = tl.where(mass < top_p * tl.sum(p, axis=0), p, 0.0)
        e = tl.load(noise + item * V + v, mask=v < V, other=1.0)
        token = tl.argmax(tl.where(v < V, p / e, -1.0), axis=0)
    else:
        token = tl.argmax(logits, axis=0)
    token = tl.minimum(token, V - 1)  # of logits that are not numbers, any token, but one
    position = tl.load(positions + item)
    gone = False
    if HAS_STOP:
        gone = tl.load(ended + item) != 0
        token = tl.where(gone, stop_token, token)
    tl.debug_barrier()  # all threads have read what one of them changes
    tl.store(positions + item, position + 1)
    if HAS_STOP:
        tl.store(ended + item, (gone | (token == stop_token)).to(tl.int8))
    tl.store(tokens + item, token.to(tl.int64))
    tl.store(history + item * history_batch + position, token.to(tl.int64), mask=position < length)
    m = tl.arange(0, M_PADDED)
    row = tl.load(embedding + token.to(tl.int64) * M + m, mask=m < M, other=0.0)
    tl.store(hidden + item * M + m, row.to(hidden.dtype.element_ty), mask=m < M)
