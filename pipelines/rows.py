"""One row a record: what classify says, as tab-separated text or as JSON lines.

Probabilities have four decimals, and the prediction, the status and a threshold are decided on these: what a reader
sees is consistent, and rounding that differs with the number of threads cannot turn a tie around.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from mamba_seq.pipelines.calls import Calls
    from mamba_seq.pipelines.originals import Original

DECIMALS = 4
MISSING = "NA"

Status = Literal["ok", "unclassified", "novel", "too_short", "empty", "no_bases", "invalid"]
STATUSES: Final[tuple[Status, ...]] = ("ok", "unclassified", "novel", "too_short", "empty", "no_bases", "invalid")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What is said about one record."""

    record: str
    """Name: the header up to the first white space; empty for a header without one."""
    length: int
    """Number of letters."""
    status: Status
    """What became of it."""
    prediction: str | None = None
    """The most probable label; None unless the status is ok."""
    probabilities: tuple[float, ...] | None = None
    """Of each label in order, rounded; None when the model saw nothing."""
    source: int = 0
    """Number of the file that it came from."""
    calls: "Calls | None" = None
    """What the model says of every window; None when nobody asked, or the model saw nothing."""
    original: "Original | None" = None
    """The text of the record; None when nobody asked."""


def decide(
    probabilities: Sequence[float], labels: Sequence[str], min_probability: float, novel_below: float = 0.0
) -> tuple[Status, str | None, tuple[float, ...]]:
    """Return status, prediction and rounded probabilities of a record that the model has seen.

    Args:
        probabilities: of each label (labels,).
        labels: the names in order.
        min_probability: below it, the record is unclassified.
        novel_below: below it, the record is novel, which says more.
    """
    rounded = tuple([round(p, DECIMALS) for p in probabilities])
    best = max(rounded)
    if best < novel_below:
        return "novel", None, rounded
    if best < min_probability:
        return "unclassified", None, rounded
    return "ok", labels[rounded.index(best)], rounded


class Writer(Protocol):
    """Makes a file of rows, piece by piece."""

    def head(self) -> Iterable[bytes]:
        """Give what stands before the first row."""

    def row(self, row: Row) -> Iterable[bytes]:
        """Give what is to be written of one row."""

    def tail(self) -> Iterable[bytes]:
        """Give what follows the last row."""


class Tsv:
    """A header line, then a line a record; `NA` where there is nothing to say."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = [printable(label) for label in labels]

    def head(self) -> tuple[bytes, ...]:
        """Return the header line."""
        names = ["record", "length", "prediction", "probability", "status", *(f"p:{label}" for label in self._labels)]
        return (line(names),)

    def row(self, row: Row) -> tuple[bytes, ...]:
        """Return the line of a record."""
        if row.probabilities is None:
            top, each = MISSING, [MISSING] * len(self._labels)
        else:
            each = [f"{p:.{DECIMALS}f}" for p in row.probabilities]
            top = max(each)
        prediction = MISSING if row.prediction is None else printable(row.prediction)
        return (line([printable(row.record) or MISSING, str(row.length), prediction, top, row.status, *each]),)

    def tail(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()


class JsonLines:
    """An object a line, with the fields of the table; the probabilities are an object, and null is what is missing."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels

    def head(self) -> tuple[bytes, ...]:
        """Return nothing: every line stands for itself."""
        return ()

    def row(self, row: Row) -> tuple[bytes, ...]:
        """Return the line of a record."""
        known = row.probabilities
        fields = {
            "record": row.record or None,
            "length": row.length,
            "prediction": row.prediction,
            "probability": None if known is None else max(known),
            "status": row.status,
            "probabilities": None if known is None else dict(zip(self._labels, known, strict=True)),
        }
        # ASCII escapes: bytes of a header that are no UTF-8 still give valid JSON
        return (json.dumps(fields).encode("ascii") + b"\n",)

    def tail(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()


def printable(text: str) -> str:
    """Escape, as \\x09 and the like, the characters of a name that would break a line or a column."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def line(fields: list[str]) -> bytes:
    """Return a line of a table, its fields printable."""
    return "\t".join(fields).encode("utf-8", "backslashreplace") + b"\n"
