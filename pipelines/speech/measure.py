"""All scores of generated clips, with intervals, beside those of real recordings; and the tables of them.

metric      what it is; agreement:<label> is that of the clips which were asked for a label
value       of the generated clips
low, high   95 % interval, clips drawn again
samples     how many clips it is of
real        the same of the real recordings; for fid, the distance of one random half of them to the other
"""

import json
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.pipelines.evaluate import confusion_matrix, wilson
from mamba_seq.pipelines.speech import scores
from mamba_seq.pipelines.speech.classifier import Classifier, Heard, hear, nothing_of
from mamba_seq.pipelines.speech.clips import Clips
from mamba_seq.pipelines.speech.intervals import RESAMPLES, bootstrap

log = logging.getLogger("mamba_seq.pipelines")

WIDE = 256
"""Features above which drawing clips again for the Frechet distance is dear, and is done less often."""
WIDE_RESAMPLES = 50
MEANING = {
    "fid": "Frechet distance of features to the real ones, lower is better",
    "is": "Inception Score",
    "is_released": "what released code calls so; for published SC09 tables only",
    "mis": "modified Inception Score",
    "am": "AM score, lower is better",
    "agreement": "heard as asked, mean over labels",
    "no_word": "heard as no word",
}


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    metric: str
    value: float
    low: float
    high: float
    samples: int
    real: float = math.nan


@dataclass(frozen=True)
class Measured:
    """What was found."""

    metrics: list[Metric]
    labels: list[str]
    confusion: list[list[int]] | None
    """Counts by label asked for (down) and class heard (across); None when no clip has a label."""
    heard: dict[str, int]
    """How many clips are heard as each class."""


def measure(classifier: Classifier, clips: Clips, real: Clips | None, device: torch.device, seed: int = 0) -> Measured:
    """Score clips, against real ones where there are some.

    Args:
        classifier: what hears them.
        clips: generated.
        real: recordings.
        device: where the classifier is.
        seed: of the draws of intervals and of the halves.
    """
    nothing = nothing_of(classifier)
    mine = hear(classifier, clips.samples, device)
    theirs = None if real is None else hear(classifier, real.samples, device)
    words = scores.without_nothing(mine.log_probabilities, nothing)
    others = None if theirs is None else scores.without_nothing(theirs.log_probabilities, nothing)
    rows: list[Metric] = []
    if theirs is not None:
        rows.append(_frechet(mine, theirs, seed))
    many = len(words)
    for name, score in (
        ("is", scores.inception_score),
        ("is_released", scores.inception_score_as_released),
        ("mis", scores.modified_inception_score),
    ):
        if many < 2:
            rows.append(Metric(name, math.nan, math.nan, math.nan, many))
            continue
        value = score(words)
        low, high = bootstrap(lambda i, score=score: score(words[i]), [many], value, seed, lowest=1.0)
        there = math.nan if others is None or len(others) < 2 else score(others)
        rows.append(Metric(name, value, low, high, many, there))
    if others is not None:
        value = scores.am_score(words, others)
        low, high = bootstrap(
            lambda i, j: scores.am_score(words[i], others[j]), [many, len(others)], value, seed, lowest=0.0
        )
        rows.append(Metric("am", value, low, high, many, scores.am_score(others, others)))
    said = mine.log_probabilities.argmax(axis=1)
    confusion = None
    if any(clips.labels):
        agreement, confusion = _agreement(classifier, clips, said, seed)
        known = {} if theirs is None or real is None else _right(classifier, real, theirs)
        rows += [_with_real(row, known) for row in agreement]
    if nothing is not None:
        silent = None if theirs is None else (theirs.log_probabilities.argmax(axis=1) == nothing).mean()
        part = float((said == nothing).mean())
        rows.append(Metric("no_word", part, *wilson(part, many), many, math.nan if silent is None else float(silent)))
    heard = {label: int((said == i).sum()) for i, label in enumerate(classifier.labels)}
    return Measured(rows, classifier.labels, confusion, heard)


