"""Measure a classifier's calibration on genomes that it has not seen.

`mamba_seq.calibration` says what it is.

    held_out_predictions  genomes -> predictions at several lengths
    fit_calibration       predictions -> temperature, growth, thresholds of novel records
    write_calibrated      a saved model -> the same with its calibration
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mamba_seq.calibration import Calibration
from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.genome_windows import evaluation_windows
from mamba_seq.data_prep.genomes import Genomes
from mamba_seq.data_prep.splits import Interval
from mamba_seq.pipelines.evaluate import Predictions, Reading, predict_windows
from mamba_seq.pipelines.evaluate_genomes import class_numbers
from mamba_seq.pipelines.output import new_folder

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Parts of known records that may be called novel, for which thresholds are stored."""
FEWEST_WINDOWS = 50
"""Fewer held-out windows say nothing about a twentieth of them."""
LARGEST_TEMPERATURE = 100.0


def fit_calibration(predictions: Sequence[Predictions], context: int) -> Calibration:
    """Fit temperature and growth by likelihood, and find the thresholds below which a record is novel.

    Args:
        predictions: uncalibrated, of windows of one length each; every length counts alike.
        context: bases that count as one window.

    Raises:
        TooFewData: for fewer than FEWEST_WINDOWS windows of some length.
    """
    for each in predictions:
        if len(each.truth) < FEWEST_WINDOWS:
            raise TooFewData(
                f"{len(each.truth)} windows came to calibrate on, at least {FEWEST_WINDOWS} of every length were "
                "expected; give more for each class"
            )
    with np.errstate(divide="ignore"):
        # what has probability 0 in float64 counts as 1e-300, so that a wrong one is dear and not infinite
        logs = [torch.from_numpy(np.maximum(np.log(each.probabilities), -690.0)) for each in predictions]
    windows = [torch.from_numpy(np.maximum(1.0, each.bases / context)).log() for each in predictions]
    truths = [torch.from_numpy(each.truth) for each in predictions]
    fitted = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([fitted], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        temperature, growth = _within_range(fitted)
        parts = [
            nn.functional.cross_entropy((torch.exp(growth * size) / temperature)[:, None] * log, truth)
            for log, size, truth in zip(logs, windows, truths, strict=True)
        ]
        value = torch.stack(parts).mean()
        value.backward()
        return value

    optimiser.step(loss)
    temperature, growth = (round(float(value.detach()), 4) for value in _within_range(fitted))
    several = any(float(size.max()) > 0 for size in windows)
    found = Calibration(
        temperature=temperature,
        growth=growth if several else 0.0,
        context=context,
        windows=sum(len(each.truth) for each in predictions),
    )
    ordered = sorted(predictions, key=lambda each: float(each.bases.mean()))
    found.bases = [round(float(each.bases.mean())) for each in ordered]
    best = [each.calibrated(found).probabilities.max(axis=1) for each in ordered]
    # rounded down, so that no more of the known are novel than stated
    found.novel = {f"{rate:g}": [math.floor(1e4 * np.quantile(each, rate)) / 1e4 for each in best] for rate in RATES}
    return found


def _within_range(fitted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return temperature, within LARGEST_TEMPERATURE and its inverse, and growth, within 0 and 1."""
    bound = math.log(LARGEST_TEMPERATURE)
    return torch.exp(bound * torch.tanh(fitted[0] / bound)), torch.sigmoid(fitted[1])


def held_out_predictions(
    model: nn.Module,
    labels: Sequence[str],
    genomes: Genomes,
    lengths: Sequence[int],
    reading: Reading,
    intervals: Sequence[Interval],
    *,
    per_class: int,
    seed: int = 0,
    device: torch.device | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Iterator[Predictions]:
    """Yield uncalibrated predictions of windows of each length; see `evaluate.evaluate_genomes`."""
    number = class_numbers(genomes, labels)
    for length in lengths:
        chosen = evaluation_windows(genomes, intervals, length, per_class, seed)
        windows = ((codes, number[label]) for codes, label in (chosen[i] for i in range(len(chosen))))
        yield predict_windows(model, windows, reading, device=device, on_batch=on_batch)


def write_calibrated(source: Path, folder: Path, calibration: Calibration) -> None:
    """Copy a saved model with another calibration in its config; the folder appears whole or not at all.

    Args:
        source: folder of the model.
        folder: new or empty.
        calibration: to put into it.

    Raises:
        OutputError: when the folder is there and not empty.
    """
    with new_folder(folder) as copy:
        shutil.copytree(source, copy)
        file = copy / "config.json"
        config = ModelConfig.from_json_file(file)
        config = dataclasses.replace(config, calibration=dataclasses.asdict(calibration))
        file.unlink()
        file.write_text(config.to_json(), encoding="utf-8")
