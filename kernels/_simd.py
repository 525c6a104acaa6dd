"""Sixteen float32 lanes as a Numba type, so that kernels vectorise because they say so.

LLVM splits the sixteen lanes into the registers there are: two with AVX2, one with AVX-512, four on NEON. Pointers are
addresses (int64) turned into typed pointers by `floats`; indices count elements. No fast-math flag is set anywhere: NaN
and infinity pass through. The polynomials were fitted for this file (Lawson iterations on the relative error,
coefficients rounded to float32 one after another).

Numba's cache notices edits of a kernel's own file only: after editing this one, delete `*.nbi` in `__pycache__`.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import models, overload, register_model

intrinsic: Any = numba.extending.intrinsic  # called here with values, declared with their Numba types
njit: Any = numba.njit

LANES = 16
LOG2E = 1.4426950408889634
SMALL = 1e-30
"""States below this are flushed to zero: far below rounding, and denormal numbers are slow on many CPUs."""
LEAST = -127.0
"""2 to this or less is 0 here."""
MOST = 128.0
"""2 to this or more is infinite in float32."""

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)

# 2^r - 1 = r q(r) on [-1/2, 1/2], relative error of 2^r 9.4e-8 and 3.0e-9
_EXP2_5 = (0.6931470036506653, 0.24022246897220612, 0.0555071122944355, 0.009671294130384922, 0.0013269406044855714)
_EXP2_6 = (
    0.6931471824645996,
    0.24022647738456726,
    0.05550359934568405,
    0.009618505835533142,
    0.0013390807434916496,
    0.00015326470020227134,
)
# log1p(w) / w - 1 = w q(w) on [0, 1], relative error 5.3e-9
_LOG1P = (
    -0.4999993145465851,
    0.33330464363098145,
    -0.24958018958568573,
    0.19692102074623108,
    -0.15344880521297455,
    0.10661128163337708,
    -0.05745723098516464,
    0.020086241886019707,
    -0.003290468594059348,
)

# Taylor series of sin(x) / x and cos(x) in x^2: what is left out is below 2e-9 on [-pi/4, pi/4]
_SINE = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(5))
_COSINE = tuple((-1) ** k / math.factorial(2 * k) for k in range(6))


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


lanes_type = _Lanes()
pointer_type = types.CPointer(types.float32)
table_type = types.CPointer(types.int64)


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _FLOATS)


Codegen = Callable[[Any, ir.IRBuilder, Any, Sequence[Any]], Any]


@intrinsic
def floats(typing: Any, address: types.Type) -> tuple[Any, Codegen]:
    """Turn an address into a pointer to float32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return builder.inttoptr(args[0], _FLOAT.as_pointer())

    return pointer_type(types.int64), codegen


@intrinsic
def integers(typing: Any, address: types.Type) -> tuple[Any, Codegen]:
    """Turn an address into a pointer to int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return builder.inttoptr(args[0], ir.IntType(64).as_pointer())

    return table_type(types.int64), codegen


@intrinsic
def load(typing: Any, pointer: types.Type, index: types.Type) -> tuple[Any, Codegen]:
    """Load sixteen consecutive floats from `pointer[index]` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return builder.load(_lanes_at(builder, args[0], args[1]), align=4)

    return lanes_type(pointer_type, types.int64), codegen


@intrinsic
def store(typing: Any, pointer: types.Type, index: types.Type, value: types.Type) -> tuple[Any, Codegen]:
    """Store sixteen floats to `pointer[index]` and on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        builder.store(args[2], _lanes_at(builder, args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.void(pointer_type, types.int64, lanes_type), codegen


@intrinsic
def splat(typing: Any, value: types.Type) -> tuple[Any, Codegen]:
    """Repeat one float in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return _repeat(builder, args[0])

    return lanes_type(types.float32), codegen


