"""What follows the last training step: the saved model, its calibration on the validation regions, its measurement on
the test windows, the baseline, the card.

Each result is a file of the run's folder, so that what is there is not done again; the model's folder appears at the
very end.
"""

import dataclasses
import datetime
import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mamba_seq._version import __version__
from mamba_seq.calibration import Calibration
from mamba_seq.data_prep.dna import GenomeData
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.genome_windows import EvaluationWindows
from mamba_seq.data_prep.splits import SPLITS as PARTS
from mamba_seq.heads import SequenceClassifier
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.calibrate import FEWEST_WINDOWS, fit_calibration
from mamba_seq.pipelines.evaluate import Evaluation, Reading, expected_calibration_error, predict_windows
from mamba_seq.pipelines.evaluate_genomes import LengthResult
from mamba_seq.pipelines.train.baseline import COMPOSITION_K, K, baseline_accuracy
from mamba_seq.pipelines.train.card import render_card
from mamba_seq.pipelines.train.folder import (
    BASELINE,
    CALIBRATION,
    CURVES,
    EVALUATION,
    MODEL,
    RECIPE,
    REFIT,
    SPLITS,
    STAGING,
)
from mamba_seq.pipelines.train.plots import plot_confusion
from mamba_seq.pipelines.train.recipe import Recipe
from mamba_seq.pipelines.train.refit import put_head, refit
from mamba_seq.pipelines.train.starting import described
from mamba_seq.saving import CONFIG_FILE, write_whole

log = logging.getLogger("mamba_seq.train")

BASELINE_BASES = 1_500_000
"""Bases a class that the baseline is fitted on, at every length, within the fewest and most windows."""
MOST_BASELINE_WINDOWS = 1500


