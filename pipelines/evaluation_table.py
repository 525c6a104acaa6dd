"""What `mamba-seq evaluate` writes: a tidy table, or one JSON object."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mamba_seq._version import __version__
from mamba_seq.pipelines.evaluate import LengthResult, wilson
from mamba_seq.pipelines.rows import printable


def to_tsv(results: Iterable[LengthResult], labels: Sequence[str]) -> str:
    """Write a row for all classes and one a class for every length; `n:<class>` columns are the confusion matrix."""
    names = [printable(label) for label in labels]
    head = ["length", "class", "windows", "disjoint", "correct", "accuracy", "low", "high", *(f"n:{n}" for n in names)]
    lines: list[list[object]] = [list(head)]
    for result in results:
        confusion = result.evaluation.confusion
        everything = [result.length, "all", result.evaluation.windows, sum(result.disjoint), result.evaluation.correct]
        lines.append([*everything, *_shares(result, None), *confusion.sum(axis=0).tolist()])
        for i, name in enumerate(names):
            if counts := int(confusion[i].sum()):
                of_class = [result.length, name, counts, result.disjoint[i], int(confusion[i, i])]
                lines.append([*of_class, *_shares(result, i), *confusion[i].tolist()])
    return "".join("\t".join(map(str, line)) + "\n" for line in lines)


def to_json(results: Iterable[LengthResult], labels: Sequence[str], about: dict[str, Any]) -> str:
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
                "disjoint_by_class": list(result.disjoint),
                "confusion": result.evaluation.confusion.tolist(),
            }
        )
    return (
        json.dumps({"mamba_seq_version": __version__, **about, "labels": list(labels), "results": rows}, indent=1)
        + "\n"
    )


def _shares(result: LengthResult, label: int | None) -> list[str]:
    """Give accuracy and interval of all windows or of one class, with four decimals."""
    confusion = result.evaluation.confusion
    if label is None:
        right = result.evaluation.accuracy
    else:
        right = float(confusion[label, label] / confusion[label].sum())
    return [f"{share:.4f}" for share in (right, *wilson(right, result.independent(label)))]
