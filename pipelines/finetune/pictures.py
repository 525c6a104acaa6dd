"""Pictures of a run: curve, ROC, calibration, and said against true."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_seq.pipelines.train.metrics import read_metrics
from mamba_seq.pipelines.train.plots import smoothed

BINS = 10
MOST_CURVES = 12


def plot_curve(metrics: Path, picture: Path) -> None:
    """Draw the loss of training and validation (left) and the validation scores (right) against the step."""
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, name, value in read_metrics(metrics):
        series[name].append((step, value))
    scores = [name for name in series if name.startswith("val_") and name != "val_loss"]
    figure = _figure(5 * (1 + bool(scores)))
    axes = np.atleast_1d(figure.subplots(1, 1 + bool(scores)))
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        if series[name]:
            steps, values = np.array(series[name]).T
            shown = smoothed(values, 25) if name == "loss" else values
            axes[0].plot(steps, shown, marker="." if name == "val_loss" else None, label=label)
    axes[0].set(xlabel="step", ylabel="loss")
    for name in scores:
        steps, values = np.array(series[name]).T
        axes[1].plot(steps, values, marker=".", label=name.removeprefix("val_").replace("_", " "))
        axes[1].set(xlabel="step", ylabel="validation")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(picture, dpi=110)


def plot_roc(
    probabilities: NDArray[np.float64], truth: NDArray[np.int64], labels: Sequence[str], picture: Path
) -> None:
    """Draw a ROC curve a class, against the rest: probabilities and truth, 0 or 1, both (examples, labels)."""
    figure = _figure(5)
    axis = figure.subplots()
    for i, label in enumerate(labels[:MOST_CURVES]):
        positive = truth[:, i] == 1
        if not positive.any() or positive.all():
            continue
        order = np.argsort(-probabilities[:, i], kind="stable")
        hits = np.concatenate([[0], np.cumsum(positive[order])]) / positive.sum()
        false = np.concatenate([[0], np.cumsum(~positive[order])]) / (~positive).sum()
        axis.plot(false, hits, label=f"{label} ({np.trapezoid(hits, false):.3f})")
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axis.set(xlabel="false positive rate", ylabel="true positive rate", title="class against the rest (area)")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(picture, dpi=110)


def plot_calibration(probabilities: NDArray[np.float64], right: NDArray[np.bool_], picture: Path) -> float:
    """Draw how often predictions are right against their probability (examples,); return the expected error."""
    figure = _figure(5)
    axis = figure.subplots()
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    points, error = [], 0.0
    for b in range(BINS):
        inside = bins == b
        if inside.any():
            said, true = probabilities[inside].mean(), right[inside].mean()
            points.append((said, true, inside.sum()))
            error += abs(said - true) * inside.mean()
    x, y, n = np.array(points).T
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axis.plot(x, y, color="C0", alpha=0.5)
    axis.scatter(x, y, s=10 + 200 * n / n.sum(), color="C0")
    axis.set(xlabel="probability", ylabel="part that is right", title=f"expected calibration error {error:.3f}")
    figure.savefig(picture, dpi=110)
    return float(error)


def plot_scatter(said: NDArray[np.float64], true: NDArray[np.float64], label: str, picture: Path) -> None:
    """Draw what was said against what is true."""
    figure = _figure(5)
    axis = figure.subplots()
    axis.scatter(true, said, s=8, alpha=0.5)
    low, high = (
        float(np.nanmin([np.nanmin(said), np.nanmin(true)])),
        float(np.nanmax([np.nanmax(said), np.nanmax(true)])),
    )
    axis.plot([low, high], [low, high], color="0.8", linewidth=1)
    axis.set(xlabel=f"{label}, true", ylabel=f"{label}, predicted")
    figure.savefig(picture, dpi=110)


def _figure(width: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 4.2), layout="constrained")
