"""Recordings as they might have been: faster or slower, upside down, begun a little later.

A collection of some thousand short clips is soon known by heart, and with it which class every clip has: what a model
then says of a class is what it remembers of clips. None of these changes is heard as a fault, so generated sound may
have them too.
"""

import math
from dataclasses import dataclass

import numpy as np
import soxr

from mamba_seq.data_prep.codecs import Samples


@dataclass(frozen=True)
class Variation:
    """How one clip differs from its recording."""

    speed: float = 1.0
    """How many times as fast it is played, and as high."""
    sign: int = 1
    """-1 turns it upside down, which nobody hears."""
    skip: int = 0
    """Samples left out at its beginning, unless it is a stretch of a longer recording."""

    def needs(self, length: int) -> int:
        """Return how many samples of the recording a clip of so many is made of, at most."""
        return self.skip + (length if self.speed == 1 else math.ceil(length * self.speed))

    def of(self, samples: Samples, length: int) -> Samples:
        """Return the clip, at most `length` samples, float32, of samples of the recording."""
        samples = samples[min(self.skip, len(samples) // 2) :]
        if self.speed != 1 and len(samples):
            samples = soxr.resample(np.ascontiguousarray(samples), self.speed, 1.0)
        samples = samples[:length]
        return -samples if self.sign < 0 else samples


def draw_variation(rng: np.random.Generator, speed: float, flip: bool, skip: int) -> Variation:
    """Draw how a clip differs.

    Args:
        rng: three numbers are drawn of it, whatever is asked for.
        speed: the most by which it is faster or slower, 0.1 for 10 %.
        flip: turn half of the clips upside down.
        skip: the most samples left out at the beginning.
    """
    faster, upside_down, later = rng.random(3)
    factor = (1 + speed) ** (2 * faster - 1)
    return Variation(factor if speed else 1.0, -1 if flip and upside_down < 0.5 else 1, int(later * (skip + 1)))
