"""The operators once more, from their definition: one scalar after another, in Python's own arithmetic.

Independent of the code under test on purpose: no torch, no broadcasting, nothing shared with the reference.
"""

import cmath
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def serial_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    delta_softplus: bool,
    initial_state: Array | None,
    bounds: Sequence[int] | None,
) -> tuple[Array, Array]:
    """Return y (B, L, D) and the final state (B or S, D, N); `bounds` as cu_seqlens."""
    batch, length, channels = u.shape
    n_state = A.shape[1]
    is_complex = np.iscomplexobj(A)
    exp = cmath.exp if is_complex else math.exp
    packed = bounds is not None
    pieces = list(itertools.pairwise(bounds)) if packed else [(0, length)] * batch
    y = np.zeros((batch, length, channels))
    final = np.zeros((len(pieces), channels, n_state), dtype=A.dtype)

    for s, (start, end) in enumerate(pieces):
        b = 0 if packed else s
        for d in range(channels):
            for n in range(n_state):
                h = 0.0 if initial_state is None else initial_state[s, d, n].item()
                for t in range(start, end):
                    dt = delta[b, t, d].item() + (0.0 if delta_bias is None else delta_bias[d].item())
                    if delta_softplus:
                        dt = math.log1p(math.exp(dt))
                    h = exp(dt * A[d, n].item()) * h + dt * _entry(B, b, t, d, n, channels) * u[b, t, d].item()
                    out = h * _entry(C, b, t, d, n, channels)
                    y[b, t, d] += 2 * out.real if is_complex else out
                final[s, d, n] = h
            for t in range(start, end):
                if D is not None:
                    y[b, t, d] += D[d] * u[b, t, d]
                if z is not None:
                    y[b, t, d] *= z[b, t, d] / (1 + math.exp(-z[b, t, d]))
    return y, final


def _entry(projection: Array, b: int, t: int, d: int, n: int, channels: int) -> complex:
    """Read B or C of one channel at one time: (D, N), (B, L, N), or (B, L, G, N) with channel d in group d G / D."""
    if projection.ndim == 2:
        return projection[d, n].item()
    if projection.ndim == 3:
        return projection[b, t, n].item()
    group = d // (channels // projection.shape[2])
    return projection[b, t, group, n].item()


def serial_conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    silu: bool,
    initial_state: Array | None,
    bounds: Sequence[int] | None,
) -> tuple[Array, Array]:
    """Return y (B, L, D) and the last K - 1 inputs (B or S, D, K-1); `bounds` as cu_seqlens."""
    batch, length, channels = x.shape
    taps = weight.shape[1]
    packed = bounds is not None
    pieces = list(itertools.pairwise(bounds)) if packed else [(0, length)] * batch
    y = np.zeros((batch, length, channels))
    final = np.zeros((len(pieces), channels, taps - 1))

    for s, (start, end) in enumerate(pieces):
        b = 0 if packed else s
        for d in range(channels):
            past = [0.0] * (taps - 1) if initial_state is None else [initial_state[s, d, i] for i in range(taps - 1)]
            seen = past + [x[b, t, d] for t in range(start, end)]
            for t in range(start, end):
                total = 0.0 if bias is None else bias[d]
                for k in range(taps):
                    total += weight[d, k] * seen[t - start + k]
                y[b, t, d] = total / (1 + math.exp(-total)) if silu else total
            for i in range(taps - 1):
                final[s, d, i] = seen[len(seen) - (taps - 1) + i]
    return y, final
