"""One HTML page about a run of classify, with all it needs in it: no network, no other file.

Counts and lengths are those of all records. The rows of the table are embedded as JSON, up to MOST_ROWS of them, and
the windows along the sequences up to MOST_SEGMENTS; the page says so where more came. `page.html.jinja` is the page,
`report.css` and `report.js` are written into it.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mamba_seq._version import __version__
from mamba_seq.data_prep.compression import input_name
from mamba_seq.pipelines.calls import CALL, NO_BASES, SHARES, Calls
from mamba_seq.pipelines.rows import STATUSES, Row, printable

MOST_ROWS = 20_000
MOST_SEGMENTS = 400_000
"""Of all records together."""
SEGMENTS_A_RECORD = 400
"""A record with more windows is shown in so many stretches, each in the colour of most of its windows."""
MOST_PROBABILITIES = 5
"""Classes of a record whose probabilities are shown, the largest."""
MOST_FILES = 100
BINS_A_DECADE = 4


@dataclasses.dataclass(frozen=True)
class About:
    """What the page says of the run."""

    model: str
    """What the user called the model."""
    context: int
    """Bases of a window."""
    strands: str
    """Which strands were read."""


class Report:
    """Collects rows and makes the page.

    Args:
        paths: the input files in order.
        labels: of the model, in order.
        about: the run.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[str], about: About) -> None:
        self._paths = paths
        self._labels = list(labels)
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._about = about
        self._records: Counter[str] = Counter()  # by "label" or, without a prediction, by its status
        self._bases: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._rows: list[bytes] = []
        self._segments = 0
        self._without_track = 0

    def head(self) -> tuple[bytes, ...]:
        """Return nothing: the page is written at the end."""
        return ()

    def row(self, row: Row) -> tuple[bytes, ...]:
        """Take in a record."""
        what = f"={row.prediction}" if row.prediction is not None else row.status
        self._records[what] += 1
        self._bases[what] += row.length
        if row.length:
            self._lengths[math.floor(math.log10(row.length) * BINS_A_DECADE + 1e-9)] += 1
        if len(self._rows) < MOST_ROWS:
            self._rows.append(self._embedded(row))
        return ()

    def tail(self) -> Iterator[bytes]:
        """Yield the page."""
        from jinja2 import Environment, PackageLoader

        loader = PackageLoader("mamba_seq.pipelines", "report")
        page = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        marker = "@@DATA@@"
        before, after = (
            page.get_template("page.html.jinja").render(about=self._about, data=marker, version=__version__)
        ).split(marker)
        yield before.encode()
        summary = _json(self._summary())
        yield summary[:-1] + b',"rows":[\n'
        for number, row in enumerate(self._rows):
            yield row if number == 0 else b",\n" + row
        yield b"\n]}"
        yield after.encode()

    def _summary(self) -> dict[str, object]:
        files = [printable(input_name(path)) for path in self._paths[:MOST_FILES]]
        return {
            "labels": [printable(label) for label in self._labels],
            "statuses": list(STATUSES),
            "files": files,
            "fileCount": len(self._paths),
            "records": [self._records[f"={label}"] for label in self._labels],
            "bases": [self._bases[f"={label}"] for label in self._labels],
            "statusRecords": [self._records[status] for status in STATUSES],
            "statusBases": [self._bases[status] for status in STATUSES],
            "lengths": sorted(self._lengths.items()),
            "binsADecade": BINS_A_DECADE,
            "total": self._records.total(),
            "totalBases": self._bases.total(),
            "withoutTrack": self._without_track,
        }

    def _embedded(self, row: Row) -> bytes:
        """Write a row as name, length, status, class, probability, file, most probable classes, windows."""
        known = row.probabilities or ()
        best = sorted(range(len(known)), key=lambda label: (-known[label], label))[:MOST_PROBABILITIES]
        top = [figure for label in best if known[label] for figure in (label, round(known[label] * SHARES))]
        prediction = -1 if row.prediction is None else self._numbers[row.prediction]
        return _json(
            [
                printable(row.record),
                row.length,
                STATUSES.index(row.status),
                prediction,
                round(max(known) * SHARES) if known else -1,
                row.source,
                top,
                self._track(row.calls),
            ]
        )

    def _track(self, calls: Calls | None) -> list[list[int]] | int:
        """Return starts, ends, labels and percents of a record's windows; 0 when it has fewer than two of them."""
        if calls is None or calls.count < 2:
            return 0
        if self._segments + min(calls.count, SEGMENTS_A_RECORD) > MOST_SEGMENTS:
            self._without_track += 1
            return 0
        together = -(-calls.count // SEGMENTS_A_RECORD)
        pieces = [stretch for lot in _regrouped(calls, together) for stretch in lot]
        self._segments += len(pieces)
        return [list(column) for column in zip(*pieces, strict=True)]


def _regrouped(calls: Calls, together: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield stretches of so many windows: start, end, the label of most of them, its mean probability in percent."""
    rest: NDArray[np.void] = np.empty(0, CALL)
    for lot in calls:
        rest = np.concatenate((rest, lot))
        whole = len(rest) // together * together
        yield [_stretch(rest[at : at + together]) for at in range(0, whole, together)]
        rest = rest[whole:]
    if len(rest):
        yield [_stretch(rest)]


def _stretch(calls: NDArray[np.void]) -> tuple[int, int, int, int]:
    labels, counts = np.unique(calls["label"], return_counts=True)
    label = int(labels[counts.argmax()])
    share = 0 if label == NO_BASES else round(100 * float(calls["share"][calls["label"] == label].mean()) / SHARES)
    return int(calls["start"][0]), int(calls["end"][-1]), label, share


def _json(value: object) -> bytes:
    """Write JSON that may stand in a script element: ASCII, and no character that HTML or its parser knows."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode("ascii")
