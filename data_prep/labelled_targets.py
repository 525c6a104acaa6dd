"""From labels to targets, and which task labels are of.

a text each                             sequence-classification: names sorted, as numbers where they are numbers
texts with ; or | in them, 0/1 columns  multi-label
numbers                                 sequence-regression, unless few whole numbers: those are names of classes
a letter or number a position           token-classification, token-regression
nearly all different texts              ctc
none                                    language-model
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mamba_seq.data_prep.errors import BadRecord, DataError, TooFewData
from mamba_seq.data_prep.labelled import Example, Labelled

MOST_NUMBERED_CLASSES = 20
"""Whole numbers of more values than this, and than a tenth of the examples, are quantities."""
YES, NO = ("1", "true", "yes"), ("0", "false", "no")
_SEPARATORS = re.compile(r"\s*[;|]\s*")
UNKNOWN = -100
"""A position without a label."""


@dataclasses.dataclass
class Targets:
    """Targets of examples.

    Args:
        task: As a model's config names it.
        labels: Names of classes, targets or symbols.
        values: For each example an int, an array of floats (labels,), an array a position, a list of symbols; None
        where
            it has no label.
        mean: Of each number of a regression, over training; what was subtracted.
        scale: Its standard deviation; what was divided by.
        unknown: Labels that the model does not have, and how often.
    """

    task: str
    labels: list[str]
    values: list[Any]
    mean: list[float] = dataclasses.field(default_factory=list)
    scale: list[float] = dataclasses.field(default_factory=list)
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)


def infer_task(data: Labelled) -> str:
    """Return the task that the labels are of.

    Raises:
        DataError: They are of none.
    """
    known = [e for e in data.examples if e.label is not None]
    if not known:
        return "language-model"
    if data.per_position:
        labels = sorted({cell for e in known for cell in e.label or () if cell})
        return "token-regression" if _quantities(labels, len(known)) else "token-classification"
    columns = len(known[0].label or ())
    cells = sorted({cell for e in known for cell in e.label or ()})
    if columns > 1:
        if all(cell.lower() in YES + NO for cell in cells):
            return "multi-label"
        if all(is_number(cell) for cell in cells):
            return "sequence-regression"
        odd = next(cell for cell in cells if not is_number(cell))
        raise DataError(
            f"{columns} label columns hold {odd!r}; 0 and 1, or numbers, were expected: name one with --label"
        )
    if all(e.length > 1 and len(position_cells(e)) == e.length for e in known) and any(e.length > 4 for e in known):
        letters = sorted({cell for e in known for cell in position_cells(e)})
        return "token-regression" if _quantities(letters, len(known)) else "token-classification"
    if any(_SEPARATORS.search(cell) for cell in cells):
        return "multi-label"
    if _quantities(cells, len(known)):
        return "sequence-regression"
    if len(cells) > max(50, len(known) // 2):
        return "ctc"
    return "sequence-classification"


def make_targets(
    data: Labelled, task: str, labels: list[str] | None = None, training: Sequence[bool] | None = None
) -> Targets:
    """Encode the labels.

    Args:
        data: the examples.
        task: as a model's config names it.
        labels: of a model that is there; None makes them from the data.
        training: which examples are for training: numbers are put on their scale. Needed with labels None.

    Raises:
        DataError: A label does not fit the task; with its place.
    """
    encode = {
        "sequence-classification": _classes,
        "multi-label": _several,
        "sequence-regression": _numbers,
        "token-classification": _positions,
        "token-regression": _tracks,
        "ctc": _texts,
    }.get(task)
    if encode is None:
        return Targets(task, labels or [], [None] * len(data.examples))
    targets = encode(data, labels)
    if task.endswith("regression") and training is not None:
        standardise(targets, training)
    return targets


def standardise(targets: Targets, training: Sequence[bool]) -> None:
    """Give each number mean 0 and standard deviation 1 over the training examples."""
    rows = [
        v.reshape(-1, len(targets.labels)) for v, t in zip(targets.values, training, strict=True) if t and v is not None
    ]
    together = np.concatenate(rows).astype(np.float64)
    mean, scale = np.nanmean(together, axis=0), np.nanstd(together, axis=0)
    if (scale == 0).any():
        raise TooFewData(f"target {targets.labels[int(np.argmin(scale))]!r} is the same in all training examples")
    targets.mean, targets.scale = mean.tolist(), scale.tolist()
    targets.values = [None if v is None else ((v - mean) / scale).astype(np.float32) for v in targets.values]


def natural(names: set[str]) -> list[str]:
    """Sort names; as numbers if all of them are."""
    return sorted(names, key=lambda n: (float(n), n)) if names and all(map(is_number, names)) else sorted(names)


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def position_cells(example: Example) -> list[str]:
    """Return the labels of an example's positions: its parts, the words of its text, or its letters."""
    label = example.label or ()
    if len(label) != 1:
        return list(label)
    words = label[0].replace(",", " ").split()
    return words if len(words) > 1 else list(label[0])


