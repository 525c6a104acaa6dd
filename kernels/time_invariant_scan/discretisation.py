"""From continuous to discrete time: the factor of a step and the weight of its input.

Everything here is (D, N), a value a state, and is computed in double precision whatever the inputs: a power Abar^t
multiplies the relative error of delta A by t |delta A|, which in float32 is all of the phase after some 10^5 radians.
"""

import torch
from torch import Tensor

DISCRETISATIONS = ("zoh", "euler")

# Below this |x| the quotient (exp(x) - 1) / x, and still more its derivative, loses digits; the series up to x^10 is
# exact to double precision there.
_SERIES_BELOW = 0.1
_SERIES_TERMS = 11


def discretise(delta: Tensor, A: Tensor, B: Tensor, discretisation: str) -> tuple[Tensor, Tensor]:
    """Return log Abar = delta A and Bbar, each (D, N) in float64 or complex128.

    "zoh" holds the input constant during a step, which integrates h' = A h + B u exactly: Bbar = (exp(delta A) - 1) / A
    B (Mamba, arXiv 2312.00752, eq. 4), finite at A = 0, where it is delta B. "euler" is delta B throughout, as in the
    selective scan.

    Args:
        delta: step size (D,).
        A: (D, N), real or complex.
        B: (D, N), in A's type.
        discretisation: "zoh" or "euler".
    """
    double = torch.complex128 if A.is_complex() else torch.float64
    step = delta.double()[:, None]
    log_decay = step * A.to(double)
    weight = step * B.to(double)
    return log_decay, weight * mean_decay(log_decay) if discretisation == "zoh" else weight


def mean_decay(x: Tensor) -> Tensor:
    """Return (exp(x) - 1) / x, the mean of exp over the way from 0 to x, with its derivatives, also at and near 0."""
    small = x.abs() < _SERIES_BELOW
    # each branch sees only arguments that it can take: a NaN in the one not chosen would still reach the gradient
    near, far = torch.where(small, x, torch.zeros_like(x)), torch.where(small, torch.ones_like(x), x)
    series = torch.ones_like(x)
    for k in range(_SERIES_TERMS, 1, -1):
        series = 1 + near / k * series
    return torch.where(small, series, (torch.exp(far) - 1) / far)
