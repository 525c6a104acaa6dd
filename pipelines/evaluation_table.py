"""What `mamba-seq evaluate` writes: a tidy table, or one JSON object."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from mamba_seq._version import __version__
from mamba_seq.pipelines.evaluate import wilson
from mamba_seq.pipelines.evaluate_genomes import LengthResult, UnknownResult
from mamba_seq.pipelines.rows import MISSING, printable

COLUMNS = (
    "length",
    "class",
    "windows",
    "disjoint",
    "correct",
    "accuracy",
    "low",
    "high",
    "ece",
    "novel",
    "novel_low",
    "novel_high",
)


def to_tsv(results: Iterable[LengthResult], labels: Sequence[str], unknown: Iterable[UnknownResult] = ()) -> str:
    """Write a row for all classes and one a class for every length; `n:<class>` columns are the confusion matrix.

    Genomes of no class follow as `unknown:<folder>`, with what they are taken for and the part that is called novel.
    """
    names = [printable(label) for label in labels]
    lines: list[list[object]] = [[*COLUMNS, *(f"n:{n}" for n in names)]]
    for result in results:
        confusion = result.evaluation.confusion
        everything = [result.length, "all", result.evaluation.windows, sum(result.disjoint), result.evaluation.correct]
        novel = _novel(result, None)
        lines.append(
            [*everything, *_shares(result, None), f"{result.ece:.4f}", *novel, *confusion.sum(axis=0).tolist()]
        )
        for i, name in enumerate(names):
            if counts := int(confusion[i].sum()):
                of_class = [result.length, name, counts, result.disjoint[i], int(confusion[i, i])]
                lines.append([*of_class, *_shares(result, i), MISSING, *_novel(result, i), *confusion[i].tolist()])
    for found in unknown:
        windows = [found.length, f"unknown:{printable(found.label)}", found.windows, found.disjoint]
        rate = _rate(found.novel, found.windows, found.disjoint)
        lines.append([*windows, *[MISSING] * 5, *rate, *found.predicted])
    return "".join("\t".join(map(str, line)) + "\n" for line in lines)


def to_json(
    results: Iterable[LengthResult],
    labels: Sequence[str],
    about: dict[str, Any],
    unknown: Iterable[UnknownResult] = (),
) -> str:
    """Write one object: `about`, the labels, and the results with their confusion matrices (truth down)."""
    rows = []
    for result in results:
        accuracy, low, high = (float(share) for share in _shares(result, None))
        rows.append(
            {
                "length": result.length,
                "windows": result.evaluation.windows,
                "disjoint": sum(result.disjoint),
                "correct": result.evaluation.correct,
                "accuracy": accuracy,
                "low": low,
                "high": high,
                "ece": None if math.isnan(result.ece) else round(result.ece, 4),
                "novel_by_class": None if result.novel is None else list(result.novel),
                "disjoint_by_class": list(result.disjoint),
                "confusion": result.evaluation.confusion.tolist(),
            }
        )
    strangers = [
        {
            "length": found.length,
            "genomes": found.label,
            "windows": found.windows,
            "disjoint": found.disjoint,
            "novel": found.novel,
            "predicted": list(found.predicted),
        }
        for found in unknown
    ]
    report = {"mamba_seq_version": __version__, **about, "labels": list(labels), "results": rows, "unknown": strangers}
    return json.dumps(report, indent=1) + "\n"


def _shares(result: LengthResult, label: int | None) -> list[str]:
    """Give accuracy and interval of all windows or of one class, with four decimals."""
    confusion = result.evaluation.confusion
    if label is None:
        right = result.evaluation.accuracy
    else:
        right = float(confusion[label, label] / confusion[label].sum())
    return [f"{share:.4f}" for share in (right, *wilson(right, result.independent(label)))]


def _novel(result: LengthResult, label: int | None) -> list[str]:
    """Give the part that is called novel, and its interval."""
    if result.novel is None:
        return [MISSING] * 3
    called = sum(result.novel) if label is None else result.novel[label]
    confusion = result.evaluation.confusion
    windows = int(confusion.sum() if label is None else confusion[label].sum())
    return _rate(called, windows, result.independent(label))


def _rate(called: int, windows: int, independent: int) -> list[str]:
    part = called / windows
    return [f"{share:.4f}" for share in (part, *wilson(part, min(windows, independent)))]
