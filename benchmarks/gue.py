"""Fine-tuning on tasks of GUE (arXiv 2306.15006), from random and from pretrained weights.

    PYTHONPATH=. python benchmarks/gue.py GUE -o OUT [--seeds 0 1 2] [--rates 3e-4 1e-3] [--deadline 1500]

GUE has a folder a task with train.csv, dev.csv and test.csv (or .csv.gz). Both starts have the same blocks, epochs and
choice of rates. The first seed runs every setting; the one of the least validation loss, of each task and start, runs
the other seeds. The test split decides nothing. The same command goes on with runs that were ended at the deadline;
until then they are in no mean.

With `--examples N` every seed draws N training examples and half as many for validation, the same for both starts, and
tests on all of the test split: what pretraining is worth to who has few labels. They are in OUT/data/SEED/TASK.

OUT/runs/TASK--START--RATE--BACKBONE--SEED, OUT/gue.csv (a row a finished run), OUT/gue_curves.csv, OUT/rows.md.
"""

import argparse
import csv
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from side_by_side import CLI, Job, run_jobs, write_table

STARTS = ("scratch", "pretrained")
TASKS = {  # epochs, sequences a batch, strand: promoters have a direction, binding sites none
    "tf_0": (8, 256, "both"),
    "prom_core_notata": (6, 256, "forward"),
    "mouse_0": (10, 128, "both"),
}
OTHER_TASKS = (8, 128, "forward")
COMMON = ("--optim.min_lr=1e-6", "--monitor=loss", "--dropout=0.1", "--ema=0.99", "--log_every=20")
PUBLISHED = {"tf_0": 71.99, "prom_core_notata": 68.04}
"""DNABERT-2's MCC x 100 on the test split, arXiv 2306.15006."""
RESAMPLES = 2000


