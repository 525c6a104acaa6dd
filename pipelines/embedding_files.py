"""Vectors as files: a Parquet table, or a `.npy` array with a table of what its rows are.

    vectors.parquet    record, start, end, file, status, embedding (a list of d_model float32)
    vectors.npy        (rows, d_model) float32, for numpy.load(..., mmap_mode="r")
    vectors.tsv        beside it: a header, and a line a row with the other columns

Both are written row group after row group, so that memory does not grow with them, and the same rows give the same
bytes.
"""

import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from mamba_seq.pipelines.compressed import Sink
from mamba_seq.pipelines.embed import Embedded
from mamba_seq.pipelines.errors import OutputError
from mamba_seq.pipelines.output import COPY_PIECE, check_outputs, open_outputs
from mamba_seq.pipelines.rows import MISSING, printable

Form = Literal["parquet", "npy"]
SUFFIXES: dict[str, Form] = {".parquet": "parquet", ".pq": "parquet", ".npy": "npy"}
COLUMNS = ("record", "start", "end", "file", "status")
ROW_GROUP = 4096


def targets_of(target: str, inputs: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the files that `-o` means, the vectors first, after a check that they can be written.

    Raises:
        OutputError: with what to do about it.
    """
    form = _form_of(target)
    if form == "parquet":
        _arrow()
        targets: tuple[str, ...] = (target,)
    else:
        targets = (target, target[: -len(".npy")] + ".tsv")
    check_outputs(targets, inputs)
    return targets


def write_embeddings(targets: tuple[str, ...], rows: Iterable[Embedded], width: int, about: Mapping[str, Any]) -> None:
    """Write vectors, whole or not at all.

    Args:
        targets: from `targets_of`.
        rows: with vectors (width,).
        width: numbers of a vector.
        about: how they were made; kept with a Parquet table.

    Raises:
        OutputError: when a target cannot be written.
    """
    with open_outputs(targets) as sinks:
        if _form_of(targets[0]) == "parquet":
            _write_parquet(sinks[0], rows, width, about)
        else:
            _write_npy(sinks[0], sinks[1], rows, width)


def _write_npy(sink: Sink, index: Sink, rows: Iterable[Embedded], width: int) -> None:
    index.write(("\t".join(COLUMNS) + "\n").encode())
    # the header comes first and says how many rows follow, which is known at the end
    with tempfile.TemporaryFile() as file:
        count = 0
        for row in rows:
            file.write(np.ascontiguousarray(row.vector, dtype="<f4").tobytes())
            index.write(_line(row))
            count += 1
        header = io.BytesIO()
        fields = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(header, fields)
        sink.write(header.getvalue())
        file.seek(0)
        while piece := file.read(COPY_PIECE):
            sink.write(piece)


def _line(row: Embedded) -> bytes:
    name, file = printable(row.record) or MISSING, printable(row.file)
    return f"{name}\t{row.start}\t{row.end}\t{file}\t{row.status}\n".encode("utf-8", "backslashreplace")


def _write_parquet(sink: Sink, rows: Iterable[Embedded], width: int, about: Mapping[str, Any]) -> None:
    arrow, parquet = _arrow()
    text, number = arrow.string(), arrow.int64()
    schema = arrow.schema(
        [
            ("record", text),
            ("start", number),
            ("end", number),
            ("file", text),
            ("status", text),
            ("embedding", arrow.list_(arrow.float32(), width)),
        ],
        metadata={"mamba_seq": json.dumps(dict(about))},
    )
    rows = iter(rows)
    file = arrow.PythonFile(_File(sink), mode="w")
    with parquet.ParquetWriter(file, schema, use_dictionary=["record", "file", "status"]) as writer:
        while group := list(itertools.islice(rows, ROW_GROUP)):
            records, starts, ends, files, statuses, vectors = zip(*group, strict=True)
            flat = arrow.array(np.concatenate(vectors), arrow.float32())
            columns = [
                arrow.array(map(_storable, records), text),
                arrow.array(starts, number),
                arrow.array(ends, number),
                arrow.array(map(_storable, files), text),
                arrow.array(statuses, text),
                arrow.FixedSizeListArray.from_arrays(flat, width),
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema), row_group_size=ROW_GROUP)


def _storable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


class _File(io.RawIOBase):
    """A sink as the file that pyarrow wants."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return self._sink.write(bytes(data))


def _form_of(target: str) -> Form:
    form = next((form for suffix, form in SUFFIXES.items() if target.lower().endswith(suffix)), None)
    if form is None or (form == "npy" and not target.endswith(".npy")):
        what = "standard output" if target == "-" else target
        raise OutputError(f"vectors cannot be written to {what}: name a file that ends in .parquet or .npy with -o")
    return form


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OutputError(
            "Parquet files are written by pyarrow, which is not installed; pip install 'mamba-seq[parquet]', or name "
            "a file that ends in .npy"
        ) from error
    return pyarrow, pyarrow.parquet
