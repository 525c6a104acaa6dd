"""Spoken words as other voices in other rooms would say them, and sounds that are no word.

A classifier that is trained on several collections would learn the collection where that tells the word: its band, its
loudness, its pauses, its noise. So all of these are drawn anew for every clip, whichever collection it is from.

Everything is drawn from the generator that is given. Shapes: L samples of a clip.
"""

from collections.abc import Callable

import numpy as np

from mamba_seq.data_prep.codecs import Samples

Draw = Callable[[], Samples]
"""Gives the samples of a random recording of a word."""
FRAME = 160
"""Samples by which the loudness of a recording is followed."""


def vary(samples: Samples, length: int, rng: np.random.Generator) -> Samples:
    """A recording as it might have been, (length,).

    It may be cut to where something is heard, is said up to 15 % faster or slower (and higher or lower), through
    another microphone and sometimes a narrower band, begins anywhere in the clip, and has a noise of its own.
    """
    if rng.random() < 0.5:
        samples = cut_to_sound(samples, rng)
    if rng.random() < 0.8:
        speed = rng.uniform(0.85, 1.15)
        places = np.arange(0, len(samples) - 1, speed)
        samples = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
    samples = through_microphone(place(samples, length, rng), rng)
    if rng.random() < 0.7:
        samples = with_noise(samples, rng.uniform(5, 50), rng)
    return samples


def no_word(draw: Draw, length: int, rng: np.random.Generator) -> Samples:
    """A sound that is no word, (length,): silence, noise, tones, clicks, or speech of which no word is left."""
    kind = rng.integers(9)
    if kind == 0:
        return silence(length, rng)
    if kind <= 2:
        sound = noise(length, rng)
        if kind == 2:  # with the rise and fall of speech
            sound = sound * envelope(length, rng)
    elif kind == 3:
        sound = tones(length, rng) * envelope(length, rng)
    elif kind == 4:
        sound = clicks(length, rng)
    elif kind == 5:
        sound = scrambled_phase(place(draw(), length, rng), rng)
    elif kind <= 7:
        sound = shuffled(place(cut_to_sound(draw(), rng), length, rng), rng)
    else:
        sound = np.sum([_level(place(draw(), length, rng)) for _ in range(rng.integers(5, 9))], axis=0)
    sound = through_microphone(np.asarray(sound, dtype=np.float32), rng)
    return with_noise(sound, rng.uniform(5, 50), rng) if rng.random() < 0.5 else sound


def place(samples: Samples, length: int, rng: np.random.Generator) -> Samples:
    """Put a recording anywhere in a clip (length,); of a longer one a stretch is taken."""
    spare = length - len(samples)
    if spare < 0:
        start = int(rng.integers(-spare + 1))
        return samples[start : start + length]
    before = int(rng.integers(spare + 1))
    return np.pad(samples, (before, spare - before))


def cut_to_sound(samples: Samples, rng: np.random.Generator) -> Samples:
    """Leave out what comes before the first and after the last place within 30 dB of the loudest, but for a moment."""
    frames = len(samples) // FRAME
    if not frames:
        return samples
    power = (samples[: frames * FRAME].reshape(frames, FRAME).astype(np.float64) ** 2).mean(axis=1)
    heard = np.flatnonzero(power > power.max() * 1e-3)
    if not heard.size:
        return samples
    first = max(0, (heard[0] - int(rng.integers(2, 9))) * FRAME)
    return samples[first : (heard[-1] + 1 + int(rng.integers(2, 9))) * FRAME]


def through_microphone(samples: Samples, rng: np.random.Generator) -> Samples:
    """Tilt and bend the spectrum by some 6 dB, and in one of three clips leave out what is above 2.5 to 4 kHz of 16."""
    spectrum = np.fft.rfft(samples)
    frequency = np.linspace(0, 1, len(spectrum))
    knots = np.linspace(0, 0.5, 6)
    decibels = np.interp(frequency, knots, rng.normal(0, 4, 6))
    if rng.random() < 1 / 3:
        decibels = decibels - 120 * np.clip((frequency - rng.uniform(0.31, 0.5)) / 0.05, 0, 1)
    return np.fft.irfft(spectrum * 10 ** (decibels / 20), len(samples)).astype(np.float32)


