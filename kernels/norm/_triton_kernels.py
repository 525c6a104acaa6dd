"""The kernels of the normalisations. `triton.py` says how they work and launches them."""
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._triton_math import device_function


@triton.jit(do_not_specialize=["rows"])
def norm(
    y,
    total,
    x,
    residual,
    weight,
    bias,
    rows,
    FEATURES: tl.constexpr,
    EPS: tl.constexpr,
    CENTRED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    at, there, column = place(tl.program_id(0), rows, FEATURES, BLOCK_R, BLOCK_F)
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=there)
        value = rounded.to(tl.float32)  # the backward pass starts from what was stored
    standard, _ = standardise(value, there, FEATURES, EPS, CENTRED)
    out = scale(standard, weight, bias, column, FEATURES, HAS_BIAS)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows"])
def norm_gradients(
    dx,
    y,
    partials,
    dy,
    dtotal,
    total,
    weight,
    bias,
    rows,
    FEATURES: tl.constexpr,
    EPS: tl.constexpr,
    CENTRED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_DTOTAL: tl.constexpr,
    AGAIN: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    # partials (programs, SUMS, FEATURES): of the weight's gradient, and of the bias's
    column = tl.arange(0, BLOCK_F)
    gain = tl.load(weight + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    dgain = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    dshift = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    tile = tl.program_id(0)
    while tile * BLOCK_R < rows:
        at, there, _ = place(tile, rows, FEATURES, BLOCK_R, BLOCK_F)
        value = tl.load(total + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(dy + at, mask=there, other=0.0).to(tl.float32)
        if HAS_DTOTAL:
            passing = tl.load(dtotal + at, mask=there, other=0.0).to(tl.float32)
        standard, inverse = standardise(value, there, FEATURES, EPS, CENTRED)
        if AGAIN:
            again = scale(standard, weight, bias, column, FEATURES, HAS_BIAS)
            tl.store(y + at, again.to(y.dtype.element_ty), mask=there)
        dgain += g * standard
        if HAS_BIAS:
            dshift += g
        g *= gain
        along = tl.sum(g * standard, axis=1) / FEATURES
        out = g - standard * along[:, None]
        if CENTRED:
            out -= (tl.sum(g, axis=1) / FEATURES)[:, None]
        out *= inverse[:, None]
        if HAS_DTOTAL:
            out += passing
        tl.store(dx + at, out.to(dx.dtype.element_ty), mask=there)
        tile += tl.num_programs(0)
    partials += tl.program_id(0) * (SUMS * FEATURES) + column
    tl.store(partials, tl.sum(dgain, axis=0), mask=column < FEATURES)
    if HAS_BIAS:
        tl.store(partials + FEATURES, tl.sum(dshift, axis=0), mask=column < FEATURES)


@device_function
def place(tile, rows, FEATURES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr):
    # where the elements of a tile of rows lie, which of them are there, and their columns
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    at = row.to(tl.int64)[:, None] * FEATURES + column[None, :]
    return at, (row < rows)[:, None] & (column < FEATURES)[None, :], column


@device_function
def standardise(value, there, FEATURES: tl.constexpr, EPS: tl.constexpr, CENTRED: tl.constexpr):
    # rows of mean square 1, of mean 0 too if centred, and what they were multiplied by
    if CENTRED:
        mean = tl.sum(value, axis=1) / FEATURES
        value = tl.where(there, value - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, axis=1) / FEATURES + EPS)
    return value * inverse[:, None], inverse


@device_function
def scale(standard, weight, bias, column, FEATURES: tl.constexpr, HAS_BIAS: tl.constexpr):
    out = standard * tl.load(weight + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        out += tl.load(bias + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    return out
