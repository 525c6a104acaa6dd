"""Random numbers that are functions of where they stand: of a seed, a sample's number and a place in it.

No state is carried, so that a run that was stopped goes on with the same numbers, any piece of a long sequence can be
made without those before it, and a CPU and a GPU make the same.
"""

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = (
    value - (1 << 64) if value >> 63 else value
    for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def below(bound: int | Tensor, *where: int | Tensor) -> Tensor:
    """Return uniform int64 numbers from 0 to below `bound`, one for each combination of the integers `where`.

    Args:
        bound: at least 1; numbers are unbiased to one in 2^63 / bound.
        where: integers or int64 tensors that broadcast, the coarsest first: seed, purpose, sample, place.

    Returns:
        A tensor of the shape that `where` and `bound` broadcast to, on their device.
    """
    state = torch.zeros((), dtype=torch.int64)
    for number in where:
        number = torch.as_tensor(number, dtype=torch.int64)
        state = _mixed(state.to(number.device) + number * _GOLDEN if number.ndim else state + number * _GOLDEN)
    return (state & ((1 << 63) - 1)) % bound


def _mixed(x: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of int64 numbers, which wrap around."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros: torch's own shift of int64 repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
