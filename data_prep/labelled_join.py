"""Labels that stand in a table of their own, joined to sequences by id; what has no partner is reported."""

import dataclasses
from pathlib import Path

from mamba_seq.data_prep.errors import BadRecord
from mamba_seq.data_prep.labelled import Labelled, LabelledConfig, split_named
from mamba_seq.data_prep.labelled_tables import ID_NAMES, LABEL_NAMES, Table, read_table


def join_labels(data: Labelled, path: Path, config: LabelledConfig) -> Labelled:
    """Give each example the label, split and group that a table has for its id.

    Raises:
        BadRecord: An id stands twice, among the sequences or with two labels in the table; or no id has a partner.
    """
    table = read_table(path)
    ids = table.find(config.id, ID_NAMES, "id")
    labels = [table.find(name, (), "label") for name in config.label or []]
    if not labels:
        labels = [table.find(None, LABEL_NAMES, "label")]
    if ids is None or None in labels:
        # a table without a header: `id label [split] [group]`
        table = Table(path, [*_positional(table)], _with_head(table), True)
        ids, labels = 0, [1]
    columns = [column for column in labels if column is not None]
    split, group = table.find(config.split, ("split",), "split"), table.find(config.group, ("group",), "group")
    rows: dict[str, tuple[int, list[str]]] = {}
    for line, row in table.rows:
        name = row[ids].split()[0] if row[ids] else ""
        if name in rows and [rows[name][1][c] for c in columns] != [row[c] for c in columns]:
            raise BadRecord(
                f"{table.where(line)}: id {name!r} has another label than in line {rows[name][0]}; keep one of the two"
            )
        rows.setdefault(name, (line, row))
    seen: dict[str, str] = {}
    joined, without = [], []
    for each in data.examples:
        if each.id in seen:
            raise BadRecord(f"{each.where}: id {each.id!r} was there before ({seen[each.id]}); give each its own")
        seen[each.id] = each.where
        if each.id not in rows:
            without.append(each.id)
            continue
        line, row = rows[each.id]
        joined.append(
            dataclasses.replace(
                each,
                label=tuple(row[c] for c in columns) if all(row[c] for c in columns) else None,
                split=split_named(row[split], table.where(line)) if split is not None else each.split,
                group=row[group] if group is not None else each.group,
            )
        )
    unused = [name for name in rows if name not in seen]
    if not joined:
        raise BadRecord(
            f"no id of {path} ({next(iter(rows), '')!r} and so on) is one of the {len(seen)} sequences "
            f"({next(iter(seen), '')!r} and so on); an id is the header up to its first white space"
        )
    warnings = list(data.warnings)
    for names, what in ((without, f"sequences have no label in {path}"), (unused, "labels have no sequence")):
        if names:
            warnings.append(f"{len(names)} {what} and are left out, such as {names[0]!r}")
    names = [table.columns[c] for c in columns]
    return dataclasses.replace(data, examples=joined, label_names=names, warnings=warnings)


def _positional(table: Table) -> list[str]:
    width = len(table.columns)
    if width < 2:
        raise BadRecord(
            f"{table.path} has the columns {', '.join(map(repr, table.columns))}; id and label were expected, "
            "separated "
            "by tabs or commas"
        )
    return ["id", "label", "split", "group", *(f"column{i}" for i in range(4, width))][:width]


def _with_head(table: Table) -> list[tuple[int, list[str]]]:
    return table.rows if table.headless else [(1, table.columns), *table.rows]
