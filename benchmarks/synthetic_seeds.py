"""Several seeds of a synthetic task side by side, and their accuracy by length.

    PYTHONPATH=. python benchmarks/synthetic_seeds.py induction-heads -o OUT [--seeds 0 1 2 3] [--deadline 900]
                                                      [--options --model.dt_min=1e-8]

The same command goes on with runs that were ended at the deadline. OUT/runs/SEED, OUT/RECIPE.csv (a row a finished run
and length), OUT/rows.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import CLI, Job, run_jobs, write_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="induction-heads, selective-copying, or a YAML file of kind synthetic")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], help="of weights and data both")
    parser.add_argument("--at-once", type=int, default=4, help="processes on each GPU")
    parser.add_argument("--devices", nargs="+", default=[], help="numbers of GPUs")
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds after which what runs is ended")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="last: options of every run")
    asked = parser.parse_args(arguments)
    deadline = time.monotonic() + asked.deadline
    runs = asked.output / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    jobs = []
    for seed in asked.seeds:
        options = [f"--seed={seed}", f"--data.seed={seed}", *asked.options]
        if not (runs / str(seed) / "model" / "record.json").is_file():
            jobs.append(Job(str(seed), [*CLI, "train", asked.recipe, "-o", str(runs / str(seed)), *options]))
    run_jobs(jobs, asked.output / "logs", deadline, asked.at_once, asked.devices)
    records = [json.loads(file.read_text()) for file in sorted(runs.glob("*/model/record.json"))]
    write_table(asked.output / f"{Path(asked.recipe).stem}.csv", gather(records))
    text = "\n".join(summary(records))
    (asked.output / "rows.md").write_text(text + "\n")
    print(text)
    return 0


def gather(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a run and length."""
    rows = []
    for record in records:
        optim, model = record["optim"], record["model"]
        settings = {
            **{
                "run": f"seed_{record['seed']}",
                "seed": record["seed"],
                "trained_at": record["context"],
                "batch": record["batch_size"],
                "lr": optim["lr"],
            },
            **{"dt_min": model["dt_min"], "dt_max": model["dt_max"], "label_smoothing": record["label_smoothing"]},
            "stages": " ".join(f"{stage['length']}:{stage['steps']}" for stage in record["stages"]),
            **{"steps": record["steps"], "minutes": round(record["minutes"], 2)},
        }
        machine = {name: record[name] for name in ("hardware", "precision", "versions", "date")}
        rows += [{**settings, **result, **machine} for result in record["results"]]
    return rows


def summary(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of the accuracies in percent, a line a run."""
    if not records:
        return ["no run is finished"]
    lengths = sorted({result["length"] for record in records for result in record["results"]})
    lines = ["| seed | steps | minutes | " + " | ".join(f"{length:,}" for length in lengths) + " |"]
    lines.append("|---:|" + "---:|" * (len(lengths) + 2))
    for record in records:
        found = {result["length"]: result["accuracy"] for result in record["results"]}
        cells = [f"{100 * found[length]:.2f}" if length in found else "" for length in lengths]
        lines.append(f"| {record['seed']} | {record['steps']:,} | {record['minutes']:.1f} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
