"""What follows the last step: the best weights as a saved model, one measurement on the test split, pictures, the
card.
"""

import dataclasses
import datetime
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mamba_seq.heads import Model
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.finetune import pictures, tables
from mamba_seq.pipelines.finetune.dataset import Dataset
from mamba_seq.pipelines.finetune.predictions import predict_inputs
from mamba_seq.pipelines.finetune.recipe import FinetuneRecipe
from mamba_seq.pipelines.finetune.scores import confusion_of, measure, to_json
from mamba_seq.pipelines.train.card import render_card
from mamba_seq.pipelines.train.finish import hardware, versions
from mamba_seq.pipelines.train.folder import METRICS, MODEL, RECIPE, SPLITS, STAGING, remove
from mamba_seq.pipelines.train.plots import plot_confusion

log = logging.getLogger("mamba_seq.finetune")
CARD = Path(__file__).with_name("card.md.jinja")
PREDICTIONS = "predictions.tsv"


def finish(model: Model, recipe: FinetuneRecipe, dataset: Dataset, run: Path, steps: int, minutes: float) -> Path:
    """Save the model, measure it once on the test split, draw, write the card; return the model's folder."""
    staging = run / STAGING
    remove(staging)
    model.save_pretrained(staging)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    saved = from_pretrained(staging, device)  # what is measured is what was stored, rounding included
    numbers = dataset.of("test")
    inputs = [dataset.inputs[i] for i in numbers]  # whole, as `mamba-seq predict` reads them
    values = [dataset.targets.values[i] for i in numbers]
    examples = [dataset.data.examples[i] for i in numbers]
    results = predict_inputs(saved, inputs, device, recipe.batch_tokens, recipe.strand)
    table = measure(dataset.targets, results, values, [e.group for e in examples], recipe.seed)
    for name, each in table.items():
        log.info("test %s %.4f (95 %% interval %.4f to %.4f)", name, each["value"], each["low"], each["high"])
    rows = [tables.row(e, tables.OK, r, saved.config, True) for e, r in zip(examples, results, strict=True)]
    (staging / PREDICTIONS).write_bytes(tables.to_tsv([tables.header(saved.config, True), *rows]))
    drawn = _draw(dataset, results, values, run, staging)
    confusion = confusion_of(dataset.targets, results, values)
    config = model.config
    lines, warnings = dataset.described()
    record = {
        "name": recipe.name,
        "summary": recipe.summary,
        "task": config.task,
        "labels": config.labels,
        "data_source": recipe.data_source,
        "data_licence": recipe.data_licence,
        "limits": recipe.limits,
        "data": lines,
        "warnings": warnings,
        "tests": len(numbers),
        "results": table,
        "confusion": None if confusion is None else confusion.tolist(),
        "pictures": drawn,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": dataclasses.asdict(config.backbone),
        "pooling": config.pooling,
        "positions": config.positions,
        "tune": recipe.tune,
        "from_saved": recipe.start is not None,
        "steps": steps,
        "epochs": recipe.epochs,
        "optim": {name: getattr(recipe.optim, name) for name in ("lr", "min_lr", "weight_decay", "grad_clip")},
        "backbone_rate": recipe.backbone_rate,
        "layer_decay": recipe.layer_decay,
        "mutation_fraction": recipe.mutation_fraction,
        "mask_fraction": recipe.mask_fraction,
        "label_smoothing": recipe.label_smoothing,
        "ema": recipe.ema,
        "strand": recipe.strand,
        "seed": recipe.seed,
        "minutes": minutes,
        **hardware(recipe.precision),
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    for name in (RECIPE, SPLITS, METRICS):
        (staging / name).write_bytes((run / name).read_bytes())
    saved_record = {**record, "results": to_json(table)}
    (staging / "record.json").write_text(json.dumps(saved_record, indent=2) + "\n", encoding="utf-8")
    (staging / "README.md").write_text(render_card(record, CARD), encoding="utf-8")
    return staging.rename(run / MODEL)


def _draw(dataset: Dataset, results: Sequence[Any], values: Sequence[Any], run: Path, folder: Path) -> list[list[str]]:
    """Draw what the task has; return title and file of each picture."""
    targets = dataset.targets
    drawn = [["Loss and validation", "curves.png"]]
    pictures.plot_curve(run / METRICS, folder / "curves.png")
    confusion = confusion_of(targets, results, values)
    if confusion is not None:
        plot_confusion(confusion, targets.labels, "test split", folder / "confusion.png")
        drawn.append(["Confusion matrix: truth down, prediction across", "confusion.png"])
    if targets.task in ("sequence-classification", "multi-label"):
        said = np.array(results)
        if targets.task == "multi-label":
            truth = np.array(values).astype(np.int64)
            probabilities, right = said.ravel(), truth.ravel() == 1
        else:
            truth = np.eye(len(targets.labels), dtype=np.int64)[np.array(values)]
            probabilities, right = said.max(axis=1), said.argmax(axis=1) == np.array(values)
        pictures.plot_roc(said, truth, targets.labels, folder / "roc.png")
        pictures.plot_calibration(probabilities, right, folder / "calibration.png")
        drawn += [["ROC", "roc.png"], ["Calibration", "calibration.png"]]
    if targets.task.endswith("regression"):
        true = np.concatenate([np.atleast_2d(v * np.array(targets.scale) + np.array(targets.mean)) for v in values])
        found = np.concatenate([np.atleast_2d(r) for r in results])
        pictures.plot_scatter(found[:, 0], true[:, 0], targets.labels[0], folder / "scatter.png")
        drawn.append(["Predicted against true", "scatter.png"])
    return drawn
