"""Tables of sequences or numbers: CSV and TSV with or without quotes, byte-order mark and spaces, and Parquet.

The separator is the one of tab, comma and semicolon that the first line has most of, or what a line `sep=;` above it,
which spreadsheets write, says. Column names are compared without case. A table whose first line holds a sequence has no
header: the longest cell is the sequence, the next the label.
"""

import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import BadRecord, DataError, EmptyFile, NotText
from mamba_seq.data_prep.labelled import Example, Labelled, LabelledConfig, Sequence, split_named
from mamba_seq.data_prep.labelled_inputs import as_tokens
from mamba_seq.data_prep.labelled_series import long_series, numbers_of
from mamba_seq.data_prep.labelled_targets import is_number

SEQUENCE_NAMES = ("sequence", "seq", "text")
LABEL_NAMES = ("label", "labels", "class", "target", "y")
ID_NAMES = ("id", "name")
_NUMBERS = re.compile(r"[-+\d.eE]+(\s+[-+\d.eE]+)*")
_BASES = re.compile(r"[ACGTUNacgtun]{8,}")


class Table(NamedTuple):
    """A table's cells as text, without the spaces around them."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]
    """Line number and cells, as many as columns."""
    headless: bool

    def find(self, asked: str | None, names: tuple[str, ...], what: str, needed: bool = False) -> int | None:
        """Return the number of a column: the one asked for, or the first of those with a usual name.

        Raises:
            BadRecord: The one asked for, or a needed one, is not there.
        """
        lower = [column.lower() for column in self.columns]
        for name in (asked.lower(),) if asked is not None else names:
            if name in lower:
                return lower.index(name)
        if asked is None and not needed:
            return None
        expected = repr(asked) if asked is not None else " or ".join(map(repr, names))
        raise BadRecord(
            f"{self.path} has the columns {', '.join(map(repr, self.columns))}; {expected} was expected as {what}: "
            f"name the column with --{what}"
        )

    def column(self, name: str, what: str) -> int:
        """Return the number of a column that was asked for.

        Raises:
            BadRecord: It is not there.
        """
        at = self.find(name, (), what)
        assert at is not None
        return at

    def where(self, line: int) -> str:
        """Name a line for a message."""
        return f"{self.path}, line {line}"


def read_table_file(path: Path, config: LabelledConfig) -> Labelled:
    """Read the examples of a table.

    Raises:
        DataError: With line and column.
    """
    table = read_table(path)
    labels = label_columns(table, config)
    if config.values is not None:
        if config.series is not None:
            return long_series(table, config, labels)
        columns = [table.column(name, "values") for name in config.values]
        sequences: Iterator[object] = (
            numbers_of([row[c] for c in columns], table.where(line), config.values)[:, None] for line, row in table.rows
        )
    else:
        at = table.find(config.sequence, SEQUENCE_NAMES, "sequence", needed=True)
        assert at is not None
        sequences = iter(_sequences([row[at] for _, row in table.rows]))
    ids = table.find(config.id, ID_NAMES, "id")
    split = table.find(config.split, ("split",), "split")
    group = table.find(config.group, ("group",), "group")
    examples = []
    for (line, row), sequence in zip(table.rows, sequences, strict=True):
        label = tuple(row[c] for c in labels)
        examples.append(
            Example(
                id=row[ids] if ids is not None and row[ids] else str(line),
                sequence=sequence,  # type: ignore[arg-type]
                label=label if label and all(label) else None,
                split=split_named(row[split], table.where(line)) if split is not None else None,
                group=row[group] if group is not None else "",
                where=table.where(line),
            )
        )
    found = Labelled("a table", examples, [table.columns[c] for c in labels])
    if table.headless:
        found.warnings.append(f"{path} has no line of column names: the longest cell is taken as the sequence")
    return found


def label_columns(table: Table, config: LabelledConfig) -> list[int]:
    """Return the numbers of the label columns; none when the table has none."""
    if config.label is not None:
        return [table.column(name, "label") for name in config.label]
    at = table.find(None, LABEL_NAMES, "label")
    return [] if at is None else [at]


def read_table(path: Path, numbers: bool = False) -> Table:
    """Read a table.

    Args:
        path: of it.
        numbers: it holds numbers alone, so that a first line of numbers is a row, unless it counts from 0.

    Raises:
        DataError: It cannot be read, is no text, or a line has another number of cells than the first.
    """
    if path.name.lower().endswith(".parquet"):
        return _parquet(path)
    with open_input(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(
            f"{path} is no UTF-8 text: byte {error.start} is {raw[error.start]:#04x}; save it as UTF-8"
        ) from error
    if not text.strip():
        raise EmptyFile(f"{path} is empty; a table with a line of column names was expected")
    named = re.match(r"\s*sep=(.)[ \t]*(?=[\r\n])", text, re.IGNORECASE)
    if named is not None:
        text = text[named.end() :]  # its line's end stays, so that lines keep their numbers
    first = (text.lstrip().splitlines() or [""])[0]
    separator = max("\t,;", key=first.count) if named is None else named[1]
    csv.field_size_limit(sys.maxsize)  # a chromosome fits in a cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise BadRecord(f"{path}, line {reader.line_num}: {error}; check the quotes of this line") from error
    if not rows:
        raise EmptyFile(f"{path} has nothing but empty cells; a line of column names and rows were expected")
    return _table(path, rows, numbers)


def _table(path: Path, rows: list[tuple[int, list[str]]], numbers: bool = False) -> Table:
    head = rows[0][1]
    counted = head == [str(i) for i in range(len(head))]
    headless = any(_BASES.fullmatch(cell) for cell in head)
    if numbers and not counted and all(map(is_number, head)):
        headless, columns = True, [f"column{i + 1}" for i in range(len(head))]
    elif headless:
        columns = [f"column{i + 1}" for i in range(len(head))]
        columns[max(range(len(head)), key=lambda i: len(head[i]))] = SEQUENCE_NAMES[0]
        if len(head) > 1:
            columns[next(i for i, name in enumerate(columns) if name != SEQUENCE_NAMES[0])] = LABEL_NAMES[0]
    else:
        columns, rows = head, rows[1:]
    lower = [column.lower() for column in columns]
    twice = next((name for name in lower if lower.count(name) > 1), None)
    if twice is not None:
        raise BadRecord(f"{path} has the column {twice!r} twice; give each its own name")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise BadRecord(
                f"{path}, line {line}: {len(cells)} cells came, {len(columns)} were expected "
                f"({', '.join(columns)}); quote cells that hold the separator"
            )
    if not rows:
        raise EmptyFile(f"{path} has column names and no row; at least one sequence was expected")
    return Table(path, columns, rows, headless)


def _parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path} is Parquet, which needs pyarrow: pip install 'mamba-seq[parquet]', or save the table as .csv"
        ) from error
    try:
        read = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadRecord(f"{path} cannot be read as Parquet: {error}") from error
    columns = [column.to_pylist() for column in read.columns]
    rows = [(i + 1, [_text(cell) for cell in row]) for i, row in enumerate(zip(*columns, strict=True))]
    return _table(path, [(0, [str(name) for name in read.column_names]), *rows])


def _text(cell: object) -> str:
    """Return a cell of Parquet as a CSV would hold it; a list of tokens or readings with spaces between them."""
    return "" if cell is None else " ".join(map(str, cell)) if isinstance(cell, list) else str(cell).strip()


def _sequences(cells: list[str]) -> list[Sequence]:
    """Return letters without white space; where all cells are numbers with spaces between them, those."""
    filled = [cell for cell in cells if cell]
    if not any(map(_spaced, filled)) or not all(_NUMBERS.fullmatch(cell) for cell in filled):
        return ["".join(cell.split()) if not _spaced(cell) else cell for cell in cells]
    tokens = [as_tokens(cell) for cell in cells]
    if all(each is not None and (each >= 0).all() for each in tokens):
        return [each for each in tokens if each is not None]
    try:
        return [np.array([float(each) for each in cell.split()], np.float32)[:, None] for cell in cells]
    except ValueError:
        return list(cells)


def _spaced(cell: str) -> bool:
    """Whether a cell is a list of numbers with spaces between them, which letters are not."""
    return _NUMBERS.fullmatch(cell) is not None and len(cell.split()) > 1
