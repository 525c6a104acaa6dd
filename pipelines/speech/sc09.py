"""The classifier of published SC09 tables: ResNeXt-29, 8 x 64, on a 32 x 32 mel spectrogram.

Architecture: Xie et al. 2017, arXiv 1611.05431, with the names of ResNeXt.pytorch by P. Rodriguez, whose network, made
for one channel by pytorch-speech-commands, state-spaces/s4 trained on SC09 and tables are computed with. Front end:
librosa's `melspectrogram(n_mels=32)` and `power_to_db(ref=max)` (0.10, which fills up with zeros where those before 0.9
reflected), as its documentation gives them. The weights are not shipped here, see `sc09_checkpoint`.

Shapes: N clips, L samples, C channels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SAMPLE_RATE = 16000
LENGTH = 16000
BANDS, N_FFT, HOP, RANGE_DB = 32, 2048, 512, 80.0
CARDINALITY, BASE_WIDTH, WIDEN, BLOCKS = 8, 64, 4, 3
FEATURES = 256 * WIDEN


class SC09ResNeXt(nn.Module):
    """Spectrograms (N, 1, 32, 32) to features (N, 1024) and logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 64 * WIDEN, 128 * WIDEN, 256 * WIDEN]
        self.conv_1_3x3 = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(widths[0])
        for stage in (1, 2, 3):
            blocks = nn.Sequential()
            for i in range(BLOCKS):
                width = widths[stage - 1] if i == 0 else widths[stage]
                stride = 2 if i == 0 and stage > 1 else 1
                blocks.add_module(f"stage_{stage}_bottleneck_{i}", _Bottleneck(width, widths[stage], stride))
            self.add_module(f"stage_{stage}", blocks)
        self.classifier = nn.Linear(FEATURES, len(DIGITS))

    def forward(self, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features before the last layer, which FID is computed of, and the logits."""
        x = F.relu(self.bn_1(self.conv_1_3x3(spectrograms)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"stage_{stage}")(x)
        features = F.avg_pool2d(x, 8, 1).flatten(1)
        return features, self.classifier(features)


class _Bottleneck(nn.Module):
    """One by one, three by three in groups, one by one, beside a shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        inner = CARDINALITY * (BASE_WIDTH * out // (WIDEN * 64))
        self.conv_reduce = nn.Conv2d(width, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, 1, groups=CARDINALITY, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, out, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if width != out:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(width, out, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn_reduce(self.conv_reduce(x)))
        inner = F.relu(self.bn(self.conv_conv(inner)))
        return F.relu(self.shortcut(x) + self.bn_expand(self.conv_expand(inner)))


def spectrograms(samples: Tensor) -> Tensor:
    """Decibels below the loudest place, down to -80, of 32 mel bands and 32 frames: (N, 16000) to (N, 1, 32, 32)."""
    window = torch.hann_window(N_FFT, dtype=torch.float64, device=samples.device)
    spectrum = torch.stft(
        samples.double(), N_FFT, HOP, window=window, center=True, pad_mode="constant", return_complex=True
    )
    power = torch.from_numpy(mel_filters()).to(samples.device) @ spectrum.abs().square()
    loudest = power.amax(dim=(1, 2), keepdim=True)
    decibels = 10 * (power.clamp_min(1e-10).log10() - loudest.clamp_min(1e-10).log10())
    return decibels.clamp_min(-RANGE_DB).float()[:, None]


def mel_filters() -> NDArray[np.float64]:
    """Triangles of unit area on Slaney's mel scale (32, 1025): linear below 1 kHz, logarithmic above (Slaney 1998)."""
    step, knee = 200 / 3, 1000.0
    log_step = np.log(6.4) / 27
    top = knee / step + np.log(SAMPLE_RATE / 2 / knee) / log_step
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(log_step * (mels - knee / step)))
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters: NDArray[np.float64] = triangles * (2 / (edges[2:] - edges[:-2]))[:, None]
    return filters
