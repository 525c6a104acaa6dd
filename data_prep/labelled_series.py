"""Series of numbers: columns of a table, a row a series or a row a position, and .npy files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.errors import BadRecord, UnreadableFile
from mamba_seq.data_prep.labelled import Example, Labelled, LabelledConfig, split_named

if TYPE_CHECKING:
    from mamba_seq.data_prep.labelled_tables import Table

Series = NDArray[np.float32]


def numbers_of(cells: list[str], where: str, names: list[str]) -> Series:
    """Read the numbers of a row (F,).

    Raises:
        BadRecord: A cell is no finite number; with its column.
    """
    try:
        values = np.array(cells, dtype=np.float32)
        if np.isfinite(values).all():
            return values
    except ValueError:
        pass
    for cell, name in zip(cells, names, strict=True):
        if not _is_number(cell):
            raise BadRecord(f"{where}, column {name!r}: {cell!r} came, a finite number was expected")
    raise AssertionError("a number that float32 cannot hold")


def long_series(table: "Table", config: LabelledConfig, labels: list[int]) -> Labelled:
    """Gather the rows of each series (L, F), in their order; a label that changes within one is a label a position."""
    assert config.values is not None
    assert config.series is not None
    columns = [table.find(name, (), "values") for name in config.values]
    by = table.find(config.series, (), "series")
    split = table.find(config.split, ("split",), "split")
    group = table.find(config.group, ("group",), "group")
    assert by is not None
    rows: dict[str, list[tuple[int, list[str]]]] = {}
    for line, row in table.rows:
        rows.setdefault(row[by], []).append((line, row))
    per_position = any(len({tuple(row[c] for c in labels) for _, row in each}) > 1 for each in rows.values())
    if per_position and len(labels) > 1:
        raise BadRecord(f"{table.path} has {len(labels)} label columns that change within a series; name one")
    examples = []
    for name, each in rows.items():
        line, first = each[0]
        values = np.stack(
            [numbers_of([row[c] for c in columns if c is not None], table.where(n), config.values) for n, row in each]
        )
        label: tuple[str, ...] | None = tuple(first[c] for c in labels)
        if per_position:
            label = tuple(row[labels[0]] for _, row in each)
        splits = {row[split] for _, row in each} if split is not None else {""}
        if len(splits) > 1:
            raise BadRecord(
                f"{table.path}: series {name!r} is in the splits {' and '.join(sorted(splits))}; give it one"
            )
        found = split_named(splits.pop(), table.where(line))
        examples.append(
            Example(
                id=name,
                sequence=values,
                # a position may lack its label where others have one
                label=label if label and (any(label) if per_position else all(label)) else None,
                split=found,
                group=first[group] if group is not None else "",
                where=table.where(line),
            )
        )
    return Labelled("a table of series", examples, [table.columns[c] for c in labels], per_position)


def read_npy(path: Path, config: LabelledConfig) -> Labelled:
    """Read series (rows, L) or (rows, L, F) of numbers or integer tokens (rows, L); labels from `labels_file`.

    The labels are a table of row numbers from 0 (id, label), or another .npy: (rows,), (rows, targets), or, for a label
    a position, (rows, L).
    """
    array = load_npy(path)
    if array.ndim not in (2, 3):
        raise BadRecord(f"{path} is an array {array.shape}, expected (rows, L) or (rows, L, F)")
    if array.dtype.kind not in "biuf":
        raise BadRecord(f"{path} is an array of {array.dtype}, numbers were expected")
    if array.dtype.kind in "iu" and array.ndim == 2:
        sequences = [row.astype(np.int64) for row in array]
    else:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            at = np.argwhere(~np.isfinite(array))[0].tolist()
            raise BadRecord(f"{path} has {array[tuple(at)]} at {at}, finite numbers were expected")
        sequences = list(array if array.ndim == 3 else array[..., None])
    plain = [Example(str(i), row, where=f"{path}, row {i}") for i, row in enumerate(sequences)]
    found = Labelled("an array of series", plain)
    if config.labels_file is None:
        return found
    labels_path = Path(config.labels_file)
    if labels_path.suffix != ".npy":
        from mamba_seq.data_prep.labelled_join import join_labels

        return join_labels(found, labels_path, config)
    labels = load_npy(labels_path)
    if len(labels) != len(array) or labels.ndim > 2:
        raise BadRecord(
            f"{labels_path} is an array {labels.shape}, expected ({len(array)}, ...): a row for each series"
        )
    found.per_position = labels.ndim == 2 and labels.shape[1] == array.shape[1]
    texts = [tuple(map(str, np.atleast_1d(row).tolist())) for row in labels]
    found.examples = [
        Example(each.id, each.sequence, text, where=each.where) for each, text in zip(plain, texts, strict=True)
    ]
    if labels.ndim == 2 and not found.per_position:
        found.label_names = [f"target{i}" for i in range(labels.shape[1])]
    return found


def load_npy(path: Path) -> NDArray[np.generic]:
    """Read a .npy file of numbers or text; nothing is unpickled."""
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path} cannot be read as .npy: {error}") from error
    return array


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(np.float32(cell)))
    except ValueError:
        return False
