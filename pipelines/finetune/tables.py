"""Tables of predictions: a row an example, in the order of the data, whatever the task."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.labelled import Example
from mamba_seq.pipelines.rows import printable

MISSING = "NA"
OK, EMPTY, INVALID, TOO_LONG = "ok", "empty", "invalid", "too_long"


def header(config: ModelConfig, truth: bool) -> list[str]:
    """Return the names of the columns."""
    names = [printable(label) for label in config.labels]
    own = {
        "sequence-classification": ["prediction", "probability"],
        "multi-label": ["prediction"],
        "sequence-regression": names,
        "token-regression": ["prediction"],
        "token-classification": ["prediction"],
        "ctc": ["prediction"],
        "language-model": ["bits_per_token"],
    }[config.task]
    classes = [f"p:{n}" for n in names] if config.task in ("sequence-classification", "multi-label") else []
    return ["id", "length", "status", *(["truth"] if truth else []), *own, *classes]


def row(example: Example, status: str, result: Any, config: ModelConfig, truth: bool) -> list[str]:
    """Return the cells of an example; `result` is None where there is none."""
    cells = [printable(example.id) or MISSING, str(example.length), status]
    if truth:
        known = [each or "-" for each in example.label or ()]  # a position may lack its label
        separator = "" if all(len(each) == 1 for each in known) else " "
        cells.append(MISSING if example.label is None else printable(separator.join(known)))
    if result is None:
        return cells + [MISSING] * (len(header(config, truth)) - len(cells))
    return cells + _said(result, config)


def to_tsv(rows: Sequence[Sequence[str]]) -> bytes:
    """Return the text of a table."""
    return "".join("\t".join(each) + "\n" for each in rows).encode("utf-8", "backslashreplace")


def _said(result: Any, config: ModelConfig) -> list[str]:
    names = [printable(label) for label in config.labels]
    if config.task == "sequence-classification":
        best = int(np.argmax(result))
        return [names[best], f"{result[best]:.4f}", *(f"{p:.4f}" for p in result)]
    if config.task == "multi-label":
        return [
            ";".join(n for n, p in zip(names, result, strict=True) if p >= 0.5) or "-",
            *(f"{p:.4f}" for p in result),
        ]
    if config.task == "token-classification":
        separator = "" if all(len(name) == 1 for name in names) else " "
        return [separator.join(names[i] for i in result.argmax(axis=1))]
    if config.task == "token-regression":
        return [" ".join(",".join(f"{v:.6g}" for v in position) for position in result)]
    if config.task == "ctc":
        return [printable("".join(config.labels[i] for i in result))]
    return [f"{v:.6g}" for v in result]
