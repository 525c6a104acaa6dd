"""A row for each peer of each case: as a table on a terminal, tab-separated elsewhere, and as a CSV file.

`ratio` is the peer's time over ours in the same run. Times are medians in milliseconds, with the least and the most
beside them. For the convolution N holds the number of taps.
"""

import contextlib
import csv
import datetime
import importlib.metadata
import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from mamba_seq.pipelines.bench.floors import Floors, device_name
from mamba_seq.pipelines.bench.ops import OPS, TAPS, Case
from mamba_seq.pipelines.bench.plan import DTYPES
from mamba_seq.pipelines.bench.timing import Times
from mamba_seq.pipelines.output import open_output

COLUMNS: Final[tuple[str, ...]] = (
    *("op", "direction", "B", "L", "D", "N", "dtype", "peer", "ours_ms", "peer_ms", "ratio"),
    *("byte_floor_ms", "exp_floor_ms", "peak_bytes", "ours_min", "ours_max", "peer_min", "peer_max"),
)
ON_GPU: Final = ("gpu", "driver", "torch", "triton", "date")
ON_CPU: Final = ("cpu", "threads", "torch", "numba", "date")
Row = dict[str, Any]


def make_row(
    case: Case, direction: str, peer: str, mine: Times, theirs: Times | None, floors: Floors, peak: int | None
) -> Row:
    """Make the row of a case; `peer` is empty where there is none."""
    op = OPS[case.op]
    of_peer = theirs or (None, None, None)
    return {
        "op": case.op,
        "direction": direction,
        "B": case.B,
        "L": case.L,
        "D": case.D,
        "N": TAPS if case.op == "causal_conv1d" else case.N,
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == case.dtype),
        "peer": peer,
        "ours_ms": _shown(mine.median),
        "peer_ms": _shown(of_peer[1]),
        "ratio": f"{theirs.median / mine.median:.2f}" if theirs else "",
        "byte_floor_ms": _shown(floors.byte_ms(op.bytes_moved(case, direction))),
        "exp_floor_ms": _shown(floors.exp_ms(op.exps(case, direction))),
        "peak_bytes": "" if peak is None else peak,
        "ours_min": _shown(mine.least),
        "ours_max": _shown(mine.most),
        "peer_min": _shown(of_peer[0]),
        "peer_max": _shown(of_peer[2]),
    }


def about(device: torch.device) -> Row:
    """Return the columns that say where and with what the times were taken."""
    date = datetime.date.today().isoformat()
    name = device_name(device)
    if device.type == "cuda":
        values: tuple[Any, ...] = (name, driver_version(), torch.__version__, _version("triton"), date)
        return dict(zip(ON_GPU, values, strict=True))
    return dict(zip(ON_CPU, (name, torch.get_num_threads(), torch.__version__, _version("numba"), date), strict=True))


def driver_version() -> str:
    """Ask nvidia-smi for the version of the driver; NA where there is none."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "NA"


def write_csv(target: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write rows to a file that appears whole or not at all, the header alone where there are none.

    Raises:
        OutputError: when it cannot be written.
    """
    with open_output(target) as sink:
        sink.write(_csv(rows, columns, header=True))


def append_csv(path: Path, rows: Sequence[Row]) -> None:
    """Add rows, at least one, to a file of the same columns, or begin it.

    Raises:
        ValueError: for other columns.
        OutputError: when it cannot be written.
    """
    before = path.read_bytes().replace(b"\r\n", b"\n") if path.exists() else b""
    if before:
        columns = next(csv.reader(io.StringIO(before.decode("utf-8"))))
        if columns != list(rows[0]):
            raise ValueError(f"{path} has other columns: {columns}, expected {list(rows[0])}")
    with open_output(str(path)) as sink:
        sink.write(before + _csv(rows, list(rows[0]), header=not before))


@contextlib.contextmanager
def shown(columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """Show rows on standard output: a table at the end on a terminal, else tab-separated lines as they come."""
    rows: list[Row] = []
    if sys.stdout.isatty():
        yield rows.append
        _print_table(rows)
        return

    def line(row: Row) -> None:
        if not rows:
            print("\t".join(columns))
        rows.append(row)
        print("\t".join(str(row[name]) or "NA" for name in columns), flush=True)

    yield line


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "B, L, D, N", "type", "ours, ms", "peer", "peer, ms", "peer / ours", "floors, ms", "peak, MB"):
        table.add_column(name, justify="left" if name in ("", "type", "peer") else "right", no_wrap=True)
    before = None
    for row in rows:
        size = ", ".join(f"{row[name]:,}" for name in ("B", "L", "D", "N"))
        floors = " / ".join(_three(row[name]) or "-" for name in ("byte_floor_ms", "exp_floor_ms"))
        peak = f"{row['peak_bytes'] / 1e6:,.0f}" if row["peak_bytes"] != "" else ""
        head = (f"{row['op']} {row['direction']}", size, row["dtype"], _three(row["ours_ms"]))
        same = head == before
        before = head
        ratio = f"{row['ratio']}x" if row["ratio"] else ""
        cells = (row["peer"], _three(row["peer_ms"]), ratio, "" if same else floors, "" if same else peak)
        table.add_row(*(("", "", "", "") if same else head), *cells)
    console = Console()
    console.print(table)
    console.print("floors: bytes / exponentials, measured on this machine", style="dim", highlight=False)


def _csv(rows: Sequence[Row], columns: Sequence[str], header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def _shown(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.4f}"


def _three(milliseconds: str) -> str:
    """Round to three digits, for a terminal."""
    if not milliseconds:
        return ""
    value = float(milliseconds)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "NA"
