"""Pictures of a run: curves and confusion matrix."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from mamba_seq.pipelines.train.metrics import read_metrics


def plot_curves(metrics: Path, picture: Path, unit: str = "bases") -> None:
    """Draw loss (left) and accuracy (right) against the step, training smoothed over 25 rows; lengths are in `unit`."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, name, value in read_metrics(metrics):
        series[name].append((step, value))
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for name, rows in series.items():
            if name != what and not (name.startswith("val_") and name.endswith(what)):
                continue
            steps, values = np.array(rows).T
            if name == what:
                axis.plot(steps, smoothed(values, 25), color="0.6", label="training")
            else:
                length = int(name.split("_")[1])
                axis.plot(steps, values, marker=".", label=f"validation, {length:,} {unit}")
        axis.set(xlabel="step", ylabel=what)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(picture, dpi=110)


def plot_bits(metrics: Path, picture: Path, unit: str = "sample") -> None:
    """Draw bits per sample, or per `unit`, against the step, training smoothed over 25 logged rows, and validation."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, name, value in read_metrics(metrics):
        series[name].append((step, value))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    if series["bits"]:
        steps, values = np.array(series["bits"]).T
        axis.plot(steps, smoothed(values, 25), color="0.6", label="training")
    if series["val_bits"]:
        steps, values = np.array(series["val_bits"]).T
        axis.plot(steps, values, marker=".", label="validation")
        low = min(values.min(), *(value for _, value in series["bits"]))
        axis.set_ylim(low - 0.1, max(values.max(), low + 1) + 0.1)  # the first steps would hide the rest
    axis.set(xlabel="step", ylabel=f"bits per {unit}")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(picture, dpi=110)


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Return the running mean over the last `width` values."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    result: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return result


def plot_confusion(confusion: np.ndarray, labels: list[str], title: str, picture: Path) -> None:
    """Draw a confusion matrix (true class down, prediction across) with the share of each row in its cell."""
    from matplotlib.figure import Figure

    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    size = 2.5 + 0.42 * len(labels)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [label.replace("_", " ") for label in labels]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontstyle="italic", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontstyle="italic", fontsize=8)
    axis.set(xlabel="prediction", ylabel="truth")
    axis.set_title(title, fontsize=9)
    for i, j in np.ndindex(*shares.shape):
        if confusion[i, j]:
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, f"{shares[i, j]:.2f}".lstrip("0"), ha="center", va="center", color=colour, fontsize=7)
    figure.savefig(picture, dpi=110)
