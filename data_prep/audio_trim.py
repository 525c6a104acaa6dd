"""The part of a short recording where its sound is: without the room before and after it.

The noise of a room before a word tells a model which recording it is hearing, and with it which word comes. A model
that learns that by heart has no use for the word it is asked for, and says any.
"""

import numpy as np

from mamba_seq.data_prep.codecs import Samples

FRAME = 0.01
"""Seconds whose power is one number."""
WORD, APART = 5, 20
"""Frames that are loud in a row in every word, and those by which a shorter sound is apart from one: it is a click."""
QUIETEST = 0.1
"""The quantile of the powers of all frames that stands for the room."""
ABOVE_ROOM = 10.0
"""Decibels by which sound is louder than the room."""
BELOW_PEAK = (-30.0, -20.0)
"""Decibels from the loudest frame between which the threshold stays: what has no silence has no room to go by."""
BEFORE, AFTER = 0.03, 0.1
"""Seconds that are left before and after the sound: words begin at once, and die away."""


def trimmed(samples: Samples, sample_rate: int) -> Samples:
    """Return the samples from a little before the first frame that is louder than the room to a little after the last.

    A sound of less than `WORD` frames does not count if it is `APART` frames from any that is longer, as clicks are.

    Args:
        samples: (L,) of a whole recording.
        sample_rate: samples a second.

    Returns:
        A view (at most L,); all of it where there is nothing but silence, or less than a frame.
    """
    frame = max(1, round(FRAME * sample_rate))
    count = len(samples) // frame
    if not count:
        return samples
    moving = samples - np.median(samples)  # some microphones add a constant
    power = (moving[: count * frame].reshape(count, frame).astype(np.float64) ** 2).mean(axis=1)
    if not power.max() > 0:
        return samples
    room = np.quantile(power, QUIETEST) * 10 ** (ABOVE_ROOM / 10)
    low, high = (power.max() * 10 ** (each / 10) for each in BELOW_PEAK)
    loud = np.flatnonzero(power >= np.clip(room, low, high))
    words = [run for run in np.split(loud, np.flatnonzero(np.diff(loud) > 1) + 1) if len(run) >= WORD]
    if words:
        loud = loud[(loud > words[0][0] - APART) & (loud < words[-1][-1] + APART)]
    first = loud[0] * frame - round(BEFORE * sample_rate)
    return samples[max(0, first) : (loud[-1] + 1) * frame + round(AFTER * sample_rate)]
