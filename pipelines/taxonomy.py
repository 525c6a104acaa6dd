"""Which taxon each label of a model is: ids, ranks and names, from the model's config or from a table.

A config's `taxonomy` gives every label its lineage, from the top down to the label itself:

    "taxonomy": {"escherichia_coli": "2:D:Bacteria;561:G:Escherichia;562:S:Escherichia coli"}

A table (tab-separated, a header line) does the same for models without one, `label` and `taxid` at the least:

    label             taxid  rank  name              lineage
    escherichia_coli  562    S     Escherichia coli  2:D:Bacteria;561:G:Escherichia
"""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from mamba_seq.data_prep.errors import DataError, UnreadableFile
from mamba_seq.errors import ModelError

ROOT = 1
"""The id of the root, above everything."""
RANKS = "RDKPCOFGS"
"""Rank codes of Kraken 2, from the root down to the species; a digit behind one says how many levels below it."""
_COLUMNS = ("label", "taxid", "rank", "name", "lineage")


@dataclasses.dataclass(frozen=True)
class Taxon:
    """A node of the tree."""

    taxid: int
    rank: str
    name: str


class Taxonomy:
    """The lineages of a model's labels.

    Args:
        lineages: of each label in order, from the top down to the label; the root may be left out.

    Raises:
        ValueError: when an id has two names, ranks or parents.
    """

    def __init__(self, lineages: Sequence[Sequence[Taxon]]) -> None:
        self.taxa: dict[int, Taxon] = {ROOT: Taxon(ROOT, "R", "root")}
        """Every node by its id."""
        self.parents: dict[int, int] = {}
        """The id above each node but the root."""
        self.of_label: list[int] = []
        """The id of each label."""
        for lineage in lineages:
            above = ROOT
            for taxon in lineage:
                if taxon.taxid == ROOT:
                    continue
                known = self.taxa.setdefault(taxon.taxid, taxon)
                parent = self.parents.setdefault(taxon.taxid, above)
                if known != taxon or parent != above:
                    raise ValueError(
                        f"taxonomy id {taxon.taxid} is {known.name!r} ({known.rank}, below {parent}) in one place and "
                        f"{taxon.name!r} ({taxon.rank}, below {above}) in another"
                    )
                above = taxon.taxid
            self.of_label.append(above)

    @classmethod
    def of_model(cls, model: str, labels: Sequence[str], taxonomy: dict[str, str] | None) -> "Taxonomy":
        """Make the taxonomy that a model's config holds.

        Args:
            model: what the user called it, for messages.
            labels: its labels in order.
            taxonomy: of its config.

        Raises:
            ModelError: when it has none, or one that cannot be read.
        """
        if taxonomy is None:
            raise ModelError(
                f"model {model!r} has no taxonomy ids, which --kreport and --format kraken need; give them with "
                "--taxonomy FILE (a table with the columns label and taxid, and rank, name and lineage if you like), "
                "or write them into the 'taxonomy' of its config.json"
            )
        try:
            return cls([_lineage(taxonomy[label]) for label in labels])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the taxonomy of model {model!r} cannot be read: {error}; for every label a lineage such as "
                "'2:D:Bacteria;562:S:Escherichia coli' was expected"
            ) from error

    @classmethod
    def of_table(cls, path: str, labels: Sequence[str]) -> "Taxonomy":
        """Read a table of labels.

        Args:
            path: of the table.
            labels: of the model, in order; others in the table are passed over.

        Raises:
            DataError: when it cannot be read, lacks a label, or has one twice.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableFile(f"{path} cannot be read as a table of taxonomy ids: {error}") from error
        table = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"label", "taxid"} <= set(table.fieldnames or ()):
            came = "\t".join(table.fieldnames or ())
            raise DataError(
                f"{path} begins with {came!r}; a header line with the columns label and taxid, tab-separated, was "
                f"expected, and {', '.join(_COLUMNS[2:])} if you like"
            )
        lineages: dict[str, list[Taxon]] = {}
        for number, row in enumerate(table, start=2):
            label = row["label"]
            if label in lineages:
                raise DataError(f"{path}, line {number}: label {label!r} came before; one line a label was expected")
            try:
                lineages[label] = _of_row(row)
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: {error}; a taxid above 0 was expected, and a lineage such as "
                    "2:D:Bacteria;561:G:Escherichia"
                ) from error
        missing = [label for label in labels if label not in lineages]
        if missing:
            raise DataError(f"{path} has no line for the model's label {missing[0]!r}; add one for each label")
        try:
            return cls([lineages[label] for label in labels])
        except ValueError as error:
            raise DataError(f"{path}: {error}; make them agree") from error

    def below(self, taxid: int) -> Iterable[int]:
        """Return the ids right below a node."""
        return [child for child, parent in self.parents.items() if parent == taxid]


def _lineage(text: str) -> list[Taxon]:
    """Read a lineage, taxa of id, rank code and name, with a semicolon between them."""
    lineage = []
    for node in filter(str.strip, text.split(";")):
        parts = node.split(":", 2)
        if len(parts) < 3:
            raise ValueError(f"{node.strip()!r} came, an id, a rank code and a name with colons between were expected")
        lineage.append(_taxon(*parts))
    return lineage


def _of_row(row: dict[str, str | None]) -> list[Taxon]:
    """Return the lineage that a line of a table gives."""
    name = row.get("name") or (row["label"] or "").replace("_", " ").capitalize()
    return [*_lineage(row.get("lineage") or ""), _taxon(row["taxid"] or "", row.get("rank") or "S", name)]


def _taxon(taxid: str, rank: str, name: str) -> Taxon:
    if not taxid.strip().isdecimal() or int(taxid) < 1:
        raise ValueError(f"taxonomy id {taxid!r} came")
    rank = rank.strip()
    if not rank or rank[0] not in RANKS or not (rank[1:].isdecimal() or rank[1:] == ""):
        raise ValueError(f"rank code {rank!r} came, one of {', '.join(RANKS)} was expected")
    return Taxon(int(taxid), rank, name.strip())