class Setting(NamedTuple):
    """What is chosen on the validation split."""

    rate: str
    backbone: str = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, and write the tables."""
    asked = parse(arguments)
    deadline = time.monotonic() + asked.deadline
    (asked.output / "runs").mkdir(parents=True, exist_ok=True)
    (asked.output / "scratch.yaml").write_text(
        "kind: finetune\nname: gue-scratch\nmodel: {d_model: 128, n_layer: 12}\n"
    )
    first, *others = asked.seeds
    go(asked, {key: settings(asked, key[1]) for key in arms(asked)}, [first], deadline)
    # a setting that is not finished was not compared, so nothing is chosen without it
    chosen = {key: [choose(asked, *key, first)] for key in arms(asked) if all_finished(asked, *key, first)}
    go(asked, chosen, others, deadline)
    rows, curves = gather(asked.output / "runs")
    write_table(asked.output / "gue.csv", rows)
    write_table(asked.output / "gue_curves.csv", curves)
    table = "\n".join(summary(rows, {key: each[0] for key, each in chosen.items()}, asked.output / "runs"))
    (asked.output / "rows.md").write_text(table + "\n")
    print(table)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a folder a task")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="mamba-dna-lm.genomes", help="where the pretrained weights come from")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", default=["3e-4", "1e-3", "3e-3"])
    parser.add_argument("--backbone-rates", nargs="+", default=["1"], help="of the pretrained start: see backbone_rate")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="last: options of every run")
    parser.add_argument("--examples", type=int, help="training examples that a seed draws; all by default")
    parser.add_argument("--at-once", type=int, default=6, help="processes on each GPU")
    parser.add_argument("--devices", nargs="+", default=[], help="numbers of GPUs")
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds after which what runs is ended")
    return parser.parse_args(arguments)


def arms(asked: argparse.Namespace) -> list[tuple[str, str]]:
    """Return task and start of every arm."""
    return [(task, start) for task in asked.tasks for start in STARTS]


def settings(asked: argparse.Namespace, start: str) -> list[Setting]:
    """Return the settings that a start chooses from."""
    backbones = asked.backbone_rates if start == "pretrained" else ["1"]
    return [Setting(rate, backbone) for rate in asked.rates for backbone in backbones]


def run_name(task: str, start: str, setting: Setting, seed: int) -> str:
    """Return the name of a run."""
    return "--".join((task, start, setting.rate, setting.backbone, str(seed)))


def go(
    asked: argparse.Namespace, wanted: dict[tuple[str, str], list[Setting]], seeds: Sequence[int], deadline: float
) -> None:
    """Run the settings of each arm with some seeds, those that are finished aside."""
    jobs = []
    for seed in seeds:
        for (task, start), each in wanted.items():
            for setting in each:
                run = asked.output / "runs" / run_name(task, start, setting, seed)
                if not record_of(run).is_file():
                    jobs.append(Job(run.name, [*CLI, *finetune(asked, task, start, setting, seed), "-o", str(run)]))
    run_jobs(jobs, asked.output / "logs", deadline, asked.at_once, asked.devices)


def finetune(asked: argparse.Namespace, task: str, start: str, setting: Setting, seed: int) -> list[str]:
    """Return the arguments of a run."""
    epochs, batch, strand = TASKS.get(task, OTHER_TASKS)
    begin = ["-m", asked.model, f"--backbone_rate={setting.backbone}"]
    if start == "scratch":
        begin = ["--from-scratch", str(asked.output / "scratch.yaml")]
    options = [f"--epochs={epochs}", f"--patience={epochs}", f"--batch_size={batch}", f"--strand={strand}"]
    return [
        *("finetune", str(data_of(asked, task, seed)), *begin, *options, *COMMON),
        *(f"--optim.lr={setting.rate}", f"--seed={seed}", *asked.options),
    ]


def data_of(asked: argparse.Namespace, task: str, seed: int) -> Path:
    """Return the folder of a task's splits; with a number of examples, of those that the seed draws."""
    whole, drawn = asked.data / task, asked.output / "data" / str(seed) / task
    if asked.examples is None:
        return Path(whole)
    drawn.mkdir(parents=True, exist_ok=True)
    for split, most in (("train", asked.examples), ("dev", asked.examples // 2), ("test", None)):
        (path,) = whole.glob(f"{split}.csv*")
        table = pd.read_csv(path, dtype=str)
        if most is not None and most < len(table):
            table = table.sample(most, random_state=seed)
        table.to_csv(drawn / f"{split}.csv", index=False)
    return drawn


def record_of(run: Path) -> Path:
    """Return the file that a finished run has."""
    return run / "model" / "record.json"


def all_finished(asked: argparse.Namespace, task: str, start: str, seed: int) -> bool:
    """Tell whether every setting of an arm is finished."""
    runs = asked.output / "runs"
    return all(record_of(runs / run_name(task, start, each, seed)).is_file() for each in settings(asked, start))


def choose(asked: argparse.Namespace, task: str, start: str, seed: int) -> Setting:
    """Return the setting of the least validation loss."""
    runs = asked.output / "runs"
    return min(settings(asked, start), key=lambda each: best(runs / run_name(task, start, each, seed))["val_loss"])


def best(run: Path) -> dict[str, float]:
    """Return the validation of the least loss, whose weights were kept, and its step."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for row in read(run / "metrics.csv"):
        if row["name"].startswith("val_"):
            found[int(row["step"])][row["name"]] = float(row["value"])
    step = min(found, key=lambda each: found[each]["val_loss"])
    return {"step": step, **found[step]}


def gather(runs: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row a finished run, and the validation of each."""
    rows, curves = [], []
    for run in sorted(each for each in runs.iterdir() if record_of(each).is_file()):
        record = json.loads(record_of(run).read_text())
        task, start, rate, backbone, seed = run.name.split("--")
        kept = best(run)
        scores = {f"test_{name}": round(each["value"], 6) for name, each in record["results"].items()}
        whole = {name: record[name] for name in ("tests", "parameters", "hardware", "precision", "versions", "date")}
        rows.append(
            {
                **{"task": task, "start": start, "lr": rate, "backbone_rate": backbone, "seed": seed},
                **{"steps": record["steps"], "best_step": kept["step"], "minutes": round(record["minutes"], 2)},
                **{"validation_loss": kept["val_loss"], "validation_mcc": kept["val_mcc"], **scores, **whole},
            }
        )
        curves += [{"run": run.name, **row} for row in read(run / "metrics.csv") if row["name"].startswith("val_")]
    return rows, curves


def summary(rows: list[dict[str, Any]], chosen: dict[tuple[str, str], Setting], runs: Path) -> list[str]:
    """Return the table: MCC x 100 of the test split, mean and deviation of the seeds, and the gain of pretraining."""
    lines = ["| task | from scratch | rate | pretrained | rate | gain | 95 % interval | DNABERT-2 |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for task in dict.fromkeys(task for task, _ in chosen):
        cells, groups = [], []
        for start in STARTS:
            setting = chosen.get((task, start))
            found = [
                row
                for row in rows
                if (row["task"], row["start"]) == (task, start) and (row["lr"], row["backbone_rate"]) == setting
            ]
            groups.append(found)
            tests = [100 * row["test_mcc"] for row in found]
            spread = f" ± {statistics.stdev(tests):.2f}" if len(tests) > 1 else ""
            cells += [f"{statistics.mean(tests):.2f}{spread} ({len(tests)})" if tests else "not measured"]
            cells += [
                "" if setting is None else setting.rate + (f" x {setting.backbone}" if start != "scratch" else "")
            ]
        gain = ["", ""]
        if all(groups):
            names = [
                [run_name(task, row["start"], chosen[task, row["start"]], row["seed"]) for row in g] for g in groups
            ]
            each = [[read(runs / name / "model" / "predictions.tsv", "\t") for name in group] for group in names]
            mean, low, high = (100 * value for value in difference(*each))
            gain = [f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"]
        lines.append(f"| {task} | {' | '.join([*cells, *gain])} | {PUBLISHED.get(task, '')} |")
    return lines


def difference(ours: list[list[dict[str, str]]], theirs: list[list[dict[str, str]]]) -> tuple[float, float, float]:
    """Return by how much the mean MCC of `theirs` is above that of `ours`, with an interval of the test examples.

    Every argument has the prediction tables of some runs of one test split. Examples are drawn again for all runs
    together, so that those which are hard for every model add nothing to the interval.
    """
    truth = [row["truth"] for row in ours[0]]
    names = {*truth, *(row["prediction"] for run in (*ours, *theirs) for row in run)}
    labels = {label: number for number, label in enumerate(sorted(names))}
    expected = np.array([labels[each] for each in truth])
    said = [np.array([[labels[row["prediction"]] for row in run] for run in group]) for group in (ours, theirs)]
    rng = np.random.default_rng(0)
    drawn = [np.arange(len(truth)), *rng.integers(len(truth), size=(RESAMPLES, len(truth)))]
    gains = [mean_mcc(expected[at], said[1][:, at]) - mean_mcc(expected[at], said[0][:, at]) for at in drawn]
    low, high = np.percentile(gains[1:], [2.5, 97.5])
    return gains[0], float(low), float(high)


def mean_mcc(truth: np.ndarray, said: np.ndarray) -> float:
    """Return the mean Matthews correlation of predictions (runs, n) of truths (n,); 0 where all are alike.

    That of any number of classes is Gorodkin's R_K (Comput. Biol. Chem. 28, 367, 2004).
    """
    n, classes = len(truth), 1 + max(int(truth.max()), int(said.max()))
    true = np.bincount(truth, minlength=classes) / n
    predicted = np.array([np.bincount(run, minlength=classes) for run in said]) / n
    above = (said == truth).mean(axis=1) - predicted @ true
    below = np.sqrt((1 - (predicted**2).sum(axis=1)) * (1 - (true**2).sum()))
    return float(np.mean(np.divide(above, below, out=np.zeros(len(said)), where=below > 1e-12)))


def read(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """Read a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


if __name__ == "__main__":
    sys.exit(main())
