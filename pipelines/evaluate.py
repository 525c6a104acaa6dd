"""How often a model is right: windows of known class, read and averaged exactly as classify does.

    predict_windows             windows -> probabilities
    evaluate_windows            windows -> confusion matrix
    wilson                      accuracy -> interval
    expected_calibration_error  probabilities -> how far they are from what they say

`mamba_seq.pipelines.evaluate_genomes` draws the windows from folders of genomes.

Letters: R rows, L longest window, W windows.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mamba_seq.calibration import Calibration
from mamba_seq.data_prep.alphabet import Codes
from mamba_seq.data_prep.errors import DataError
from mamba_seq.data_prep.windows import MAX_WINDOWS, windows_of
from mamba_seq.pipelines.evidence import Evidence, WindowPool
from mamba_seq.pipelines.rows import DECIMALS

BINS = 15
"""Of the expected calibration error; Guo et al., ICML 2017, take as many."""
Z_95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a sequence is read; the same meanings as in `mamba_seq.pipelines.classify.Options`."""

    context: int
    stride: int | None = None
    max_windows: int = MAX_WINDOWS
    both_strands: bool = True
    batch_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of windows of known class."""

    probabilities: NDArray[np.float64]
    """Of each class (W, labels)."""
    truth: NDArray[np.int64]
    """True classes (W,)."""
    bases: NDArray[np.float64]
    """Bases seen of each window (W,)."""

    def calibrated(self, calibration: Calibration | None) -> "Predictions":
        """Return the same with calibrated probabilities; as they are without a calibration."""
        if calibration is None:
            return self
        return dataclasses.replace(self, probabilities=calibration.apply(self.probabilities, self.bases))

    def novel(self, calibration: Calibration, rate: float) -> NDArray[np.bool_]:
        """Return which of calibrated windows (W,) are novel at a rate; see `Calibration.threshold`."""
        below = np.array([calibration.threshold(rate, bases) for bases in self.bases])
        return np.round(self.probabilities.max(axis=1), DECIMALS) < below

    def confusion(self) -> NDArray[np.int64]:
        """Count (labels, labels): truth down, prediction across."""
        return confusion_matrix(self.truth, self.probabilities.argmax(axis=1), self.probabilities.shape[1])


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions of windows of known class."""

    confusion: NDArray[np.int64]
    """Counts (labels, labels): truth down, prediction across."""

    @property
    def windows(self) -> int:
        """Number of windows W."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of windows predicted right."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Part of the windows predicted right; NaN without windows."""
        return self.correct / self.windows if self.windows else math.nan

    def interval(self, independent: int | None = None) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy, taking at most `independent` windows as independent."""
        return wilson(self.accuracy, self.windows if independent is None else min(independent, self.windows))


def evaluate_windows(
    model: nn.Module,
    windows: Iterable[tuple[Codes, int]],
    context: int,
    *,
    device: torch.device | None = None,
    stride: int | None = None,
    max_windows: int = MAX_WINDOWS,
    both_strands: bool = True,
    batch_tokens: int | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Predict windows and count what became of each class.

    Args:
        model: tokens (R, L), mask (R, L) -> logits (R, labels).
        windows: codes (L,) and the number of the true class of each; longer ones than `context` are read in windows of
            it, as classify does.
        context: bases that the model sees at once.
        device: where the model is; None asks its parameters.
        stride: as for classify.
        max_windows: as for classify.
        both_strands: as for classify.
        batch_tokens: as for classify.
        on_batch: called after every batch.

    Raises:
        DataError: for a window without a base.
    """
    reading = Reading(
        context=context, stride=stride, max_windows=max_windows, both_strands=both_strands, batch_tokens=batch_tokens
    )
    return Evaluation(predict_windows(model, windows, reading, device=device, on_batch=on_batch).confusion())


def predict_windows(
    model: nn.Module,
    windows: Iterable[tuple[Codes, int]],
    reading: Reading,
    *,
    device: torch.device | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Predictions:
    """Return what a model says of windows, uncalibrated; see `evaluate_windows`."""
    pool = WindowPool(
        model,
        device=device if device is not None else next(model.parameters()).device,
        batch_tokens=reading.batch_tokens,
        both_strands=reading.both_strands,
        on_batch=on_batch,
    )
    evidence: list[Evidence] = []
    truth: list[int] = []
    lengths: list[int] = []
    for codes, label in windows:
        lengths.append(len(codes))
        evidence.append(Evidence())
        truth.append(label)
        for window in windows_of([codes], reading.context, reading.stride, reading.max_windows):
            pool.add(evidence[-1], window.codes)
    pool.flush()
    rows = []
    for number, each in enumerate(evidence):
        probabilities = each.probabilities()
        if probabilities is None:
            raise DataError(f"window {number} of the evaluation holds nothing but N; take windows with fewer of them")
        rows.append(probabilities)
    if not rows:
        raise DataError("there is no window to evaluate")
    bases = np.minimum([each.weight for each in evidence], lengths)
    return Predictions(np.stack(rows), np.array(truth, dtype=np.int64), bases)


def expected_calibration_error(probabilities: NDArray[np.float64], truth: NDArray[np.int64], bins: int = BINS) -> float:
    """Return how far, on average over windows, the probability of the best class is from how often it is right.

    Windows are put into bins of equal width by that probability (Naeini et al., AAAI 2015).

    Args:
        probabilities: (W, labels).
        truth: true classes (W,).
        bins: how many.
    """
    best = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    number = np.minimum((best * bins).astype(int), bins - 1)
    gaps = np.bincount(number, weights=best - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def confusion_matrix(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count windows by true class (down) and predicted class (across): (W,) and (W,) to (labels, labels)."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def wilson(proportion: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion seen in n trials (E. B. Wilson, JASA 22, 1927).

    Without trials it is all of 0 to 1.
    """
    if n <= 0:
        return 0.0, 1.0
    centre = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at 0 and at 1 the interval ends there, and rounding may stop short of it
    return max(0.0, min(proportion, centre - half)), min(1.0, max(proportion, centre + half))
