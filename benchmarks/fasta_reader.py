"""FASTA and FASTQ to token ids on one core, beside Biopython's fastest parsers and the same encoding.

    python benchmarks/fasta_reader.py                  # files of 100 million bases
    python benchmarks/fasta_reader.py --bases 5e6 --dry

Cases, all of random bases:

    lines     one record in lines of 80
    line      one record on one line
    contigs   records of 5,000 bases in lines of 80
    reads     records of 150 bases, one line each
    fastq     the same with qualities
    gzip      `lines` compressed (level 6): what inflating alone takes is the bound

Megabytes are those of the text, headers, line ends and qualities included. Every case is first read by both and must
give the same tokens. Times are the processor's, so that what else runs on the core does not count; the best of five
runs counts, with the file in the page cache.
"""

import argparse
import csv
import datetime
import gzip
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from Bio.SeqIO.FastaIO import SimpleFastaParser
from Bio.SeqIO.QualityIO import FastqGeneralIterator

from mamba_seq import __version__
from mamba_seq.data_prep.alphabet import encode
from mamba_seq.data_prep.sequences import read_sequences
from mamba_seq.pipelines.info import cpu_name

RESULTS = Path(__file__).parent / "results" / "fasta_reader.csv"
COLUMNS = ["what", "megabytes", "records", "mb_per_s", "biopython_mb_per_s", "ratio", "inflate_mb_per_s"]
COLUMNS += ["cpu", "version", "date"]
CASES = ("lines", "line", "contigs", "reads", "fastq", "gzip")
RUNS = 5
Reader = Callable[[Path], Iterator[np.ndarray]]
BETWEEN = np.empty(0, np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=float, default=100e6, help="bases of each file")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be repeated")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    arguments = parser.parse_args()
    # one core for all that runs, libraries included
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for case in arguments.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, int(arguments.bases), Path(folder))
        print(",".join(map(str, row.values())), flush=True)
        if not arguments.dry:
            save(row)


def measure(case: str, bases: int, folder: Path) -> dict[str, object]:
    """Write the file of a case, check both readers on it, time them, and return a row of results."""
    text = make(case, bases)
    path = folder / "in"
    path.write_bytes(gzip.compress(text, 6) if case == "gzip" else text)
    ours, records = digest(read_ours(path))
    theirs, _ = digest(read_biopython(path))
    if ours != theirs:
        raise SystemExit(f"{case}: the two readers do not give the same tokens")
    megabytes = len(text) / 1e6
    best, peer = timed(read_ours, path), timed(read_biopython, path)
    inflate = ""
    if case == "gzip":
        packed = path.read_bytes()
        inflate = f"{megabytes / min(clock(lambda: zlib.decompress(packed, 31)) for _ in range(RUNS)):.0f}"
    return {
        "what": case,
        "megabytes": f"{megabytes:.0f}",
        "records": records,
        "mb_per_s": f"{megabytes / best:.0f}",
        "biopython_mb_per_s": f"{megabytes / peer:.0f}",
        "ratio": f"{peer / best:.2f}",
        "inflate_mb_per_s": inflate,
        "cpu": cpu_name(),
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def read_ours(path: Path) -> Iterator[np.ndarray]:
    """Blocks of tokens, an empty one between records."""
    for record in read_sequences(path):
        yield from record.blocks()
        yield BETWEEN


def read_biopython(path: Path) -> Iterator[np.ndarray]:
    """The same through Biopython."""
    with path.open("rb") as file:
        first = file.read(1)
    with gzip.open(path, "rt") if first == b"\x1f" else path.open() as lines:
        if first == b"@":
            sequences = (letters for _, letters, _ in FastqGeneralIterator(lines))
        else:
            sequences = (letters for _, letters in SimpleFastaParser(lines))
        for letters in sequences:
            yield encode(letters)
            yield BETWEEN


def make(case: str, bases: int) -> bytes:
    """The text of a case."""
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, bases // 12000 * 12000)]
    wrapped = np.insert(letters.reshape(-1, 80), 80, ord("\n"), axis=1).tobytes()
    if case in ("lines", "gzip"):
        return b">record\n" + wrapped
    if case == "line":
        return b">record\n" + letters.tobytes() + b"\n"
    if case == "contigs":
        size = 5000 // 80 * 81
        return b"".join(b">c%d\n%b" % (i, wrapped[at : at + size]) for i, at in enumerate(range(0, len(wrapped), size)))
    reads = [letters[at : at + 150].tobytes() for at in range(0, len(letters), 150)]
    if case == "reads":
        return b"".join(b">read_%d\n%b\n" % item for item in enumerate(reads))
    return b"".join(b"@read_%d\n%b\n+\n%b\n" % (i, read, b"I" * 150) for i, read in enumerate(reads))


def digest(blocks: Iterator[np.ndarray]) -> tuple[str, int]:
    """A digest of all tokens with the places where records end, and the number of records."""
    state, records = hashlib.blake2b(), 0
    for block in blocks:
        state.update(block.tobytes() or b"\xff")
        records += not len(block)
    return state.hexdigest(), records


def timed(reader: Reader, path: Path) -> float:
    def all_of_it() -> None:
        for _ in reader(path):
            pass

    return min(clock(all_of_it) for _ in range(RUNS))


def clock(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


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
