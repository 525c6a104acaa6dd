"""Random numbers that are functions of where they stand: of a seed, a sample's number and a place in it.

No state is carried, so that a run that was stopped goes on with the same numbers, any piece of a long sequence can be
made without those before it, and a CPU and a GPU make the same.
"""

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = (1 << 64) - 1


def below(bound: int | Tensor, *where: int | Tensor) -> Tensor:
    """Return uniform int64 numbers from 0 to below `bound`, one for each combination of the integers `where`.

    Nothing here waits for a GPU, or is copied to it: integers are mixed by Python until the first tensor comes.

    Args:
        bound: at least 1; numbers are unbiased to one in 2^63 / bound.
        where: integers or int64 tensors that broadcast, the coarsest first: seed, purpose, sample, place.

    Returns:
        A tensor of the shape that `where` and `bound` broadcast to, on their device.
    """
    state: int | Tensor = 0
    for number in where:
        if isinstance(number, int) and isinstance(state, int):
            state = _mixed_integer(state + number * _GOLDEN)
            continue
        step = _signed(number * _GOLDEN) if isinstance(number, int) else number.long() * _signed(_GOLDEN)
        before = _signed(state) if isinstance(state, int) else state
        state = _mixed(torch.as_tensor(step + before))
    drawn = state & ((1 << 63) - 1)
    return (torch.tensor(drawn) if isinstance(drawn, int) else drawn) % bound


def _mixed(x: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of int64 numbers, which wrap around."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX_2)
    return x ^ _shifted(x, 31)


def _mixed_integer(x: int) -> int:
    """Return the same of one integer, 0 to 2^64 - 1."""
    x = (x + _GOLDEN) & _BITS
    x = (x ^ (x >> 30)) * _MIX_1 & _BITS
    x = (x ^ (x >> 27)) * _MIX_2 & _BITS
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """Return the int64 number that has the last 64 bits of an integer."""
    x &= _BITS
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros: torch's own shift of int64 repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
