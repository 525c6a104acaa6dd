"""`mamba-seq classify` on a GPU: a FASTA of 100 million bases, every window, both strands, as a user runs it.

    PYTHONPATH=. python benchmarks/classify_gpu.py                       # windows of 65,536 and of 1,024, a minute
    PYTHONPATH=. python benchmarks/classify_gpu.py --case gzip --case reads
    PYTHONPATH=. python benchmarks/classify_gpu.py --bases 1e6 --dry     # also on a CPU, to see that it runs

The model has 12 blocks of width 128 (1.4 M parameters) with random weights, saved to a folder and named by `-m`. The
file has random bases in lines of 80: four records with four fifths of them, and 1,000 contigs with the rest. Cases:

    65536     windows of 65,536
    1024      windows of 1,024
    windows   the same, and `--windows` writes a line for each
    gzip      windows of 65,536 of the file compressed (level 6)
    reads     a tenth of the bases as records of 150 on one line each

First a small file of records of many lengths must give the same rows as with one window a batch, up to the rounding of
bfloat16, and the command run twice the same bytes; that also compiles the kernels. Counted is the whole command in a
process that has them: loading the model, reading, and writing the table. Forward passes alone, on one batch that lies
on the GPU, say what there was to gain: `forward_seconds` is what the windows take at that rate. `busy_percent` is
nvidia-smi's utilisation, the mean from the first sample above 0 to the last.
"""

import argparse
import csv
import gzip
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from mamba_seq import MambaConfig, ModelConfig
from mamba_seq.heads import SequenceClassifier
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.bench.table import about, append_csv
from mamba_seq.pipelines.cli import main as command
from mamba_seq.pipelines.evidence import default_batch_tokens
from mamba_seq.pipelines.info import cpu_name
from mamba_seq.pipelines.runtime import mixed_precision

RESULTS = Path(__file__).parent / "results"
CONTEXT = 65_536
CASES = ("65536", "1024", "windows", "gzip", "reads")
LINE, READ, LONG_RECORDS, CONTIGS = 80, 150, 4, 1000
TOLERANCE = 0.02
"""Most by which a probability may differ between batches, for the rounding of bfloat16 in 12 blocks."""
Row = dict[str, object]


def main(arguments: list[str] | None = None) -> int:
    """Check, measure, print and save; the exit code is 1 when the check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=float, default=100e6, help="bases of the file")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be repeated")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--dry", action="store_true", help="save nothing")
    asked = parser.parse_args(arguments)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        save_model(folder / "model", asked.blocks)
        problem = check(folder)
        if problem:
            print(problem)
            return 1
        rows = []
        for case in asked.case or CASES[:2]:
            rows.append({**measure(case, int(asked.bases), folder, device), **about(device)})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if not asked.dry:
        path = RESULTS / f"classify_{name.lower().removeprefix('nvidia ').replace(' ', '_')}.csv"
        append_csv(path, rows)
        print(f"{len(rows)} rows added to {path}")
    return 0


def save_model(folder: Path, blocks: int) -> None:
    """Save a classifier with random weights, whose classes depend on what it reads."""
    torch.manual_seed(0)
    config = ModelConfig(
        task="sequence-classification",
        backbone=MambaConfig(d_model=128, n_layer=blocks),
        vocab_size=5,
        alphabet="dna",
        labels=[f"class_{i}" for i in range(5)],
        context=CONTEXT,
    )
    model = SequenceClassifier(config)
    torch.nn.init.normal_(model.head.weight, std=0.2)
    model.save_pretrained(folder)


def check(folder: Path) -> str:
    """Return what is wrong with the rows of a small file, or nothing."""
    rng = np.random.default_rng(1)
    small = folder / "small.fa"
    with small.open("wb") as file:
        for i, length in enumerate((1, 63, 1000, 2049, 150, 151, 70_000, 140_001)):
            at = 0.1 + 0.1 * i
            letters = rng.choice(
                np.frombuffer(b"ACGT", np.uint8), length, p=[at / 2, 0.5 - at / 2, 0.5 - at / 2, at / 2]
            )
            file.write(b">r%d\n%b\n" % (i, letters.tobytes()))
    for context in ("65536", "1024"):
        options = ["--context", context, "--max-windows", "0"]
        first, again = classify(small, folder, *options), classify(small, folder, *options)
        if first.read_bytes() != again.read_bytes():
            return f"windows of {context}: the same file gave other bytes"
        alone = classify(small, folder, *options, "--batch-tokens", "1")
        ours, theirs = read_table(first), read_table(alone)
        if [row[:2] + row[4:5] for row in ours] != [row[:2] + row[4:5] for row in theirs]:
            return f"windows of {context}: batches of one window give other records"
        pairs = zip(ours, theirs, strict=True)
        off = max(abs(float(a) - float(b)) for x, y in pairs for a, b in zip(x[5:], y[5:], strict=True))
        spread = float(np.ptp([float(row[5]) for row in ours]))
        print(f"windows of {context}: off by {off:.4f} of batches of one window; records differ by {spread:.2f}")
        if off > TOLERANCE:
            return f"expected at most {TOLERANCE}"
    return ""


def read_table(path: Path) -> list[list[str]]:
    """Return the fields of a table's rows."""
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


