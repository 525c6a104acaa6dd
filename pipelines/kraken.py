"""What the readers of Kraken 2's files read: a line a record, and the report of a whole run.

Both forms are those of Kraken 2's manual ("Output Formats"). What stands in its lines for the taxa of k-mers stands
here for those of windows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from mamba_seq.pipelines.calls import NO_BASES, SHARES
from mamba_seq.pipelines.rows import MISSING, Row, line, printable
from mamba_seq.pipelines.taxonomy import ROOT, Taxonomy

UNCLASSIFIED = 0
AMBIGUOUS = "A"


class Kraken:
    """A line a record: C or U, the record, its taxonomy id (0: none), its length, and runs of windows.

    A run is `taxid:windows`, in the order of the windows; 0 are windows below the least probability, A windows of
    nothing but N. Records that the model has not seen have `0:0`, as Kraken 2 writes it.

    Args:
        labels: of the model, in order.
        taxonomy: their ids.
        min_probability: of a record, and of a window to have a taxon.
    """

    def __init__(self, labels: Sequence[str], taxonomy: Taxonomy, min_probability: float = 0.0) -> None:
        self._taxids = dict(zip(labels, taxonomy.of_label, strict=True))
        self._names = [*map(str, taxonomy.of_label), AMBIGUOUS, str(UNCLASSIFIED)]
        self._least = min_probability * SHARES

    def head(self) -> tuple[bytes, ...]:
        """Return nothing: the format has no header line."""
        return ()

    def row(self, row: Row) -> Iterator[bytes]:
        """Yield the line of a record."""
        taxid = UNCLASSIFIED if row.prediction is None else self._taxids[row.prediction]
        fields = ["U" if taxid == UNCLASSIFIED else "C", printable(row.record) or MISSING, str(taxid), str(row.length)]
        yield line([*fields, ""]).rstrip(b"\n")
        nothing = True
        for name, count in self._runs(row):
            yield f"{'' if nothing else ' '}{name}:{count}".encode()
            nothing = False
        yield b"0:0\n" if nothing else b"\n"

    def tail(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()

    def _runs(self, row: Row) -> Iterator[tuple[str, int]]:
        """Yield runs of windows of one taxon, across the lots that calls come in."""
        before, total = "", 0
        for calls in row.calls or ():
            labels = calls["label"].astype(int)
            # numbers of names: the labels', then A, then 0
            labels[calls["label"] == NO_BASES] = len(self._names) - 2
            labels[(calls["label"] != NO_BASES) & (calls["share"] < self._least)] = len(self._names) - 1
            for label, run in groupby(labels.tolist()):
                if total and self._names[label] != before:
                    yield before, total
                    total = 0
                before = self._names[label]
                total += sum(1 for _ in run)
        if total:
            yield before, total


class Kreport:
    """The report of all records, a line a taxon: percent, records below, records here, rank, id, indented name.

    Taxa without a record are left out. The first line has what is unclassified, for whatever reason.

    Args:
        labels: of the model, in order.
        taxonomy: their ids.
    """

    def __init__(self, labels: Sequence[str], taxonomy: Taxonomy) -> None:
        self._taxids = dict(zip(labels, taxonomy.of_label, strict=True))
        self._taxonomy = taxonomy
        self._here: Counter[int] = Counter()

    def head(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()

    def row(self, row: Row) -> tuple[bytes, ...]:
        """Count a record."""
        self._here[UNCLASSIFIED if row.prediction is None else self._taxids[row.prediction]] += 1
        return ()

    def tail(self) -> Iterator[bytes]:
        """Yield the lines, a taxon's children below it, the largest first and equal ones by their ids."""
        self._clade: Counter[int] = Counter()
        for taxid, count in self._here.items():
            while taxid in self._taxonomy.parents:
                self._clade[taxid] += count
                taxid = self._taxonomy.parents[taxid]
            self._clade[taxid] += count
        if self._here[UNCLASSIFIED]:
            yield self._line(UNCLASSIFIED, "U", "unclassified", 0)
        if self._clade[ROOT]:
            yield from self._subtree(ROOT, 0)

    def _subtree(self, taxid: int, depth: int) -> Iterator[bytes]:
        taxon = self._taxonomy.taxa[taxid]
        yield self._line(taxid, taxon.rank, taxon.name, depth)
        below = [child for child in self._taxonomy.below(taxid) if self._clade[child]]
        for child in sorted(below, key=lambda each: (-self._clade[each], each)):
            yield from self._subtree(child, depth + 1)

    def _line(self, taxid: int, rank: str, name: str, depth: int) -> bytes:
        percent = 100 * self._clade[taxid] / self._here.total()
        counts = [f"{percent:6.2f}", str(self._clade[taxid]), str(self._here[taxid])]
        return line([*counts, rank, str(taxid), "  " * depth + printable(name)])
