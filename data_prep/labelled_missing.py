"""Labels that are numbers but for some cells: values that were not measured, and decimal commas.

People write a missing value as NA or nan, and programs do so for them. Beside numbers it is no label: what is left in
such a column are quantities, or numbered classes. Beside names of classes NA is a name like any other.
"""

import dataclasses
import re

from mamba_seq.data_prep.labelled import Labelled
from mamba_seq.data_prep.labelled_targets import is_number

MISSING = frozenset(("", "na", "n/a", "#n/a", "nan", "null"))
"""How a missing number is written, in small letters."""
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


def blank_missing(data: Labelled) -> Labelled:
    """Return the data with the cells of `MISSING` empty in each column of labels whose other cells are all numbers.

    An example is without a label when a cell of its is empty; one of a label a position, when all are.
    """
    known = [e.label for e in data.examples if e.label is not None]
    if not known:
        return data
    # of a label a position all parts are one column
    columns = [[cell for label in known for cell in label]] if data.per_position else list(zip(*known, strict=True))
    numeric = [
        any(cell.lower() in MISSING for cell in column)
        and all(cell.lower() in MISSING or is_number(cell) for cell in column)
        for column in columns
    ]
    if not any(numeric):
        return data
    complete = any if data.per_position else all
    examples = []
    for e in data.examples:
        marks = numeric * e.length if data.per_position else numeric
        cells = tuple(
            "" if mark and cell.lower() in MISSING else cell for mark, cell in zip(marks, e.label or (), strict=False)
        )
        examples.append(dataclasses.replace(e, label=cells if cells and complete(cells) else None))
    return dataclasses.replace(data, examples=examples)


def decimal_commas(data: Labelled) -> list[str]:
    """Return a warning where labels look like numbers with a decimal comma, which are read as names of classes."""
    cells = {e.label[0] for e in data.examples if e.label is not None and len(e.label) == 1}
    odd = sorted(cell for cell in cells if _DECIMAL_COMMA.fullmatch(cell))
    if not odd or not all(_DECIMAL_COMMA.fullmatch(cell) or is_number(cell) for cell in cells):
        return []
    return [f"labels such as {odd[0]!r} are names, not numbers; write a decimal point if they are numbers"]
