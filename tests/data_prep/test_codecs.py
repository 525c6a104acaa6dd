"""Codecs: the published mapping, level by level, and what has no level."""

import math

import numpy as np
import pytest
import torch

from mamba_seq.data_prep.codecs import Codec, bits_per_sample, get_codec
from mamba_seq.data_prep.errors import BadAudio

NAMES = ["mu-law-8bit-minmax", "linear-8bit-minmax", "mu-law-8bit-gain", "linear-4bit-gain2.5", "mu-law-12bit-minmax"]


def published(samples: torch.Tensor, companding: str, bits: int) -> torch.Tensor:
    """The formulas of the SaShiMi release, in its order and precision (float32)."""
    levels = 2**bits
    low, high = samples.min(), samples.max()
    unit = (samples - low) / (high - low + 1e-6)
    if companding == "mu-law":
        x = -1 + 2 * unit
        mu = torch.tensor(levels - 1)
        unit = (torch.sign(x) * (torch.log1p(mu * torch.abs(x + 1e-8)) / torch.log1p(mu)) + 1) / 2
    return (unit * (levels - 0.01) + 0.005).long()


@pytest.mark.parametrize("companding", ["mu-law", "linear"])
@pytest.mark.parametrize("bits", [4, 8])
def test_levels_are_the_published_ones(companding: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    clip = (rng.standard_normal(50000) * 0.1).astype(np.float32)
    got = Codec(companding, bits, "minmax").encode(clip).astype(int)
    want = published(torch.from_numpy(clip), companding, bits).numpy()
    # float32 falls on the other side of a border now and then
    assert (got != want).mean() < 1e-4
    assert np.abs(got - want).max() <= 1


def test_anchors() -> None:
    codec = get_codec("mu-law-8bit-gain")
    assert codec.encode(np.array([0.0, -1.0, 1.0, 7.0, -7.0])).tolist() == [128, 0, 255, 255, 0]
    assert codec.decode(np.array([128, 0, 255])).tolist() == pytest.approx([0, -1, 0.9574], abs=1e-4)
    # an asymmetric clip moves silence: -0.8 to 0.5 stretched to -1 to 1
    clip = np.array([-0.8, 0.0, 0.5])
    assert get_codec("mu-law-8bit-minmax").encode(clip).tolist() == [0, 222, 255]
    assert get_codec("linear-8bit-minmax").encode(np.array([-1.0, 0.0, 1.0])).tolist() == [0, 127, 255]
    assert get_codec("linear-8bit-gain").encode(np.array([0.0])).tolist() == [128]


@pytest.mark.parametrize("name", NAMES)
def test_every_level_comes_back(name: str) -> None:
    """Decoded and encoded again a level is itself, where the scaling is known."""
    codec = get_codec(name)
    assert codec.name == name
    levels = np.arange(codec.levels)
    amplitudes = codec.decode(levels)
    assert np.all(np.diff(amplitudes) > 0)
    assert amplitudes[codec.silence] == 0
    fixed = Codec(codec.companding, codec.bits, "gain", codec.gain)
    # the middle of a level, for a decoded amplitude is its lower border
    middle = np.append((amplitudes[:-1].astype(np.float64) + amplitudes[1:]) / 2, 1.0 / codec.gain)
    assert np.array_equal(fixed.encode(middle)[:-1], levels[:-1])
    assert fixed.encode(np.zeros(1))[0] == codec.silence
    assert fixed.encode(middle).dtype == (np.uint8 if codec.bits <= 8 else np.uint16)


def test_the_error_of_a_round_trip() -> None:
    x = np.linspace(-1, 1, 10001)
    codec = get_codec("mu-law-8bit-gain")
    error = np.abs(codec.decode(codec.encode(x)) - x)
    assert error.max() <= 0.0431
    assert error[np.abs(x) < 0.01].max() < 7e-4


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0])
def test_a_clip_that_is_the_same_all_over_is_silence(value: float) -> None:
    assert get_codec("mu-law-8bit-minmax").encode(np.full(63, value)).tolist() == [128] * 63


def test_empty_and_single_samples() -> None:
    for name in NAMES:
        assert get_codec(name).encode(np.zeros(0)).shape == (0,)
        assert get_codec(name).encode(np.zeros(1)).tolist() == [get_codec(name).silence]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES[:3])
def test_what_is_no_number_is_refused(bad: float, name: str) -> None:
    with pytest.raises(BadAudio, match=r"sample 2 is (nan|inf|-inf); finite amplitudes were expected"):
        get_codec(name).encode(np.array([0.0, 0.5, bad]))


def test_names_and_levels_that_are_none() -> None:
    for name in ("mu-law", "mu-law-8bit", "a-law-8bit-gain", "mu-law-8bit-gain2x"):
        with pytest.raises(ValueError, match=f"unknown codec '{name}'; names are"):
            get_codec(name)
    with pytest.raises(ValueError, match="17 bits came"):
        get_codec("linear-17bit-gain")
    with pytest.raises(ValueError, match=r"gain 0\.0 came"):
        get_codec("linear-8bit-gain0")
    with pytest.raises(ValueError, match=r"gain 2\.0 came with the scaling 'minmax'"):
        get_codec("mu-law-8bit-minmax2")
    with pytest.raises(ValueError, match="levels 0 to 256 came; 0 to 255 expected"):
        get_codec("mu-law-8bit-gain").decode(np.array([0, 256]))


def test_bits() -> None:
    assert bits_per_sample(math.log(256)) == pytest.approx(8)