def with_noise(samples: Samples, ratio_db: float, rng: np.random.Generator) -> Samples:
    """Add noise so many decibels below the sound, which is measured where there is some."""
    heard = samples[np.abs(samples) > 0.05 * np.abs(samples).max()]
    size = float(np.sqrt((heard.astype(np.float64) ** 2).mean())) if heard.size else 0.0
    return (samples + size * 10 ** (-ratio_db / 20) * noise(len(samples), rng)).astype(np.float32)


def noise(length: int, rng: np.random.Generator) -> Samples:
    """Steady noise of unit power, from white to twice as steep as pink, with two humps."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.linspace(1 / len(spectrum), 1, len(spectrum))
    shape = frequency ** -rng.uniform(0, 1)
    for _ in range(2):
        centre, width = rng.uniform(0.02, 0.5), rng.uniform(0.02, 0.2)
        shape = shape * (1 + rng.exponential(1.0) * np.exp(-(((frequency - centre) / width) ** 2)))
    return _level(np.fft.irfft(spectrum * shape, length).astype(np.float32))


def silence(length: int, rng: np.random.Generator) -> Samples:
    """Nothing at all, or what is left of it when it was stored: a last bit here and there, or a constant."""
    kind = rng.integers(3)
    if kind == 0:
        return np.zeros(length, dtype=np.float32)
    if kind == 1:
        return np.full(length, rng.uniform(-0.1, 0.1), dtype=np.float32)
    return (rng.integers(-1, 2, length) / 32768).astype(np.float32)


def tones(length: int, rng: np.random.Generator) -> Samples:
    """A tone that glides, with overtones."""
    pitch = np.interp(np.arange(length), np.linspace(0, length, 4), rng.uniform(80, 1200, 4)) / 16000
    phase = 2 * np.pi * np.cumsum(pitch)
    parts = rng.integers(1, 7)
    return np.sum([rng.random() * np.sin(n * phase) for n in range(1, parts + 1)], axis=0).astype(np.float32)


def clicks(length: int, rng: np.random.Generator) -> Samples:
    """Short knocks at random places."""
    sound = np.zeros(length)
    for start in rng.integers(0, length - 400, rng.integers(1, 15)):
        sound[start : start + 400] += (
            rng.standard_normal(400) * np.exp(-np.arange(400) / rng.uniform(10, 100)) * rng.random()
        )
    return sound.astype(np.float32)


def scrambled_phase(samples: Samples, rng: np.random.Generator) -> Samples:
    """Noise with the spectrum of a recording as a whole: as loud as speech in every band, at all times."""
    spectrum = np.abs(np.fft.rfft(samples))
    return np.fft.irfft(spectrum * np.exp(2j * np.pi * rng.random(len(spectrum))), len(samples)).astype(np.float32)


def shuffled(samples: Samples, rng: np.random.Generator) -> Samples:
    """A recording cut into pieces of 25 to 60 ms, in another order, some of them backwards."""
    size = int(rng.integers(400, 960))
    pieces = len(samples) // size
    cut = samples[: pieces * size].reshape(pieces, size) * np.minimum(1, np.hanning(size) * 8)
    cut = cut[rng.permutation(pieces)]
    back = rng.random(pieces) < 0.5
    cut[back] = cut[back, ::-1]
    return np.pad(cut.ravel(), (0, len(samples) - pieces * size)).astype(np.float32)


def envelope(length: int, rng: np.random.Generator) -> Samples:
    """A loudness that rises and falls some times a second."""
    knots = int(rng.integers(3, 12))
    curve = np.interp(np.linspace(0, 1, length), np.linspace(0, 1, knots), rng.uniform(-50, 0, knots))
    return (10 ** (curve / 20)).astype(np.float32)


def _level(samples: Samples) -> Samples:
    """Return the samples with unit power."""
    size = float(np.sqrt((samples.astype(np.float64) ** 2).mean()))
    return (samples / max(size, 1e-9)).astype(np.float32)