def finish(
    model: SequenceClassifier,
    recipe: Recipe,
    data: GenomeData,
    tests: list[EvaluationWindows],
    run: Path,
    steps: int,
    minutes: float,
) -> Path:
    """Save the model, measure it and the baseline, write card and pictures; return the model's folder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    refitted = None
    if recipe.refit_windows:
        # kept as the results are that were measured with it: fitted again elsewhere, it would be another by roundings
        refitted = kept(run / REFIT, lambda: refit(model.to(device).eval(), recipe, data, torch.device(device)))
    if refitted is not None:
        put_head(model, refitted)
        refitted = {name: refitted[name] for name in ("strength", "before", "after")}
    staging = model.save_pretrained(run / STAGING)
    # what is measured is what was stored, rounding included
    saved = cast("SequenceClassifier", from_pretrained(staging, device))
    baseline = kept(run / BASELINE, lambda: measure_baseline(data, recipe, tests))
    fields = kept(run / CALIBRATION, lambda: calibrate(saved, recipe, data))
    calibration = None if fields is None else Calibration.from_fields(fields)
    evaluation = kept(run / EVALUATION, lambda: measure_model(saved, recipe, tests, calibration))
    if calibration is not None:
        calibration.ece = round(float(np.mean([row["ece"] for row in evaluation])), 4)
        calibration.ece_uncalibrated = round(float(np.mean([row["ece_uncalibrated"] for row in evaluation])), 4)
        config = dataclasses.replace(model.config, calibration=dataclasses.asdict(calibration))
        write_whole(staging / CONFIG_FILE, config.to_json().encode())
    parameters = sum(p.numel() for p in model.parameters())
    record = make_record(recipe, data, evaluation, baseline, parameters, steps, minutes)
    record["refit"] = refitted
    record["calibration"] = None if calibration is None else dataclasses.asdict(calibration)
    at = len(recipe.evaluation.lengths) // 2
    plot_confusion(
        np.array(evaluation[at]["confusion"]),
        data.labels,
        f"{recipe.name}: {evaluation[at]['length']:,} bases, held-out regions",
        staging / "confusion.png",
    )
    for name in (CURVES, RECIPE, SPLITS):
        (staging / name).write_bytes((run / name).read_bytes())
    (staging / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (staging / "README.md").write_text(render_card(record), encoding="utf-8")
    return staging.rename(run / MODEL)


def calibrate(model: SequenceClassifier, recipe: Recipe, data: GenomeData) -> dict[str, Any] | None:
    """Calibrate the model on windows of the validation regions, of those test lengths that fit into them.

    Returns:
        The fields of a `Calibration`; None when the validation regions are too small for any.
    """
    evaluation, found = recipe.evaluation, []
    reading = Reading(context=recipe.context, max_windows=evaluation.max_windows)
    per_class = max(evaluation.calibration_windows, -(-FEWEST_WINDOWS // len(data.labels)))
    for length in evaluation.lengths:
        try:
            windows = data.evaluation_windows("validation", length, per_class)
        except TooFewData:
            log.info("calibrating without windows of %s bases: some validation regions have no room", f"{length:,}")
            continue
        found.append(predict_windows(model, windows_of(windows), reading))
    if not found:
        log.warning("the validation regions are shorter than every test length: the model is not calibrated")
        return None
    calibration = fit_calibration(found, recipe.context)
    log.info("temperature %.3f, growth with windows %.3f", calibration.temperature, calibration.growth)
    return dataclasses.asdict(calibration)


def measure_model(
    model: SequenceClassifier, recipe: Recipe, tests: list[EvaluationWindows], calibration: Calibration | None
) -> list[dict[str, Any]]:
    """Classify the test windows as `mamba-seq classify` would: windows of the context, both strands, averaged."""
    reading = Reading(context=recipe.context, max_windows=recipe.evaluation.max_windows)
    rows = []
    for windows in tests:
        raw = predict_windows(model, windows_of(windows), reading)
        predicted = raw.calibrated(calibration)
        novel = None
        if calibration is not None:
            novel = {str(rate): float(predicted.novel(calibration, rate).mean()) for rate in calibration.rates}
        found = Evaluation(predicted.confusion())
        fits = [windows.disjoint[label] for label in model.config.labels]
        result = LengthResult(windows.length, found, tuple(fits))
        low, high = found.interval(result.independent())
        log.info("%s bases: accuracy %.4f on %d windows", f"{windows.length:,}", found.accuracy, found.windows)
        rows.append(
            {
                "length": windows.length,
                "accuracy": found.accuracy,
                "low": low,
                "high": high,
                "windows": found.windows,
                "independent": result.independent(),
                "ece": expected_calibration_error(predicted.probabilities, predicted.truth),
                "ece_uncalibrated": expected_calibration_error(raw.probabilities, raw.truth),
                "novel": novel,
                "confusion": found.confusion.tolist(),
            }
        )
    return rows


def measure_baseline(data: GenomeData, recipe: Recipe, tests: list[EvaluationWindows]) -> dict[str, list[float | None]]:
    """Measure the baselines, of k-mers and of composition alone, at every length; None for all without scikit-learn."""
    orders = {"baseline": K, "composition": COMPOSITION_K}
    accuracies: dict[str, list[float | None]] = {name: [] for name in orders}
    for test in tests:
        fewest = recipe.evaluation.baseline_windows
        per_class = max(fewest, min(MOST_BASELINE_WINDOWS, BASELINE_BASES // test.length))
        train = _split(data.evaluation_windows("train", test.length, per_class))
        tested = _split(test)
        try:
            found = {name: baseline_accuracy(train, tested, k) for name, k in orders.items()}
        except ImportError:
            log.warning("the baselines need scikit-learn, which is not installed: the card goes without them")
            return {name: [None] * len(tests) for name in orders}
        for name, accuracy in found.items():
            accuracies[name].append(accuracy)
        log.info("%s bases: %d-mers %.4f, composition %.4f", f"{test.length:,}", K, *found.values())
    return accuracies


def _split_in_words(data: GenomeData) -> str:
    """How test and validation were held out; where records were named, the part of the bases that they came to."""
    config = data.config
    how, test, validation = f"by {config.split}", config.test_fraction, config.validation_fraction
    if config.splits_file is not None or config.test_records or config.validation_records:
        if config.splits_file is not None:
            how = f"by the table {Path(config.splits_file).name}"
        bases = {part: sum(interval.length for interval in data.splits.of(part)) for part in PARTS}
        test, validation = bases["test"] / sum(bases.values()), bases["validation"] / sum(bases.values())
    held_out = f"{test:.0%} of the bases for the test"
    if config.test_root is not None:
        held_out = "other sequences, of which training sees nothing, for the test"
    return f"{how}; {held_out}, {validation:.0%} for validation."


def make_record(
    recipe: Recipe,
    data: GenomeData,
    evaluation: list[dict[str, Any]],
    baseline: dict[str, list[float | None]],
    parameters: int,
    steps: int,
    minutes: float,
) -> dict[str, Any]:
    """Gather what the card says and `mamba-seq zoo show` prints."""
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "labels": data.labels,
        "data_source": recipe.data_source,
        "data_licence": recipe.data_licence,
        "unseen_genomes": recipe.data.test_root is not None,
        "split": _split_in_words(data),
        "limits": recipe.limits,
        "context": recipe.context,
        "parameters": parameters,
        "model": dataclasses.asdict(recipe.model),
        "pooling": recipe.pooling,
        "optim": dataclasses.asdict(recipe.optim),
        "steps": steps,
        "max_windows": recipe.evaluation.max_windows,
        "start_from": described(recipe.start_from, "sequence-classification"),
        "batch_tokens": recipe.data.batch_tokens,
        "mutation_fraction": recipe.data.mutation_fraction,
        "mutation_letters": recipe.data.mutation_letters,
        "lengths": " and ".join(f"{length:,}" for length in recipe.data.lengths),
        "evidence_growth": recipe.evidence_growth,
        "seed": recipe.seed,
        "data_seed": recipe.data.seed,
        **hardware(recipe.precision),
        "minutes": minutes,
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "baselines": f"canonical {K}-mer log-frequencies and logistic regression, fitted anew for each length; "
        "composition is the same of single bases",
        "confusion_length": evaluation[len(evaluation) // 2]["length"],
        "results": [
            {key: value for key, value in row.items() if key != "confusion"}
            | {name: accuracies[i] for name, accuracies in baseline.items()}
            for i, row in enumerate(evaluation)
        ],
        "confusion": {str(row["length"]): row["confusion"] for row in evaluation},
    }


def hardware(precision: str) -> dict[str, str]:
    """Return what a run of a recipe's precision computes on, and how, for the record."""
    gpu = torch.cuda.is_available()
    cpu = f"{torch.get_num_threads()} threads of a {platform.machine()} CPU"
    device = f"one {torch.cuda.get_device_name()}" if gpu else cpu
    reduced = precision == "bf16" or (precision == "auto" and gpu)
    return {"hardware": device, "precision": "bf16 mixed precision" if reduced else "float32"}


def versions() -> str:
    """Return what a run computes with, for the record."""
    return f"mamba-seq {__version__}, torch {torch.__version__}, Python {platform.python_version()}"


def windows_of(windows: EvaluationWindows) -> Any:
    """Yield the codes and the class of every window; a Dataset alone has no end to iterate to."""
    return (windows[i] for i in range(len(windows)))


def _split(windows: EvaluationWindows) -> tuple[list[Any], list[int]]:
    pairs = list(windows_of(windows))
    return [codes for codes, _ in pairs], [label for _, label in pairs]


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """Return the result that is in the file, or measure it and put it there."""
    if not path.is_file():
        write_whole(path, (json.dumps(measure()) + "\n").encode())
    return json.loads(path.read_text(encoding="utf-8"))
