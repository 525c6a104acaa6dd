"""Exponential, reciprocal, softplus and sigmoid for Triton kernels, on the GPU and in Triton's interpreter.

On the GPU, exponential and reciprocal are single instructions of the special-function unit (2 units in the last place,
denormals flushed to zero), written as inline assembly since `tl.exp2` and a division cost several each. Triton's
interpreter knows no assembly; there they are the plain operations. That is all that differs between the two.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_seq.kernels._dispatch import triton_interpreted

APPROXIMATE = tl.constexpr(not triton_interpreted())
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

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
def sigmoid(x):
    # exp2 of a large argument is infinite and its reciprocal 0: the limit is right at both ends
    return reciprocal(1.0 + exp2(-x * LOG2E))