@intrinsic
def fma(typing: Any, a: types.Type, b: types.Type, c: types.Type) -> tuple[Any, Codegen]:
    """Return a b + c, rounded once where the CPU can."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return _fma(builder, *args)

    return lanes_type(lanes_type, lanes_type, lanes_type), codegen


@intrinsic
def exp2(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    """Return 2^x to 1.6e-7 relative; exactly 0 from x = -127 down, infinity from 128 up, NaN for NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        shifted, r = _reduce(builder, _clamp(builder, args[0]))
        return _scale(builder, _polynomial(builder, r, (1.0, *_EXP2_5)), shifted)

    return lanes_type(lanes_type), codegen


@intrinsic
def exp(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    """Return e^x to 1e-7 relative; exactly 0 below -88.1, infinity above 88.8, NaN for NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        high = 1.44269502162933349609375  # LOG2E rounded to float32; the product with it is exact inside the fma
        y = builder.fmul(args[0], _constant(high))
        shifted, r = _reduce(builder, _clamp(builder, y))
        # what rounding took from x log2(e); not where y is clamped, where the remainder would be huge, nor exactly at a
        # bound: there `_scale` makes zero and infinity of p = 1 alone, and NaN of a p that is a rounding off
        lost = _fma(builder, args[0], _constant(high), builder.fneg(y))
        lost = _fma(builder, args[0], _constant(LOG2E - high), lost)
        inside = builder.and_(
            builder.fcmp_ordered(">", y, _constant(LEAST)), builder.fcmp_ordered("<", y, _constant(MOST))
        )
        r = builder.select(inside, builder.fadd(r, lost), r)
        return _scale(builder, _polynomial(builder, r, (1.0, *_EXP2_6)), shifted)

    return lanes_type(lanes_type), codegen


@intrinsic
def log1p_unit(typing: Any, w: types.Type) -> tuple[Any, Codegen]:
    """Return log(1 + w) for w in [0, 1], to 1.5e-7 relative."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return builder.fmul(args[0], _polynomial(builder, args[0], (1.0, *_LOG1P)))

    return lanes_type(lanes_type), codegen


@intrinsic
def positive_part(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    """Return x where it is above zero and 0 elsewhere; NaN for NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        below = builder.fcmp_ordered("<", args[0], _constant(0.0))
        return builder.select(below, _constant(0.0), args[0])

    return lanes_type(lanes_type), codegen


@intrinsic
def minus_abs(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    """Return -|x|."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return _minus_abs(builder, args[0])

    return lanes_type(lanes_type), codegen


@intrinsic
def flush(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    """Return x, or 0 where |x| is below SMALL."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        bits = builder.and_(builder.bitcast(args[0], _INTS), ir.Constant(_INTS, [(1 << 31) - 1] * LANES))
        small = builder.fcmp_ordered("<", builder.bitcast(bits, _FLOATS), _constant(SMALL))
        return builder.select(small, _constant(0.0), args[0])

    return lanes_type(lanes_type), codegen


@intrinsic
def unless_beyond(typing: Any, x: types.Type, size: types.Type, bound: types.Type) -> tuple[Any, Codegen]:
    """Return x, or 0 where |size| is above |bound|: not where either is NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        size, bound = (_minus_abs(builder, value) for value in args[1:])
        return builder.select(builder.fcmp_ordered("<", size, bound), _constant(0.0), args[0])

    return lanes_type(lanes_type, lanes_type, lanes_type), codegen


@intrinsic
def nearest(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    """Return the integer nearest to x, for |x| below 2^22."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return builder.fsub(_reduce(builder, args[0])[0], _constant(12582912.0))

    return lanes_type(lanes_type), codegen


@intrinsic
def _sine(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        square = builder.fmul(args[0], args[0])
        return builder.fmul(args[0], _polynomial(builder, square, _SINE))

    return lanes_type(lanes_type), codegen


@intrinsic
def _cosine(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        return _polynomial(builder, builder.fmul(args[0], args[0]), _COSINE)

    return lanes_type(lanes_type), codegen


@intrinsic
def lane_sum(typing: Any, x: types.Type) -> tuple[Any, Codegen]:
    """Return the sum of the lanes, halves first: always in the same order."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            low, high = (
                builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_INT, width), list(part)))
                for part in (range(width), range(width, 2 * width))
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, _INT(0))

    return types.float32(lanes_type), codegen


