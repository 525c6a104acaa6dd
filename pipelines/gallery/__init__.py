"""One HTML page of clips to hear and see, with all it needs in it: no network, no other file.

A player, the waveform as SVG and the spectrogram as PNG for each clip, up to MOST_CLIPS; the page says so where more
came. `gallery.html.jinja` is the page, `gallery.css` is written into it behind the style of the other pages
(`pipelines/report/report.css`).
"""

import base64
import io
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_seq._version import __version__
from mamba_seq.counted import Drawing
from mamba_seq.data_prep.codecs import Samples
from mamba_seq.pipelines.sound_files import FORMATS

MOST_CLIPS = 200
COLUMNS = 400
"""Of a waveform, each from the lowest to the highest sample of its time."""
FRAMES = 400
"""Of a spectrogram, at most."""
BANDS = 128
DECIBELS = 80
"""From the loudest to the darkest."""


class Gallery:
    """Collects clips and makes the page.

    Args:
        model: what the user called the model.
        drawing: how clips are drawn.
        sample_rate: samples a second.
        form: of the sound files.
        prompt: the file that clips begin with.
        labels: of the model.
    """

    def __init__(
        self, model: str, drawing: Drawing, sample_rate: int, form: str, prompt: str | None, labels: list[str]
    ) -> None:
        self._model, self._drawing, self._rate, self._form = model, drawing, sample_rate, form
        self._prompt, self._labels = prompt, labels
        self._clips: list[dict[str, Any]] = []
        self._count = 0
        self._seconds = 0.0
        self._bits: list[float] = []

    def add(self, row: dict[str, str], samples: Samples, sound: bytes) -> None:
        """Take a clip: its row of the table, its amplitudes (L,), and its file."""
        self._count += 1
        self._seconds += len(samples) / self._rate
        self._bits.append(float(row["bits_per_sample"]))
        if len(self._clips) < MOST_CLIPS:
            picture = spectrogram(samples, self._rate)
            made = {
                "sound": data_uri(FORMATS[self._form][2], sound),
                "wave": outline(samples),
                "spectrogram": data_uri("image/png", picture),
                "seconds": len(samples) / self._rate,
            }
            self._clips.append({**row, **made, "title": row["file"]})

    def page(self) -> bytes:
        """Return the page."""
        from jinja2 import ChoiceLoader, Environment, PackageLoader

        loaders = [PackageLoader("mamba_seq.pipelines", folder) for folder in ("gallery", "report")]
        page = Environment(loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        text = page.get_template("gallery.html.jinja").render(
            model=self._model,
            drawing=self._drawing,
            rate=self._rate,
            prompt=self._prompt,
            labels=sorted({clip["label"] for clip in self._clips}, key=self._order),
            clips=self._clips,
            count=self._count,
            seconds=self._seconds,
            bits=float(np.mean(self._bits)) if self._bits else 0.0,
            columns=COLUMNS,
            version=__version__,
        )
        return text.encode()

    def _order(self, label: str) -> int:
        return self._labels.index(label) if label in self._labels else -1


def data_uri(kind: str, data: bytes) -> str:
    """Return data as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def outline(samples: Samples) -> str:
    """Return an SVG path (COLUMNS wide, from -1 to 1 upwards) around what a waveform covers."""
    edges = np.linspace(0, len(samples), min(COLUMNS, len(samples)) + 1).astype(int)
    parts = [samples[a:b] for a, b in itertools.pairwise(edges)]
    wide = COLUMNS / len(parts)
    above = [f"{i * wide:.1f} {-max(part.max(), 0.004):.3f}" for i, part in enumerate(parts)]
    below = [f"{i * wide:.1f} {-min(part.min(), -0.004):.3f}" for i, part in reversed(list(enumerate(parts)))]
    return f"M{' L'.join([*above, *below])}Z"


def spectrogram(samples: Samples, sample_rate: int) -> bytes:
    """Return a PNG: time to the right, frequency upwards to half the rate, decibels below the loudest as colour."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    levels = decibels(samples)
    sink = io.BytesIO()
    imsave(sink, colormaps["magma"](1 + levels[::-1] / DECIBELS, bytes=True), format="png")
    return sink.getvalue()


def decibels(samples: Samples) -> NDArray[np.float64]:
    """Return power (BANDS, frames), lowest band first, in decibels, from -DECIBELS to 0, the loudest."""
    size = 2 * BANDS
    hop = max(size // 4, -(-len(samples) // FRAMES))
    padded = np.pad(samples.astype(np.float64), size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)[:, 1:]).T ** 2
    loudest = power.max()
    if loudest == 0:
        return np.full(power.shape, -float(DECIBELS))
    found: NDArray[np.float64] = 10 * np.log10(np.maximum(power / loudest, 10 ** (-DECIBELS / 10)))
    return found
