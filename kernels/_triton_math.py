"""Exponential, reciprocal, softplus, sigmoid and turns for Triton kernels, on the GPU and in Triton's interpreter.

On the GPU, exponential and reciprocal are single instructions of the special-function unit (2 units in the last place,
denormals flushed to zero), written as inline assembly since `tl.exp2` and a division cost several each. Triton's
interpreter knows no assembly, and rounds twice in a fused multiply-add; there they are the plain operations, the last
one in float64. That is all that differs between the two.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._dispatch import triton_interpreted

APPROXIMATE = tl.constexpr(not triton_interpreted())
LOG2E = tl.constexpr(1.4426950408889634)
LOG2E_NEAR = tl.constexpr(1.4426950216293335)  # rounded to float32
LOG2E_SHORT = tl.constexpr(1.925963033500981e-08)  # what rounding has taken off
LN2 = tl.constexpr(0.6931471805599453)
QUARTERS = tl.constexpr(0.6366197723675814)  # quarter turns in a radian
QUARTER = tl.constexpr(1.5707963705062866)  # of a turn, in radians, rounded to float32
QUARTER_EXCESS = tl.constexpr(4.371139000186241e-08)  # what rounding has added
LEAST = tl.constexpr(-126.0)  # the exponent of the smallest normal number
FARTHEST = tl.constexpr(4194304.0)  # radians from which on an angle is 0: a rounding of x is a quarter of one there
TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 2^23: added and taken away again, it rounds to the nearest integer

# the interpreter sets itself up anew at every call of a jitted function, 2 ms each; a plain function runs in the
# caller's
device_function = (lambda function: function) if triton_interpreted() else triton.jit


@device_function
def exp2(x):
    if APPROXIMATE:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@device_function
def unbiased_exp2(x):
    """Return 2^x for x <= 0, to 1e-7, off by nothing on average; 0 below -126.

    The special-function unit is as near, but short or long by 1e-8 on average over some ranges, and a state of a long
    memory is multiplied by one such number at every step (minimax on half a unit to either side, error 3e-9).
    """
    shifted = tl.maximum(x, LEAST) + TO_INTEGER
    r = tl.maximum(x, LEAST) - (shifted - TO_INTEGER)
    p = 0.00015326470 * r + 0.00133908074
    p = p * r + 0.00961850584
    p = p * r + 0.0555035993
    p = p * r + 0.240226477
    p = p * r + 0.693147182
    p = p * r + 1.0
    power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    return tl.where(x < LEAST, 0.0, tl.where(x == x, p * power, x))


@device_function
def steady_exp2(x):
    """Return 2^x, to 3e-7 of it and, near 0, to half a unit: of a decay that is hardly one, and goes on long.

    The special-function unit is off by up to 2e-7 there, at every one of thousands of chunks in the same direction.
    """
    small = tl.abs(x) < 0.01
    r = tl.where(small, x, 0.0)
    near = ((0.0555041087 * r + 0.240226507) * r + 0.693147182) * r + 1.0
    return tl.where(small, near, exp2(x))


@device_function
def reciprocal(x):
    if APPROXIMATE:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@device_function
def softplus(x):
    # max(x, 0) + log1p(e), e = exp(-|x|): log1p(e) = 2 atanh(s), s = e / (2 + e), and s <= 1/3, so that a polynomial of
    # degree 4 in s^2 (minimax, relative error 4e-9) is exact to rounding; log(1 + e) would lose small steps entirely
    e = exp2(-tl.abs(x) * LOG2E)
    s = e * reciprocal(2.0 + e)
    q = s * s
    p = 0.28191546 * q + 0.27957666
    p = p * q + 0.40025115
    p = p * q + 0.66666311
    p = p * q + 2.0
    return tl.maximum(x, 0.0) + s * p


@device_function
def precise_softplus(x):
    """Return what `softplus` does to half a unit in the last place, or little more; it takes twice the instructions.

    A complex state turns by an angle of many radians a step, so that every unit of the step size is many in the angle.
    """
    v = -tl.abs(x)
    v = tl.where(v < -100.0, -100.0, v)  # e is 0 there; an infinite one would be NaN below
    high = v * LOG2E_NEAR
    e = unbiased_exp2(high)
    e += e * ((fma(v, LOG2E_NEAR, -high) + v * LOG2E_SHORT) * LN2)
    # s = e / (2 + e), corrected by what the division and the sum have left
    whole = 2.0 + e
    inverse = reciprocal(whole)
    s = e * inverse
    s = fma(fma(-s, whole, e) - s * (e - (whole - 2.0)), inverse, s)
    q = s * s
    p = 0.28191546 * q + 0.27957666
    p = p * q + 0.40025115
    p = p * q + 0.66666311
    return tl.maximum(x, 0.0) + fma(s * q, p, 2.0 * s)


@device_function
def sum_of_products(x, y, axis: tl.constexpr):
    """Return the sum of x y along an axis, the same in every thread that has it.

    Where lanes swap partial sums, a compiler may fuse each lane's own product into the sum: they then differ by a
    rounding, and what is read later depends on which of them wrote last.
    """
    if APPROXIMATE:
        terms = tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], tl.float32, is_pure=True, pack=1)
        return tl.sum(terms, axis=axis)
    else:
        return tl.sum(x * y, axis=axis)


@device_function
def sigmoid(x):
    # exp2 of a large argument is infinite and its reciprocal 0: the limit is right at both ends
    return reciprocal(1.0 + exp2(-x * LOG2E))


@device_function
def fma(x, y, z):
    # x y + z, rounded once
    if APPROXIMATE:
        return tl.fma(x, y, z)
    else:
        return (x.to(tl.float64) * y + z).to(tl.float32)


@device_function
def turn(x, y):
    """Return cosine and sine of x y, to 1e-6 up to a million radians; beyond, whatever they are, numbers of size 1.

    NaN where x or y is, or is infinite.

    Errors of the angle add up over the memory of a state, so what rounding has added to x y is taken away again after
    whole quarter turns are, in two parts. Quarter turns swap sine and cosine and change signs, which is exact; by the
    identities of half angles the size would be short by 1.2e-8 at every step. sin.approx would be off by 5e-7, and
    costs as much as a polynomial.
    """
    x = tl.where(tl.abs(x * y) < FARTHEST, x, x - x)  # beyond, and where x y overflows: no angle, but a number
    angle = x * y
    excess = fma(-x, y, angle)
    rounded = angle * QUARTERS + TO_INTEGER
    quarters = rounded - TO_INTEGER
    rest = fma(quarters, QUARTER_EXCESS, fma(quarters, -QUARTER, angle)) - excess
    q = rest * rest
    p = -1.9515296e-4 * q + 8.3321611e-3
    p = p * q - 0.16666655
    sine = p * (q * rest) + rest
    p = 2.4433157e-5 * q - 1.3887316e-3
    p = p * q + 4.1666646e-2
    p = p * q - 0.5
    cosine = p * q + 1.0
    number = rounded.to(tl.int32, bitcast=True)  # its last bits are those of the number of quarters
    odd = (number & 1) != 0
    along = tl.where(odd, sine, cosine)
    across = tl.where(odd, cosine, sine)
    return tl.where(((number + 1) & 2) != 0, -along, along), tl.where((number & 2) != 0, -across, across)
