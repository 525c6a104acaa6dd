"""BED of windows: what the model says along each record."""

from collections.abc import Iterator, Sequence

from mamba_seq.pipelines.calls import NO_BASES, SHARES
from mamba_seq.pipelines.rows import MISSING, Row, printable

HIGHEST_SCORE = 1000


class WindowsBed:
    """A line a window: record, start, end (0-based, half-open), most probable label, score, strand `.`.

    The score is the probability of the label, 0 to 1000. Records come in the order of the input and windows by their
    start; windows of nothing but N are left out. With a stride below the context, windows overlap, and so may the last
    one and the one before it.

    Args:
        labels: of the model, in order.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = [printable(label) for label in labels]

    def head(self) -> tuple[bytes, ...]:
        """Return nothing: BED has no header line."""
        return ()

    def row(self, row: Row) -> Iterator[bytes]:
        """Yield the lines of a record."""
        name = printable(row.record) or MISSING
        for calls in row.calls or ():
            text = "".join(
                f"{name}\t{start}\t{end}\t{self._labels[label]}\t{(share * HIGHEST_SCORE + SHARES // 2) // SHARES}\t.\n"
                for start, end, label, share in calls.tolist()
                if label != NO_BASES
            )
            yield text.encode("utf-8", "backslashreplace")

    def tail(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()
