"""Log-mel features of sound, for classifiers of spoken words: they hear how a word is spoken, not how it was recorded.

A saved model names them in its config, `log-mel-<bands>band-<hop>ms-<highest frequency>hz`:

    power_f,t = mel bands (HTK scale, 60 Hz to the highest frequency) of |STFT|^2, Hann window of 2.56 hops, centred
    x_f,t = 10 log10(max(power_f,t, 1e-10))
    y_f,t = max(x_f,t - max x, -60) / 20 + 1.5                          max over the whole clip

so that a clip's loudness has no effect, nor has anything that is 60 dB below its loudest place. With a highest
frequency below 4 kHz, whether a recording had a band of 4 kHz or more has none either.

Shapes: B batch, L samples, T frames.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

LOWEST_HZ: Final = 60.0
RANGE_DB: Final = 60.0
"""What is further below a clip's loudest place is as if it were not there."""
WINDOW_HOPS: Final = 2.56
_NAME = re.compile(r"log-mel-(?P<bands>\d+)band-(?P<hop>\d+(\.\d+)?)ms-(?P<highest>\d+)hz")


@dataclass(frozen=True)
class LogMel:
    """Samples to log-mel features.

    Args:
        bands: Number of mel bands.
        hop_ms: Milliseconds from frame to frame.
        highest_hz: Upper edge of the highest band.
        sample_rate: Samples a second of what comes.

    Raises:
        ValueError: An argument is out of its range.
    """

    bands: int
    hop_ms: float
    highest_hz: int
    sample_rate: int

    def __post_init__(self) -> None:
        if self.bands < 1 or self.hop < 1:
            raise ValueError(f"{self.bands} bands and a hop of {self.hop_ms} ms came; at least 1 of each expected")
        if not LOWEST_HZ < self.highest_hz <= self.sample_rate / 2:
            raise ValueError(
                f"a highest frequency of {self.highest_hz} Hz came; above {LOWEST_HZ:g} and at most half of "
                f"{self.sample_rate} samples a second expected"
            )

    @property
    def name(self) -> str:
        """What a saved model's config calls it."""
        return f"log-mel-{self.bands}band-{self.hop_ms:g}ms-{self.highest_hz}hz"

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return round(self.hop_ms * self.sample_rate / 1000)

    def __call__(self, samples: Tensor) -> Tensor:
        """Features (B, T, bands) float32 of samples (B, L), with T = L // hop + 1; the loudness of a row has no effect.

        Raises:
            ValueError: The samples have another shape, or some are NaN or infinite.
        """
        if samples.ndim != 2 or not samples.shape[1]:
            raise ValueError(f"samples {tuple(samples.shape)} came; (B, L) with L of at least 1 expected")
        samples = samples.float()
        if not samples.isfinite().all():
            raise ValueError("samples that are NaN or infinite came; finite amplitudes were expected")
        # before the floor of the logarithm, or a quiet clip would lose what a loud one has
        peak = samples.abs().amax(dim=1, keepdim=True)
        samples = torch.where(peak > 1e-6, samples / peak.clamp_min(1e-6), samples)
        power = self._transform.to(samples.device)(samples)
        decibels = 10 * power.clamp_min(1e-10).log10()
        loudest = decibels.amax(dim=(1, 2), keepdim=True)
        return ((decibels - loudest).clamp_min(-RANGE_DB) / 20 + 1.5).transpose(1, 2)

    @cached_property
    def _transform(self) -> Any:
        window = round(WINDOW_HOPS * self.hop)
        return torchaudio().transforms.MelSpectrogram(
            sample_rate=self.sample_rate,
            # twice the window: the lowest bands are narrower than a bin of one
            n_fft=2 * window,
            win_length=window,
            hop_length=self.hop,
            f_min=LOWEST_HZ,
            f_max=float(self.highest_hz),
            n_mels=self.bands,
            pad_mode="constant",
        )


def get_features(name: str, sample_rate: int) -> LogMel:
    """The features that a saved model's config names.

    Raises:
        ValueError: No features have this name, or not at this rate.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown features {name!r}; names are log-mel-<bands>band-<hop>ms-<highest frequency>hz, "
            "such as log-mel-40band-12.5ms-3600hz"
        )
    return LogMel(int(match["bands"]), float(match["hop"]), int(match["highest"]), sample_rate)


def torchaudio() -> Any:
    """Import torchaudio, which only sound needs, and which must be made for the same CUDA as torch.

    Raises:
        ImportError: It is missing or does not fit; the message says what to install.
    """
    try:
        import torchaudio as module
        import torchaudio.transforms
    except (ImportError, OSError, RuntimeError) as error:
        build = torch.version.cuda or "no CUDA"
        raise ImportError(
            f"mel features need torchaudio ({error}); install the one of torch {torch.__version__} ({build}), "
            "pip install 'mamba-seq[audio]'"
        ) from error
    return module