def _quantities(cells: list[str], examples: int) -> bool:
    if not all(map(is_number, cells)):
        return False
    whole = all(re.fullmatch(r"[-+]?\d+", cell) for cell in cells)
    return not whole or len(cells) > max(MOST_NUMBERED_CLASSES, examples // 10)


def _classes(data: Labelled, labels: list[str] | None) -> Targets:
    cells = [None if e.label is None else e.label[0] for e in data.examples]
    names = natural({c for c in cells if c is not None}) if labels is None else labels
    if labels is None and len(names) < 2:
        raise TooFewData(f"all examples are of {', '.join(map(repr, names)) or 'no class'}; two classes were expected")
    return _known(Targets("sequence-classification", names, []), cells)


def _several(data: Labelled, labels: list[str] | None) -> Targets:
    columns = data.label_names if len(data.label_names) > 1 else None
    sets: list[set[str] | None] = []
    for e in data.examples:
        if e.label is None:
            sets.append(None)
        elif columns is not None:
            wrong = next((cell for cell in e.label if cell.lower() not in YES + NO), None)
            if wrong is not None:
                raise BadRecord(f"{e.where}: {wrong!r} came as a label of several; 0 or 1 was expected")
            sets.append({name for name, cell in zip(columns, e.label, strict=True) if cell.lower() in YES})
        else:
            sets.append({part for part in _SEPARATORS.split(e.label[0]) if part not in ("", "-", "none")})
    names = labels or columns or natural(set().union(*(s for s in sets if s is not None)))
    targets = Targets("multi-label", list(names), [])
    for each in sets:
        for name in (each or set()) - set(names):
            targets.unknown[name] = targets.unknown.get(name, 0) + 1
        targets.values.append(None if each is None else np.array([float(name in each) for name in names], np.float32))
    return targets


def _numbers(data: Labelled, labels: list[str] | None) -> Targets:
    names = labels or data.label_names or ["value"]
    values = []
    for e in data.examples:
        if e.label is not None and len(e.label) != len(names):
            raise BadRecord(f"{e.where}: {len(e.label)} numbers came, {len(names)} were expected ({', '.join(names)})")
        values.append(None if e.label is None else np.array([_number(cell, e.where) for cell in e.label], np.float32))
    return Targets("sequence-regression", list(names), values)


def _positions(data: Labelled, labels: list[str] | None) -> Targets:
    cells = [None if e.label is None else _checked_positions(e) for e in data.examples]
    names = labels or natural({c for each in cells if each is not None for c in each if c})
    if labels is None and len(names) < 2:
        raise TooFewData(f"all positions are of {', '.join(map(repr, names))}; two classes were expected")
    number = {name: i for i, name in enumerate(names)}
    targets = Targets("token-classification", list(names), [])
    for each in cells:
        for cell in each or ():
            if cell and cell not in number:
                targets.unknown[cell] = targets.unknown.get(cell, 0) + 1
        targets.values.append(
            None if each is None else np.array([number.get(cell, UNKNOWN) for cell in each], dtype=np.int64)
        )
    return targets


def _tracks(data: Labelled, labels: list[str] | None) -> Targets:
    values = [
        None
        if e.label is None
        else np.array([[_number(cell, e.where)] for cell in _checked_positions(e)], dtype=np.float32)
        for e in data.examples
    ]
    return Targets("token-regression", labels or data.label_names[:1] or ["value"], values)


def _texts(data: Labelled, labels: list[str] | None) -> Targets:
    texts = [None if e.label is None else e.label[0] for e in data.examples]
    names = labels or sorted(set().union(*(set(text) for text in texts if text)))
    if not names:
        raise TooFewData("no example has a text, which ctc learns to write; name its column with --label")
    number = {name: i for i, name in enumerate(names)}
    targets = Targets("ctc", list(names), [])
    for e, text in zip(data.examples, texts, strict=True):
        if text is None:
            targets.values.append(None)
            continue
        needed = len(text) + sum(a == b for a, b in itertools.pairwise(text))
        if needed > e.length:
            raise BadRecord(
                f"{e.where}: a text of {len(text)} symbols came for a sequence of {e.length} positions; ctc needs "
                "at least "
                f"{needed} of them"
            )
        for c in text:
            if c not in number:
                targets.unknown[c] = targets.unknown.get(c, 0) + 1
        targets.values.append([number[c] for c in text if c in number])
    return targets


def _known(targets: Targets, cells: list[str | None]) -> Targets:
    number = {name: i for i, name in enumerate(targets.labels)}
    for cell in cells:
        if cell is not None and cell not in number:
            targets.unknown[cell] = targets.unknown.get(cell, 0) + 1
        targets.values.append(None if cell is None else number.get(cell))
    return targets


def _checked_positions(example: Example) -> list[str]:
    cells = position_cells(example)
    if len(cells) != example.length:
        raise BadRecord(
            f"{example.where}: {len(cells)} labels came for {example.length} positions; one for each was expected"
        )
    return cells


def _number(cell: str, where: str) -> float:
    if not cell:
        return float("nan")
    if not is_number(cell):
        raise BadRecord(f"{where}: {cell!r} came as a number to learn; a finite number was expected")
    return float(cell)
