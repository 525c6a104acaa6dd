"""What the Gluon kernels of the scan share: layouts, who works on what, tiles in shared memory, special functions."""
# ruff: noqa: RUF005
# mypy: ignore-errors

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)
SIZES = ["length", "chunk", "n_chunks", "kept_every", "kept_slots", "batches"]  # no kernel of their own for 16 or 1

MATRIX = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))  # a tile in shared memory, as it is written
ROW = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))  # and as it is read, a step at a time


@gluon.constexpr_function
def state_layout(N, SD, SN, warps):
    """Return the layout of a state (BLOCK_D, N): SD channels and SN states a lane."""
    lanes = N // SN
    return gl.BlockedLayout([SD, SN], [32 // lanes, lanes], [warps, 1], [1, 0])


@gluon.constexpr_function
def lanes_layout(N, SD, SN):
    """Return the layout of `sum_over_states` of a state that one warp has."""
    lanes = N // SN
    return gl.SliceLayout(2, gl.BlockedLayout([SD, 1, SN], [32 // lanes, lanes, 1], [1, 1, 1], [2, 1, 0]))


@gluon.constexpr_function
def load_layout(width, vector, warps):
    """Return the layout in which rows of `width` elements come from memory, `vector` of them a lane."""
    lanes = min(width // vector, 32)
    return gl.BlockedLayout([1, vector], [32 // lanes, lanes], [warps, 1], [1, 0])


@gluon.jit
def locate(channels, chunk, n_chunks, length, BLOCK_D: gl.constexpr):
    # program -> block of channels, chunk, batch item (int64: it multiplies strides), first step and end of the chunk.
    # Neighbours read the same rows of B and C
    blocks = gl.cdiv(channels, BLOCK_D)
    block = gl.program_id(0) % blocks
    c = (gl.program_id(0) // blocks) % n_chunks
    batch = (gl.program_id(0) // (blocks * n_chunks)).to(gl.int64)
    start = c * chunk
    return block, c, batch, start, gl.minimum(start + chunk, length)


@gluon.jit
def new_tile(T: gl.constexpr, WIDTH: gl.constexpr, TYPE: gl.constexpr = gl.float32):
    # rows of shared memory, read one at a time
    return gl.allocate_shared_memory(TYPE, [T, WIDTH], ROW)


@gluon.constexpr_function
def step_lane_layout(lanes):
    """Return the layout of rows of which `lanes` lanes read one each: what they read lies in different banks."""
    return gl.SwizzledSharedLayout(max(32 // lanes, 1), 1, lanes, [1, 0])


@gluon.jit
def fill(rows, values, layout: gl.constexpr = MATRIX):
    # write a whole tile (T, WIDTH)
    rows._reinterpret(rows.dtype, values.shape, layout).store(values.to(rows.dtype))


@gluon.jit
def sum_over_states(x, SN: gl.constexpr):
    # (BLOCK_D, N) -> (BLOCK_D, N / SN): a lane's states
    return gl.sum(gl.reshape(x, [x.shape[0], x.shape[1] // SN, SN]), axis=2)


@gluon.jit
def exchange(x, MASK: gl.constexpr):
    # the value of the lane whose number differs by the bits of MASK
    mask = gl.full(x.shape, MASK, gl.int32, layout=x.type.layout)
    return gl.inline_asm_elementwise(
        "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", "=f,f,r", [x, mask], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def exchange_halves(values, lane, STRIDE: gl.constexpr, MASK: gl.constexpr, HALF: gl.constexpr):
    # Sum several values over 2 MASK lanes, numbered `lane`, STRIDE apart in the warp. A lane with the bit MASK keeps
    # the upper half of the values, of which 2 HALF came, and adds those of its partner: half as many are left each
    # time. With as many values as lanes, lane i ends with the sum of value i; with fewer, several lanes with the same
    if MASK == 0:
        return values
    else:
        if HALF == 0:
            return exchange_halves((values[0] + exchange(values[0], MASK * STRIDE),), lane, STRIDE, MASK // 2, 0)
        else:
            upper = (lane & MASK) != 0
            left = ()
            for p in gl.static_range(HALF):
                keep = gl.where(upper, values[p + HALF], values[p])
                send = gl.where(upper, values[p], values[p + HALF])
                left = left + (keep + exchange(send, MASK * STRIDE),)
            return exchange_halves(left, lane, STRIDE, MASK // 2, HALF // 2)


@gluon.jit
def exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def reciprocal(x):
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def sigmoid(x):
    return reciprocal(1.0 + exp2(-x * LOG2E))


@gluon.jit
def softplus(x):
    # as in _triton_math.py
    e = exp2(-gl.abs(x) * LOG2E)
    return gl.maximum(x, 0.0) + log1p_of(e * reciprocal(2.0 + e))


@gluon.jit
def softplus_and_slope(x):
    # softplus and its derivative, the sigmoid, for one exponential and one reciprocal
    e = exp2(-gl.abs(x) * LOG2E)
    r = reciprocal((1.0 + e) * (2.0 + e))
    share = r * (2.0 + e)
    return gl.maximum(x, 0.0) + log1p_of(e * (r * (1.0 + e))), gl.where(x < 0, e * share, share)


@gluon.jit
def log1p_of(s):
    # log1p(e) for s = e / (2 + e)
    q = s * s
    p = 0.28191546 * q + 0.27957666
    p = p * q + 0.40025115
    p = p * q + 0.66666311
    p = p * q + 2.0
    return s * p
