"""Which files a run of classify writes: the table, and what else was asked for, made together from one pass."""

import dataclasses
from collections.abc import Iterable, Sequence

from mamba_seq.config import ModelConfig
from mamba_seq.pipelines.compressed import Sink
from mamba_seq.pipelines.kraken import Kraken, Kreport
from mamba_seq.pipelines.multiqc import MultiQC
from mamba_seq.pipelines.originals import OriginalsWriter
from mamba_seq.pipelines.output import open_outputs
from mamba_seq.pipelines.report import About, Report
from mamba_seq.pipelines.rows import JsonLines, Row, Tsv, Writer
from mamba_seq.pipelines.taxonomy import Taxonomy
from mamba_seq.pipelines.windows_bed import WindowsBed

GATHERED = 1 << 16
"""Bytes that are written at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that were asked for; None for those that were not."""

    table: str = "-"
    """One row a record."""
    format: str = "tsv"
    """Of the table: tsv, jsonl or kraken."""
    windows: str | None = None
    """BED of windows."""
    kreport: str | None = None
    """Kraken 2's report."""
    report: str | None = None
    """HTML page."""
    multiqc: str | None = None
    """Summary for MultiQC."""
    classified: str | None = None
    """Records that have a class, as they were read."""
    unclassified: str | None = None
    """Those that have none."""
    taxonomy: str | None = None
    """A table of taxonomy ids, to read; None takes the model's."""

    @property
    def targets(self) -> list[str]:
        """Every file that is written."""
        extra = (self.windows, self.kreport, self.report, self.multiqc, self.classified, self.unclassified)
        return [self.table, *(target for target in extra if target is not None)]

    @property
    def need_calls(self) -> bool:
        """Whether rows must have what the model says of every window."""
        return self.format == "kraken" or self.windows is not None or self.report is not None

    @property
    def need_originals(self) -> bool:
        """Whether rows must have the text of their records."""
        return self.classified is not None or self.unclassified is not None

    def writers(
        self, paths: Sequence[str], model: str, config: ModelConfig, about: About, min_probability: float
    ) -> list[Writer]:
        """Make what writes each of `targets`.

        Args:
            paths: the input files in order.
            model: what the user called the model.
            config: of the model.
            about: for the page.
            min_probability: of a window in Kraken's format.

        Raises:
            ModelError: when taxonomy ids are needed and the model has none.
            DataError: when the table of them cannot be used.
        """
        labels = config.labels
        made: list[Writer] = []
        if self.format == "kraken" or self.kreport is not None:
            if self.taxonomy is None:
                taxonomy = Taxonomy.of_model(model, labels, config.taxonomy)
            else:
                taxonomy = Taxonomy.of_table(self.taxonomy, labels)
        if self.format == "kraken":
            made.append(Kraken(labels, taxonomy, min_probability))
        else:
            made.append(Tsv(labels) if self.format == "tsv" else JsonLines(labels))
        if self.windows is not None:
            made.append(WindowsBed(labels))
        if self.kreport is not None:
            made.append(Kreport(labels, taxonomy))
        if self.report is not None:
            made.append(Report(paths, labels, about))
        if self.multiqc is not None:
            made.append(MultiQC(paths, labels, model))
        if self.classified is not None:
            made.append(OriginalsWriter("--classified-out", True))
        if self.unclassified is not None:
            made.append(OriginalsWriter("--unclassified-out", False))
        return made


def write_outputs(rows: Iterable[Row], targets: Sequence[str], writers: Sequence[Writer]) -> None:
    """Write every row to every target; none of them appears before the last row is there.

    Raises:
        OutputError: when a target cannot be written.
        DataError: from the rows, or for what cannot be written into one file.
    """
    with open_outputs(targets) as sinks:
        pairs = [(writer, _Gathered(sink)) for writer, sink in zip(writers, sinks, strict=True)]
        for writer, gathered in pairs:
            gathered.take(writer.head())
        for row in rows:
            for writer, gathered in pairs:
                gathered.take(writer.row(row))
            if row.original is not None:
                row.original.release()
        for writer, gathered in pairs:
            gathered.take(writer.tail())
            gathered.flush()


class _Gathered:
    """Gathers the pieces of many rows, for a sink has much to do at every write."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._pieces: list[bytes] = []
        self._size = 0

    def take(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size >= GATHERED:
                self.flush()

    def flush(self) -> None:
        self._sink.write(b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0
