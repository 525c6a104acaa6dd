"""Times of the selective scan on a GPU beside every peer that is installed, after a check of what is timed.

    PYTHONPATH=. python benchmarks/gpu_scan.py [table] [lengths] [--dry]

`table`: the shapes of the README, against mamba_ssm's CUDA kernel (its extension `selective_scan_cuda`, in its own
(B, D, L) layout). `lengths`: one sequence from 512 to 1,048,576 steps with 1,024 channels, against it, FlashAttention
(torch's SDPA restricted to it, causal, 16 heads of 64) and a scan in plain PyTorch (log-depth doubling over the pairs
(a, b), all states in memory, as long as it fits). bf16, N 16, softplus, bias, D and z on.

Rows are appended to results/scan_<gpu>.csv: medians, with minimum and maximum, in milliseconds; `ratio` is the peer's
time over ours in the same run. The floors are the least that a GPU of these figures could take: bytes of the inputs and
outputs over the bandwidth of a copy, N exponentials an element over the rate of a loop of them, both measured first.

Everything is done by `mamba_seq.pipelines.bench`, as in `mamba-seq bench`, which takes other shapes and more peers.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

from mamba_seq.pipelines.bench import check, measure
from mamba_seq.pipelines.bench.plan import LENGTHS, TABLE, Plan
from mamba_seq.pipelines.bench.table import COLUMNS, about, append_csv, shown
from mamba_seq.pipelines.errors import CheckError

RESULTS = Path(__file__).parent / "results"
PLANS = {
    "table": Plan(ops=("selective_scan",), shapes=tuple(TABLE), dtype=torch.bfloat16, peers=("mamba_ssm",)),
    "lengths": Plan(
        ops=("selective_scan",),
        shapes=tuple(LENGTHS),
        dtype=torch.bfloat16,
        directions=("forward",),
        peers=("mamba_ssm", "FlashAttention", "PyTorch scan"),
    ),
}


def main() -> int:
    """Check, then run what the arguments ask for; the exit code is 1 when the check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="table|lengths", help="default: both")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(PLANS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {' or '.join(PLANS)}")
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mamba_seq.pipelines").setLevel(logging.INFO)
    device = torch.device("cuda", torch.cuda.current_device())
    machine = about(device)
    rows = []
    try:
        with shown(COLUMNS) as show:
            for name in arguments.what or PLANS:
                for row in measure(PLANS[name], device, check(PLANS[name], device)):
                    show(row)
                    rows.append({**row, **machine})
    except CheckError as error:
        print(error)
        return 1
    if not arguments.dry:
        path = RESULTS / f"scan_{machine['gpu'].lower().removeprefix('nvidia ').replace(' ', '_')}.csv"
        append_csv(path, rows)
        print(f"{len(rows)} rows added to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
