"""What every Triton kernel of the scan shares: exponentials, softplus, the gate, and loading rows.

APPROXIMATE is a compile-time switch: on the GPU exponential and reciprocal are single instructions of the special-function
unit (2 units in the last place, denormals flushed to zero), written as inline assembly since `tl.exp2` and a division each
cost several; in Triton's interpreter, which knows no assembly, they are the plain operations.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp2(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def softplus(x, APPROXIMATE: tl.constexpr):
    # max(x, 0) + log1p(e), e = exp(-|x|): log1p(e) = 2 atanh(s), s = e / (2 + e), and s <= 1/3, so that a polynomial of
    # degree 4 in s^2 (minimax, relative error 4e-9) is exact to rounding; log(1 + e) would lose small steps entirely
    e = exp2(-tl.abs(x) * LOG2E, APPROXIMATE)
    s = e * reciprocal(2.0 + e, APPROXIMATE)
    q = s * s
    p = 0.28191546 * q + 0.27957666
    p = p * q + 0.40025115
    p = p * q + 0.66666311
    p = p * q + 2.0
    return tl.maximum(x, 0.0) + s * p


@triton.jit
def sigmoid(x, APPROXIMATE: tl.constexpr):
    # exp2 of a large argument is infinite and its reciprocal 0: the limit is right at both ends
    return reciprocal(1.0 + exp2(-x * LOG2E, APPROXIMATE), APPROXIMATE)


@triton.jit
def step_size(delta, bias, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, APPROXIMATE: tl.constexpr):
    if HAS_BIAS:
        delta = delta + bias
    if SOFTPLUS:
        delta = softplus(delta, APPROXIMATE)
    return delta


@triton.jit
def load_projection(pointer, N: tl.constexpr, N_PADDED: tl.constexpr):
    # the row of B or C at one step, the same for all lanes: float32 and contiguous, so it arrives in 16-byte loads
    n = tl.arange(0, N_PADDED)
    if N == N_PADDED:
        return tl.load(pointer + n)
    else:
        return tl.load(pointer + n, mask=n < N, other=0.0)


@triton.jit
def load_tile(pointer, d, channels, N: tl.constexpr, N_PADDED: tl.constexpr):
    # a tile (N, BLOCK_D) of A or of a state, both stored with D contiguous; zero outside. The channels must come as they
    # are, not clamped: that they are contiguous is what decides the layout of the tile
    n = tl.arange(0, N_PADDED)
    where = pointer + n[:, None] * channels + d[None, :]
    return tl.load(where, mask=(n < N)[:, None] & (d < channels)[None, :], other=0.0)


@triton.jit
def store_tile(pointer, tile, d, channels, N: tl.constexpr, N_PADDED: tl.constexpr):
    n = tl.arange(0, N_PADDED)
    where = pointer + n[:, None] * channels + d[None, :]
    tl.store(where, tile, mask=(n < N)[:, None] & (d < channels)[None, :])
