"""95 % intervals by drawing clips again (Efron 1979), moved by what drawing again does to a score.

A score such as the Frechet distance rises when clips are drawn twice, so that a plain percentile interval would lie
above the score itself. The percentiles are therefore moved by the difference of the mean over the draws and the
score.
"""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
LEAST = 5
"""Clips of a set, below which there is no interval: few that are drawn again are much like each other."""


def bootstrap(
    score: Callable[..., float],
    counts: Sequence[int],
    value: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
    lowest: float = -np.inf,
) -> tuple[float, float]:
    """Return the interval of a score; two NaN where a set has fewer than `LEAST` clips, or the score is not always one.

    Args:
        score: takes the numbers of drawn clips, an array for each set.
        counts: clips of each set; sets are drawn independently of each other.
        value: the score of the clips themselves.
        seed: of the draws.
        resamples: how many.
        lowest: what the score cannot fall below.
    """
    if min(counts) < LEAST:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = np.array([score(*(rng.integers(n, size=n) for n in counts)) for _ in range(resamples)])
    if not np.isfinite(drawn).all():
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, (0.025, 0.975)) - (drawn.mean() - value)
    return max(lowest, min(float(low), value)), max(float(high), value)
