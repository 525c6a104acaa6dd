"""What follows the last step of a synthetic task: the saved model, its accuracy by length, pictures, card."""

import csv
import dataclasses
import datetime
import io
import json
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mamba_seq.heads import LanguageModel
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.evaluate import wilson
from mamba_seq.pipelines.train.card import SYNTHETIC_CARD, render_card
from mamba_seq.pipelines.train.finish import hardware, versions
from mamba_seq.pipelines.train.folder import CURVES, EVALUATION, METRICS, MODEL, RECIPE, SPLITS, STAGING
from mamba_seq.pipelines.train.metrics import read_metrics
from mamba_seq.pipelines.train.plots import smoothed
from mamba_seq.pipelines.train.starting import described
from mamba_seq.pipelines.train.synthetic_module import measure
from mamba_seq.pipelines.train.synthetic_recipe import SyntheticRecipe
from mamba_seq.pipelines.train.synthetic_stages import outcomes
from mamba_seq.saving import write_whole

log = logging.getLogger("mamba_seq.train")

TABLE, PICTURE = "accuracy.tsv", "accuracy.png"


def finish(model: LanguageModel, recipe: SyntheticRecipe, run: Path, steps: int, minutes: float) -> Path:
    """Save the model, measure it, write table, pictures and card; return the model's folder."""
    # small, and a state that is kept for a million positions is not rounded
    staging = model.save_pretrained(run / STAGING, dtype=torch.float32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # what is measured is what was stored, rounding included
    saved = cast("LanguageModel", from_pretrained(staging, device))
    results = measure_lengths(saved, recipe, run / EVALUATION)
    stages = outcomes(recipe, run)
    record = make_record(recipe, results, sum(p.numel() for p in model.parameters()), steps, minutes, stages)
    (staging / TABLE).write_text(to_tsv(results), encoding="utf-8")
    plot_lengths(results, recipe, staging / PICTURE)
    for name in (CURVES, METRICS, RECIPE, SPLITS):
        (staging / name).write_bytes((run / name).read_bytes())
    (staging / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (staging / "README.md").write_text(render_card(record, SYNTHETIC_CARD), encoding="utf-8")
    return staging.rename(run / MODEL)


def measure_lengths(model: LanguageModel, recipe: SyntheticRecipe, file: Path) -> list[dict[str, Any]]:
    """Measure the accuracy of test samples at each length; lengths that the file has are not measured again."""
    task = recipe.data.make()
    results: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    known = {row["length"] for row in results}
    for length in sorted(set(recipe.evaluation.lengths) - known):
        started = time.monotonic()
        samples = recipe.evaluation.count(length)
        right, answers = measure(model, task, "test", length, samples, recipe.chunk_tokens)
        # answers of one sample may fail together: the interval takes a sample as one trial
        low, high = wilson(right / answers, samples)
        row = {"length": length, "samples": samples, "answers": answers, "right": right}
        results.append({**row, "accuracy": right / answers, "low": low, "high": high})
        write_whole(file, (json.dumps(results) + "\n").encode())
        seconds = time.monotonic() - started
        log.info("length %s: accuracy %.4f in %d samples (%.1f s)", f"{length:,}", right / answers, samples, seconds)
    return sorted(results, key=lambda row: row["length"])


def to_tsv(results: list[dict[str, Any]]) -> str:
    """Return the table of accuracies, a row a length."""
    text = io.StringIO()
    rows = csv.DictWriter(text, list(results[0]), delimiter="\t", lineterminator="\n")
    rows.writeheader()
    for row in results:
        rows.writerow({name: f"{value:.6f}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def make_record(
    recipe: SyntheticRecipe,
    results: list[dict[str, Any]],
    parameters: int,
    steps: int,
    minutes: float,
    stages: list[dict[str, Any]],
) -> dict[str, Any]:
    """Gather what the card says and `mamba-seq zoo show` prints."""
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "labels": [],
        "data_source": recipe.data_source,
        "data_licence": recipe.data_licence,
        "limits": recipe.limits,
        "task": recipe.data.task,
        "context": recipe.data.length,
        "vocab_size": recipe.data.vocab_size,
        "memorise": recipe.data.memorise,
        "chance": recipe.data.make().chance(),
        "parameters": parameters,
        "model": dataclasses.asdict(recipe.model),
        "optim": dataclasses.asdict(recipe.optim),
        "label_smoothing": recipe.label_smoothing,
        "steps": steps,
        "planned_steps": recipe.optim.steps,
        "stages": stages,
        "start_from": described(recipe.start_from, "language-model"),
        "batch_size": recipe.data.batch_size,
        "seed": recipe.seed,
        "data_seed": recipe.data.seed,
        **hardware(recipe.precision),
        "minutes": minutes + sum(stage["minutes"] for stage in stages),
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "solved": dataclasses.asdict(recipe.solved),
        "validation_lengths": recipe.validation.lengths,
        "results": results,
    }


def plot_accuracies(metrics: Path, picture: Path) -> None:
    """Draw the loss (left) and the accuracy at every length of the validation (right) against the step."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, name, value in read_metrics(metrics):
        series[name].append((step, value))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in series.items():
        steps, values = np.array(rows).T
        if name == "loss":
            left.plot(steps, smoothed(values, 25), color="0.4")
        elif name.startswith("val_"):
            right.plot(steps, values, marker=".", label=f"{int(name.split('_')[1]):,}")
    left.set(xlabel="step", ylabel="training loss, nats")
    right.set(xlabel="step", ylabel="accuracy, validation", ylim=(-0.03, 1.03))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    if right.lines:
        right.legend(frameon=False, title="length", fontsize=8)
    figure.savefig(picture, dpi=110)


def plot_lengths(results: list[dict[str, Any]], recipe: SyntheticRecipe, picture: Path) -> None:
    """Draw the accuracy against the length, with its interval, chance, and the training length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    lengths, accuracy, low, high = (
        np.array([row[name] for row in results], dtype=float) for name in ("length", "accuracy", "low", "high")
    )
    bars = np.maximum(0, np.stack([accuracy - low, high - accuracy]))
    axis.errorbar(lengths, accuracy, yerr=bars, marker="o", capsize=3)
    axis.axhline(recipe.data.make().chance(), color="0.6", linestyle=":", label="chance")
    axis.axvline(recipe.data.length, color="0.6", linestyle="--", label="training length")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="length", ylabel="accuracy, test", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(picture, dpi=110)
