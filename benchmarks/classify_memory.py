"""Time and peak memory of `mamba-seq classify` on large files, on the CPU.

    python benchmarks/classify_memory.py                       # 500 million bases a case, takes a while
    python benchmarks/classify_memory.py --bases 20e6 --dry    # a quick look, nothing saved

Cases, all of random bases:

    records   records of 100,000 bases, one window of 1,000 bases each
    record    one record, 32 windows
    line      the same on one line, gzip-compressed
    reads     records of 100 bases that are all too_short: what is left is reading, names and rows

What goes through the model is kept small on purpose: these rows show how memory depends on the size of the input.
"""

import argparse
import csv
import datetime
import gzip
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mamba_seq import __version__
from mamba_seq.pipelines.info import cpu_name

RESULTS = Path(__file__).parent / "results" / "classify_cpu.csv"
COLUMNS = ["what", "bases", "records", "seconds", "peak_mb", "threads", "model", "cpu", "version", "date"]
CASES: dict[str, tuple[int | None, list[str]]] = {
    "records": (100_000, ["--context", "1000", "--max-windows", "1"]),
    "record": (None, []),
    "line": (None, []),
    "reads": (100, ["--min-length", "1000"]),
}
PIECE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="mamba-dna.bacteria11", help="zoo name or folder")
    parser.add_argument("--bases", type=float, default=500e6, help="bases of each file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be repeated")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    arguments = parser.parse_args()
    for case in arguments.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, int(arguments.bases), arguments.model, arguments.threads, Path(folder))
        print(",".join(map(str, row.values())), flush=True)
        if not arguments.dry:
            save(row)


def measure(case: str, bases: int, model: str, threads: int, folder: Path) -> dict[str, object]:
    """Generate the file of a case, classify it, and return a row of results."""
    record, options = CASES[case]
    source = folder / "in.fa"
    with gzip.open(source, "wb", 1) if case == "line" else source.open("wb") as file:
        records = write_fasta(file, bases, record or bases, line=bases if case == "line" else 80)
    command = [sys.executable, "-c", "import sys; from mamba_seq.pipelines.cli import main; sys.exit(main())"]
    command += [
        "classify",
        str(source),
        "-m",
        model,
        "-o",
        str(folder / "out.tsv"),
        "--threads",
        str(threads),
        *options,
    ]
    started = time.monotonic()
    process = subprocess.Popen(command)
    # wait4 gives the peak of this child alone; RUSAGE_CHILDREN would give the largest of all so far
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    with (folder / "out.tsv").open() as table:
        rows = sum(1 for _ in table) - 1
    if rows != records:
        raise SystemExit(f"{records} records went in and {rows} rows came out")
    return {
        "what": case,
        "bases": bases,
        "records": records,
        "seconds": f"{seconds:.1f}",
        "peak_mb": f"{usage.ru_maxrss * 1024 / 1e6:.0f}",
        "threads": threads,
        "model": Path(model).name,
        "cpu": cpu_name(),
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def write_fasta(file: BinaryIO | gzip.GzipFile, bases: int, record: int, line: int) -> int:
    """Write `bases` random bases in records and lines of these lengths; return the number of records."""
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(0).integers(0, 4, 2 * PIECE)]
    records = 0
    for start in range(0, bases, record):
        file.write(f">record_{records}\n".encode())
        left = min(record, bases - start)
        while left:
            offset = (start + left) * 7919 % PIECE
            piece = letters[offset : offset + min(left, PIECE)]
            left -= len(piece)
            if len(piece) > line:
                whole = len(piece) // line * line
                lines = np.insert(piece[:whole].reshape(-1, line), line, ord("\n"), axis=1)
                file.write(lines.tobytes() + piece[whole:].tobytes())
                file.write(b"\n" if whole < len(piece) else b"")
            else:
                file.write(piece.tobytes() + (b"\n" if line < bases else b""))
        file.write(b"\n" if line >= bases else b"")
        records += 1
    return records


def save(row: dict[str, object]) -> None:
    """Append a row to the saved results."""
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
