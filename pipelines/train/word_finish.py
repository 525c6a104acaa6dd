"""What follows the last training step of a classifier of spoken words: the saved model, its accuracy, the card."""

import dataclasses
import datetime
import json
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mamba_seq.data_prep.audio_splits import HELD_OUT
from mamba_seq.data_prep.words import NOTHING, PlainWords, WordData
from mamba_seq.heads import SequenceClassifier
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.evaluate import confusion_matrix, wilson
from mamba_seq.pipelines.train.card import WORD_CARD, render_card
from mamba_seq.pipelines.train.finish import hardware, kept, versions
from mamba_seq.pipelines.train.folder import CURVES, EVALUATION, MODEL, RECIPE, SPLITS, STAGING
from mamba_seq.pipelines.train.plots import plot_confusion
from mamba_seq.pipelines.train.word_recipe import WordRecipe

log = logging.getLogger("mamba_seq.train")

CONFIDENT = 0.5
"""A probability above which a model would be said to have heard a word."""


def finish(
    model: SequenceClassifier, recipe: WordRecipe, data: WordData, run: Path, steps: int, minutes: float
) -> Path:
    """Save the model, measure it, write card and pictures; return the model's folder."""
    staging = model.save_pretrained(run / STAGING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # what is measured is what was stored, rounding included
    saved = cast("SequenceClassifier", from_pretrained(staging, device))
    evaluation = kept(run / EVALUATION, lambda: measure(saved, data, device))
    parameters = sum(p.numel() for p in model.parameters())
    record = make_record(recipe, data, evaluation, parameters, steps, minutes)
    title = f"{recipe.name}: recordings held out"
    plot_confusion(np.array(evaluation["confusion"]), data.labels, title, staging / "confusion.png")
    for name in (CURVES, RECIPE, SPLITS):
        (staging / name).write_bytes((run / name).read_bytes())
    (staging / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (staging / "README.md").write_text(render_card(record, WORD_CARD), encoding="utf-8")
    return staging.rename(run / MODEL)


def measure(model: SequenceClassifier, data: WordData, device: torch.device) -> dict[str, Any]:
    """Measure the accuracy on the test recordings, for each collection and word, and on sounds that are no word."""
    loader = data.evaluation_loader("test")
    probabilities, truth = [], []
    with torch.inference_mode():
        for batch in loader:
            logits = model(data.features(batch.samples.to(device)))
            probabilities.append(logits.double().softmax(dim=1).cpu().numpy())
            truth.append(batch.labels.numpy())
    said, true = np.concatenate(probabilities), np.concatenate(truth)
    words = cast("PlainWords", loader.dataset)
    sources = np.array([words.source(i) for i in range(len(words))])
    results = []
    for source in sorted(set(sources.tolist()), key=lambda name: (name == "", name)):
        name = source or "no word"
        results.append(_row(name, said[sources == source], true[sources == source], data.labels))
        log.info("%s: accuracy %.4f on %d clips", name, results[-1]["accuracy"], results[-1]["clips"])
    confusion = confusion_matrix(true, said.argmax(axis=1), len(data.labels))
    return {"results": results, "confusion": confusion.tolist()}


def make_record(
    recipe: WordRecipe, data: WordData, evaluation: dict[str, Any], parameters: int, steps: int, minutes: float
) -> dict[str, Any]:
    """Gather what the card says and `mamba-seq zoo show` prints."""
    held_out = HELD_OUT[recipe.data.split]
    training = data.splits.of("train")
    if recipe.data.test_files:
        held_out = "for the test " + ", ".join(f"`{pattern}`" for pattern in recipe.data.test_files)
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "labels": data.labels,
        "nothing": NOTHING,
        "data_source": recipe.data_source,
        "data_licence": recipe.data_licence,
        "weights_licence": recipe.weights_licence,
        "split": f"{held_out}.",
        "limits": recipe.limits,
        "features": data.features.name,
        "highest_hz": data.features.highest_hz,
        "sample_rate": recipe.data.sample_rate,
        "length": recipe.data.length,
        "training_files": len(training),
        "training_minutes": sum(f.info.frames / f.info.sample_rate for f in training) / 60,
        "skipped": len(data.files.skipped),
        "parameters": parameters,
        "model": dataclasses.asdict(recipe.model),
        "pooling": recipe.pooling,
        "optim": dataclasses.asdict(recipe.optim),
        "steps": steps,
        "start_from": recipe.start_from,
        "batch_size": recipe.data.batch_size,
        "nothing_part": recipe.data.nothing,
        "seed": recipe.seed,
        "data_seed": recipe.data.seed,
        **hardware(recipe.precision),
        "minutes": minutes,
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        **evaluation,
    }


def _row(name: str, said: np.ndarray, true: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Return how often the clips of a collection are heard right, and by word."""
    right = said.argmax(axis=1) == true
    low, high = wilson(float(right.mean()), len(right))
    by_word = {
        label: {"clips": int(here.sum()), "correct": int(right[here].sum())}
        for i, label in enumerate(labels)
        if (here := true == i).any()
    }
    confident = (said[:, :-1].max(axis=1) > CONFIDENT).mean()
    return {
        "source": name,
        "clips": len(right),
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
        "called_nothing": float((said.argmax(axis=1) == len(labels) - 1).mean()),
        "confident": float(confident),
        "by_word": by_word,
    }