def _arithmetic(symbol: Any, instruction: str) -> None:
    @intrinsic
    def operate(typing: Any, a: types.Type, b: types.Type) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[Any]) -> Any:
            return getattr(builder, instruction)(args[0], args[1])

        return lanes_type(lanes_type, lanes_type), codegen

    @overload(symbol, jit_options={"forceinline": True})
    def typed(a: Any, b: Any) -> Callable[..., Any] | None:
        def implementation(a: Any, b: Any) -> Any:
            return operate(a, b)

        return implementation if a is lanes_type and b is lanes_type else None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_symbol, _instruction)


@njit(forceinline=True)
def softplus(x: Any) -> Any:
    """Return log(1 + e^x) = max(x, 0) + log1p(e^-|x|), to 3e-7 relative; exactly 0 below -88.1."""
    return positive_part(x) + log1p_unit(exp(minus_abs(x)))


@njit(forceinline=True)
def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^-x)."""
    one = splat(1.0)
    return one / (one + exp(splat(0.0) - x))


@njit(forceinline=True)
def sin_cos(x: Any) -> Any:
    """Return sin(x) and cos(x) for x in [-pi/4, pi/4], to 1e-7 absolute."""
    return _sine(x), _cosine(x)


@njit(forceinline=True)
def load_part(pointer: Any, index: int, lanes: int, spare: Any) -> Any:
    """Load `lanes` floats, the rest zero; `spare` is scratch memory for sixteen floats."""
    if lanes == LANES:
        return load(pointer, index)
    store(spare, 0, splat(0.0))
    for lane in range(lanes):
        spare[lane] = pointer[index + lane]
    return load(spare, 0)


@njit(forceinline=True)
def store_part(pointer: Any, index: int, value: Any, lanes: int, spare: Any) -> None:
    """Store the first `lanes` lanes; `spare` is scratch memory for sixteen floats."""
    if lanes == LANES:
        store(pointer, index, value)
    else:
        store(spare, 0, value)
        for lane in range(lanes):
            pointer[index + lane] = spare[lane]


def _lanes_at(builder: ir.IRBuilder, pointer: Any, index: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), _FLOATS.as_pointer())


def _repeat(builder: ir.IRBuilder, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, _INT(0))
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


def _minus_abs(builder: ir.IRBuilder, x: Any) -> Any:
    bits = builder.or_(builder.bitcast(x, _INTS), ir.Constant(_INTS, [1 << 31] * LANES))
    return builder.bitcast(bits, _FLOATS)


def _fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fmuladd.v{LANES}f32"
    )
    return builder.call(function, [a, b, c])


def _clamp(builder: ir.IRBuilder, x: Any) -> Any:
    """Bring an exponent to [-127, 128], where `_scale` gives exactly 0 and infinity at the ends; NaN stays."""
    for bound, sign in ((LEAST, "<"), (MOST, ">")):
        x = builder.select(builder.fcmp_ordered(sign, x, _constant(bound)), _constant(bound), x)
    return x


def _reduce(builder: ir.IRBuilder, x: Any) -> tuple[Any, Any]:
    """Split x into the nearest integer n and r in [-1/2, 1/2]; n is returned as 1.5 2^23 + n, whose low bits are n."""
    magic = _constant(12582912.0)
    shifted = builder.fadd(x, magic)
    return shifted, builder.fsub(x, builder.fsub(shifted, magic))


def _scale(builder: ir.IRBuilder, p: Any, shifted: Any) -> Any:
    """Return p 2^n by adding n to the exponent bits of p.

    They hold no exponent below LEAST or above MOST: p must be 1 to 2 with n = LEAST, and below 1, or 1, with n = MOST.
    """
    n = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(p, _INTS), n), _FLOATS)


def _polynomial(builder: ir.IRBuilder, x: Any, coefficients: Sequence[float]) -> Any:
    value = _constant(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = _fma(builder, value, x, _constant(coefficient))
    return value