def classify(source: Path, folder: Path, *options: str) -> Path:
    """Run the command and return the table that it wrote."""
    output = folder / f"out_{time.monotonic_ns()}.tsv"
    status = command(["classify", str(source), "-m", str(folder / "model"), "-o", str(output), *options])
    if status:
        raise SystemExit(f"classify failed with exit code {status}")
    return output


def measure(case: str, bases: int, folder: Path, device: torch.device) -> Row:
    """Make the file of a case, classify it, and return a row of results."""
    context = 1024 if case in ("1024", "windows", "reads") else CONTEXT
    source, records, bases = make(case, bases, folder)
    options = ["--context", str(context), "--max-windows", "0"]
    if case == "windows":
        options += ["--windows", str(folder / "windows.bed")]
    forward = forward_rate(folder, READ if case == "reads" else context, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with Utilisation() as busy:
        started, processor = time.perf_counter(), time.process_time()
        output = classify(source, folder, *options)
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    with output.open() as table:
        rows = sum(1 for _ in table) - 1
    if rows != records:
        raise SystemExit(f"{case}: {records} records went in and {rows} rows came out")
    return {
        "case": case,
        "bases": bases,
        "records": records,
        "seconds": f"{seconds:.2f}",
        "bases_per_s": f"{bases / seconds:.4g}",
        "forward_seconds": f"{2 * bases / forward:.2f}",
        "processor_seconds": f"{processor:.2f}",
        "busy_percent": busy.percent,
        "peak_gb": f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if device.type == "cuda" else "",
    }


def make(case: str, bases: int, folder: Path) -> tuple[Path, int, int]:
    """Write the file of a case; return it with the numbers of its records and bases."""
    source = folder / f"{case}.fa"
    if case == "reads":
        records = bases // 10 // READ
        letters = random_letters(records * READ).reshape(records, READ)
        with source.open("wb") as file:
            file.writelines(b">read_%d\n%b\n" % (i, read.tobytes()) for i, read in enumerate(letters))
        return source, records, records * READ
    long = bases * 4 // 5 // LONG_RECORDS // LINE * LINE
    short = max(LINE, bases // 5 // CONTIGS // LINE * LINE)
    lengths = [long] * LONG_RECORDS + [short] * CONTIGS
    lines = np.full((sum(lengths) // LINE, LINE + 1), ord("\n"), dtype=np.uint8)
    lines[:, :LINE] = random_letters(sum(lengths)).reshape(-1, LINE)
    with gzip.open(source, "wb", 6) if case == "gzip" else source.open("wb") as file:
        at = 0
        for i, length in enumerate(lengths):
            file.write(b">record_%d\n" % i)
            file.write(lines[at : at + length // LINE].tobytes())
            at += length // LINE
    return source, len(lengths), sum(lengths)


def random_letters(n: int) -> np.ndarray:
    """Return random bases (n,) as ASCII."""
    return np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, n, dtype=np.uint8)]


def forward_rate(folder: Path, length: int, device: torch.device) -> float:
    """Return the tokens a second of forward passes over one batch of windows, with nothing else to do."""
    model = from_pretrained(folder / "model", device)
    tokens = torch.randint(4, (max(1, default_batch_tokens(model, device) // length), length), device=device)
    with torch.inference_mode(), mixed_precision(device):
        # the first compiles, the second tells how many make a second or two; those do not wait for each other
        for _ in range(2):
            started = time.perf_counter()
            model(tokens)
            wait(device)
        passes = max(2, int(1.5 / (time.perf_counter() - started)))
        started = time.perf_counter()
        for _ in range(passes):
            model(tokens)
        wait(device)
    return passes * tokens.numel() / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Utilisation:
    """Asks nvidia-smi, ten times a second, how busy the GPU is."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Utilisation":
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100", "-i", "0"]
        try:
            self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        except OSError:
            return self
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                self._samples.append(int(line))

    @property
    def percent(self) -> str:
        """The mean from the first sample above 0 to the last; nothing when there is none."""
        busy = [i for i, sample in enumerate(self._samples) if sample]
        return f"{np.mean(self._samples[busy[0] : busy[-1] + 1]):.0f}" if busy else ""


if __name__ == "__main__":
    raise SystemExit(main())