def to_tsv(measured: Measured) -> str:
    """Return the table: a header line, then a row a metric."""
    lines = ["metric\tvalue\tlow\thigh\tsamples\treal"]
    for row in measured.metrics:
        cells = [_cell(number) for number in (row.value, row.low, row.high)]
        lines.append("\t".join([row.metric, *cells, str(row.samples), _cell(row.real)]))
    return "\n".join(lines) + "\n"


def to_json(measured: Measured, about: dict[str, Any]) -> str:
    """Return everything, and what it was measured on."""
    metrics = {
        row.metric: {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in (("value", row.value), ("low", row.low), ("high", row.high), ("real", row.real))
        }
        | {"samples": row.samples}
        for row in measured.metrics
    }
    found = {"classes": measured.labels, "heard": measured.heard, "confusion": measured.confusion}
    return json.dumps({**about, "metrics": metrics, **found}, indent=1) + "\n"


def summary(measured: Measured) -> list[str]:
    """Return what a reader wants to know first, a line each."""
    lines = []
    for row in measured.metrics:
        if row.metric in MEANING and math.isfinite(row.value):
            real = f"; real recordings {row.real:.3f}" if math.isfinite(row.real) else ""
            within = f"{row.low:.3f} to {row.high:.3f}" if math.isfinite(row.low) else "too few for an interval"
            lines.append(f"{row.metric} {row.value:.3f} ({within}, {row.samples} clips{real}): {MEANING[row.metric]}")
    return lines


def _frechet(mine: Heard, theirs: Heard, seed: int) -> Metric:
    """Return the Frechet distance; one without a number, and a warning, when there are too few clips."""
    many, width = mine.features.shape
    try:
        value = scores.frechet_distance(mine.features, theirs.features)
    except TooFewData as error:
        log.warning("no fid: %s", error)
        return Metric("fid", math.nan, math.nan, math.nan, many)
    low, high = bootstrap(
        lambda i, j: scores.frechet_distance(mine.features[i], theirs.features[j]),
        [many, len(theirs.features)],
        value,
        seed,
        WIDE_RESAMPLES if width > WIDE else RESAMPLES // 4,
        0.0,
    )
    order = np.random.default_rng(seed).permutation(len(theirs.features))
    half = len(order) // 2
    floor = math.nan
    if half > width:
        floor = scores.frechet_distance(theirs.features[order[:half]], theirs.features[order[half:]])
    return Metric("fid", value, low, high, many, floor)


def _agreement(
    classifier: Classifier, clips: Clips, said: np.ndarray, seed: int
) -> tuple[list[Metric], list[list[int]]]:
    """Return how often clips are heard as what was asked for, by label and averaged, and the counts of both."""
    asked = np.array([classifier.labels.index(label) if label else -1 for label in clips.labels])
    there = asked >= 0
    right = said == asked
    rows, by_label = [], []
    for i, label in enumerate(classifier.labels):
        here = asked == i
        if here.any():
            part = float(right[here].mean())
            by_label.append(right[here])
            rows.append(Metric(f"agreement:{label}", part, *wilson(part, int(here.sum())), int(here.sum())))
    mean = float(np.mean([each.mean() for each in by_label]))
    low, high = bootstrap(
        lambda *drawn: float(np.mean([each[i].mean() for each, i in zip(by_label, drawn, strict=True)])),
        [len(each) for each in by_label],
        mean,
        seed,
        lowest=0.0,
    )
    counts = confusion_matrix(asked[there], said[there], len(classifier.labels))
    # not min, which makes a 1 of what is no number
    return [Metric("agreement", mean, low, float(np.minimum(1.0, high)), int(there.sum())), *rows], counts.tolist()


def _right(classifier: Classifier, real: Clips, theirs: Heard) -> dict[str, float]:
    """Return how often real recordings are heard right, by the name of the metric."""
    said = theirs.log_probabilities.argmax(axis=1)
    labels = np.array(real.labels)
    found = {
        f"agreement:{label}": float((said[labels == label] == i).mean())
        for i, label in enumerate(classifier.labels)
        if (labels == label).any()
    }
    return found | ({"agreement": float(np.mean(list(found.values())))} if found else {})


def _with_real(row: Metric, known: dict[str, float]) -> Metric:
    return Metric(row.metric, row.value, row.low, row.high, row.samples, known.get(row.metric, math.nan))


def _cell(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "NA"
