"""Codecs: sound as levels, one token a sample, and back.

A saved model names its codec in its config, `<companding>-<bits>bit-<scaling>`:

    mu-law-8bit-minmax   the task of SaShiMi and of the Mamba paper on SC09 and YouTubeMix
    linear-8bit-minmax   SaShiMi's on Beethoven
    mu-law-8bit-gain     amplitudes as they are, -1 to 1; mu-law-8bit-gain2.5 multiplies them by 2.5 first

The scaling is part of the task: "minmax" stretches every clip by itself until it fills -1 to 1, which moves silence off
the middle level where a clip is not symmetric, and whose size is lost; "gain" multiplies all clips by one number and
cuts off what is beyond 1. Likelihoods under different codecs cannot be compared.

The mapping is that of the published models (state-spaces/s4, src/dataloaders/audio.py), in double precision:

    x = -1 + 2 (x - min) / (max - min + 1e-6)                     minmax
    f = sign(x) log(1 + mu |x + 1e-8|) / log(1 + mu)              mu-law, mu = levels - 1; f = x when linear
    level = floor((f + 1) / 2 * (levels - 0.01) + 0.005)
    f' = level / (levels / 2) - 1 ; x' = sign(f') ((1 + mu)^|f'| - 1) / mu

so that amplitude 0 is the middle level, which decodes to exactly 0, and the highest level to less than 1.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.errors import BadAudio

Companding = Literal["mu-law", "linear"]
Scaling = Literal["minmax", "gain"]
Levels = NDArray[np.uint8] | NDArray[np.uint16]
Samples = NDArray[np.float32]

_NAME = re.compile(r"(?P<companding>mu-law|linear)-(?P<bits>\d+)bit-(?P<scaling>minmax|gain)(?P<gain>\d+(\.\d+)?)?")


@dataclass(frozen=True)
class Codec:
    """Amplitudes to levels and back.

    Args:
        companding: "mu-law": levels lie closer at small amplitudes; "linear": evenly.
        bits: 2 to 16; there are 2^bits levels.
        scaling: "minmax" or "gain", see above.
        gain: What amplitudes are multiplied by, with the scaling "gain".

    Raises:
        ValueError: An argument is out of its range.
    """

    companding: Companding = "mu-law"
    bits: int = 8
    scaling: Scaling = "minmax"
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.companding not in ("mu-law", "linear") or self.scaling not in ("minmax", "gain"):
            raise ValueError(
                f"companding {self.companding!r} and scaling {self.scaling!r} came; "
                "'mu-law' or 'linear', and 'minmax' or 'gain' expected"
            )
        if not 2 <= self.bits <= 16:
            raise ValueError(f"{self.bits} bits came; 2 to 16 expected")
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"gain {self.gain} came; a number above 0 expected")
        if self.scaling == "minmax" and self.gain != 1:
            raise ValueError(f"gain {self.gain} came with the scaling 'minmax', which has none; use the scaling 'gain'")

    @property
    def name(self) -> str:
        """What a saved model's config calls it."""
        gain = "" if self.gain == 1 else np.format_float_positional(self.gain, trim="-")
        return f"{self.companding}-{self.bits}bit-{self.scaling}{gain}"

    @property
    def levels(self) -> int:
        """Number of levels, the vocabulary of a model."""
        return 1 << self.bits

    @property
    def silence(self) -> int:
        """The level of amplitude 0, and the token before a clip's first sample."""
        return self.levels // 2

    def encode(self, samples: NDArray[np.floating]) -> Levels:
        """Levels (L,) uint8 (uint16 above 8 bits) of amplitudes (L,), mono.

        A clip that is the same all over is silence, whatever its amplitude, with the scaling "minmax". (The published
        code makes it the lowest level.)

        Raises:
            BadAudio: A sample is NaN or infinite.
        """
        x = np.asarray(samples, dtype=np.float64)
        bad = ~np.isfinite(x)
        if bad.any():
            raise BadAudio(f"sample {int(bad.argmax())} is {x[bad][0]}; finite amplitudes were expected")
        if self.scaling == "gain":
            x = np.clip(self.gain * x, -1, 1)
        elif x.size:
            low, high = x.min(), x.max()
            if low == high:
                x = np.zeros_like(x)
            else:
                x = -1 + 2 * (x - low) / (high - low + 1e-6)
        if self.companding == "mu-law":
            mu = self.levels - 1
            x = np.sign(x) * np.log1p(mu * np.abs(x + 1e-8)) / np.log1p(mu)
        levels = np.floor((x + 1) / 2 * (self.levels - 0.01) + 0.005)
        levels = np.minimum(levels, self.levels - 1)
        return levels.astype(np.uint8) if self.bits <= 8 else levels.astype(np.uint16)

    def decode(self, levels: NDArray[np.integer]) -> Samples:
        """Amplitudes (...) float32 of levels (...), -1 to just below 1, divided by the gain if there is one.

        Raises:
            ValueError: A level is none of this codec's.
        """
        levels = np.asarray(levels)
        if levels.size and not (levels.min() >= 0 and levels.max() < self.levels):
            raise ValueError(f"levels {levels.min()} to {levels.max()} came; 0 to {self.levels - 1} expected")
        return self.amplitudes[levels]

    @cached_property
    def amplitudes(self) -> Samples:
        """Amplitude of each level (levels,) float32: a table for whoever decodes elsewhere, on a GPU for one."""
        x = np.arange(self.levels) / (self.levels / 2) - 1
        if self.companding == "mu-law":
            mu = self.levels - 1
            x = np.sign(x) * ((1 + mu) ** np.abs(x) - 1) / mu
        return (x / self.gain).astype(np.float32)


DEFAULT: Final = Codec()


def get_codec(name: str) -> Codec:
    """The codec that a saved model's config names.

    Raises:
        ValueError: No codec has this name.
    """
    match = _NAME.fullmatch(name)
    codec = None
    if match is not None:
        gain = float(match["gain"]) if match["gain"] else 1.0
        codec = Codec(match["companding"], int(match["bits"]), match["scaling"], gain)  # type: ignore[arg-type]
    if codec is None:
        raise ValueError(
            f"unknown codec {name!r}; names are <mu-law or linear>-<bits>bit-<minmax, gain or gain with a number>, "
            f"such as {DEFAULT.name}"
        )
    return codec


def bits_per_sample(nats: float) -> float:
    """A mean negative log-likelihood in bits, as published tables give it, from nats, as a loss is."""
    return nats / math.log(2)
