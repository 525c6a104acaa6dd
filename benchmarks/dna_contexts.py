"""Accuracy by length of context of the DNA classifiers of the zoo, from a folder of genomes to a table.

    python benchmarks/dna_contexts.py run yeast3:3.5 yeast2:2 --data DATA --out OUT --deadline 420 --jobs 12
    python benchmarks/dna_contexts.py measure bacteria11 --model mamba-dna.bacteria11 --data DATA --out OUT
    python benchmarks/dna_contexts.py table OUT -o table.csv --markdown table.md

`run` trains the recipe of each task in turn, so many minutes (the recipe's own by default), and measures it: OUT/TASK
is the run, OUT/TASK.log what it said. A task that fails or takes longer than the deadline, in seconds, is ended and the
next one begins; the same command goes on with it. For more GPUs give each a command of its own, with tasks of its own
and one OUT. The baselines are fitted meanwhile on the CPU, a length each, `--jobs` at once, into OUT/baselines (see
`dna_baselines`); a run whose baselines are not there when it needs them fits them itself. `--option optim.lr=0.001`
overrides a field of every recipe.

`measure` trains nothing: it evaluates a saved model on the windows of a recipe, of test regions that the model's
`splits.tsv` says where there is one. `table` also takes folders of released models.

DATA holds the collections of `TASKS`, a folder of FASTA files for each class. yeast2 is the pair of yeasts as the
k-mers of `KNOWN` were measured on it: two strains to train, the other two to test, on chromosomes held out of both.
"""

import argparse
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dna_baselines import Baselines, fit_baselines, write_json
from dna_table import MEASURED, table
from side_by_side import CLI, run_command

ROOT = Path(__file__).resolve().parents[1]
LANGUAGE_MODEL = "mamba-dna-lm.genomes"
PAIR = ("saccharomyces_cerevisiae", "saccharomyces_paradoxus")
PAIR_TRAIN, PAIR_TEST = ("S288C", "CBS432"), ("SK1", "N44")
PAIR_TEST_RECORDS, PAIR_VALIDATION_RECORDS = ("chrIV", "chrVII", "chrXV"), ("chrXVI",)
NOVEL_RATES = (0.05, 0.1)


@dataclass(frozen=True)
class Task:
    """What a recipe is trained and tested on, folders below DATA."""

    train: str
    test: str | None = None
    start_from: str | None = LANGUAGE_MODEL
    unknown: str | None = None
    """Genomes of no class, for `evaluate --unknown`."""
    recipe: str | None = None
    """Of another name than the task."""
    options: tuple[str, ...] = ()


TASKS = {
    "bacteria11": Task("bacteria", start_from=None),
    "cupriavidus7": Task("cupriavidus/train", "cupriavidus/test", start_from=None),
    "mammals5": Task("vertebrates/train", "vertebrates/test"),
    "primates5": Task("vertebrates/train", "vertebrates/test"),
    "vertebrates21": Task("vertebrates/train", "vertebrates/test", unknown="vertebrates/novel"),
    "yeast3": Task("yeast"),
    "yeast2": Task(
        "yeast",
        recipe="yeast3",
        options=(
            "--name=mamba-dna.yeast2",
            "--taxonomy=null",
            f"--data.labels=[{','.join(PAIR)}]",
            "--summary=Tells Saccharomyces cerevisiae and paradoxus apart, on chromosomes of strains never seen.",
        ),
    ),
}


def options_of(name: str, data: Path, out: Path, extra: Sequence[str] = ()) -> list[str]:
    """Return recipe and options of a task for `mamba-seq train`; writes the splits of the pair of yeasts."""
    task = TASKS[name]
    options = [str(ROOT / "models_zoo" / "recipes" / f"mamba-dna.{task.recipe or name}.yaml"), *task.options]
    options += [f"--data.root={data / task.train}"]
    if task.test is not None:
        options += [f"--data.test_root={data / task.test}"]
    if name == "yeast2":
        options += [f"--data.splits_file={write_pair_splits(data / task.train, out)}"]
    return options + list(extra)


def write_pair_splits(root: Path, out: Path) -> Path:
    """Write the splits of the pair of yeasts as a table: strains to train and to test, no chromosome in both."""
    from mamba_seq.data_prep.genomes import Genomes
    from mamba_seq.data_prep.splits import Interval, Splits

    found = []
    for record in Genomes(str(root), labels=list(PAIR)).records:
        strain = Path(record.file).name.split(".")[0]
        tested = record.name in PAIR_TEST_RECORDS
        split: Any = "validation" if record.name in PAIR_VALIDATION_RECORDS else "train"
        if (strain in PAIR_TRAIN and not tested) or (strain in PAIR_TEST and tested):
            split = "test" if tested else split
            found.append(Interval(record.label, record.file, record.name, 0, record.length, split))
    path = out / "yeast2_splits.tsv"
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(Splits(tuple(sorted(found))).to_tsv(), encoding="utf-8")
    return part.replace(path)


def run(asked: argparse.Namespace) -> int:
    """Train and measure the tasks one after another; the exit code is the number of those that did not end well."""
    asked.out.mkdir(parents=True, exist_ok=True)
    tasks = {name: minutes for name, _, minutes in (each.partition(":") for each in asked.tasks)}
    options = {
        name: options_of(name, asked.data, asked.out, [f"--{each}" for each in asked.option])
        + ([f"--optim.minutes={minutes}"] if minutes else [])
        for name, minutes in tasks.items()
    }
    pool = ThreadPoolExecutor(asked.jobs)
    fitting = {name: Baselines(pool, asked.jobs, name, each, asked.out) for name, each in options.items()}
    failed = 0
    for name in tasks:
        began, log = time.monotonic(), asked.out / f"{name}.log"
        start = TASKS[name].start_from if asked.start_from is None else asked.start_from
        start_from = [] if start in (None, "none") else [f"--start_from={start}"]
        recipe, *rest = options[name]
        command = [*CLI, "train", recipe, "-o", str(asked.out / name), *start_from, *rest]
        deadline = began + (math.inf if asked.deadline is None else asked.deadline)
        well = run_command(command, log, deadline) == 0
        fitting[name].no_run.set()
        if well:
            measure_novelty(name, asked, log, deadline)
        failed += not well
        said = "ended well" if well else f"FAILED or was ended: see {log}"
        print(f"{time.strftime('%T')} {name}: {said}, {time.monotonic() - began:.0f} s", flush=True)
    for thread in fitting.values():
        thread.join()
    return failed


def measure_novelty(name: str, asked: argparse.Namespace, log: Path, deadline: float) -> None:
    """Write how many windows of genomes of no class are called novel, at the stated rates, in the time that is left."""
    task = TASKS[name]
    if task.unknown is None or task.test is None:
        return
    for rate in NOVEL_RATES:
        command = [*CLI, "evaluate", str(asked.data / task.test), "-m", str(asked.out / name / "model")]
        command += ["--lengths", "1024,4096,16384", "--per-class", "80", "--max-windows", "0", "--novel", str(rate)]
        command += ["--unknown", str(asked.data / task.unknown), "-o", str(asked.out / name / f"novel_{rate}.tsv")]
        run_command(command, log, max(deadline, time.monotonic() + 1))


def measure(asked: argparse.Namespace) -> int:
    """Evaluate a saved model on the windows of each task's recipe, and fit the baselines on them."""
    from mamba_seq.pipelines.models import locate_model
    from mamba_seq.pipelines.train.finish import hardware
    from mamba_seq.pipelines.train.recipe import read_recipe

    pool, failed = ThreadPoolExecutor(asked.jobs), 0
    for name in asked.tasks:
        folder = asked.out / name
        folder.mkdir(parents=True, exist_ok=True)
        options = options_of(name, asked.data, asked.out, [f"--{each}" for each in asked.option])
        log = asked.out / f"{name}.log"
        fields, _ = read_recipe(Path(options[0]), options[1:])
        fitting = Baselines(pool, asked.jobs, name, options, asked.out)
        fitting.no_run.set()
        model = locate_model(asked.model)
        task, splits = TASKS[name], model / "splits.tsv"
        data = asked.data / (task.test or task.train)
        if fields.data.labels is not None:
            data = only(fields.data.labels, data, asked.out / f"{name}_data")
        of_test = ["--splits", str(splits)] if task.test is None and splits.is_file() else []
        evaluation = fields.evaluation
        for length, count in zip(evaluation.lengths, evaluation.windows_per_class, strict=True):
            command = [*CLI, "evaluate", str(data), "-m", str(model), *of_test, "--lengths", str(length)]
            command += ["--per-class", str(count), "--max-windows", str(evaluation.max_windows)]
            command += ["-o", str(folder / f"measured_{length}.tsv")]
            deadline = math.inf if asked.deadline is None else time.monotonic() + asked.deadline
            failed += run_command(command, log, deadline) != 0
        record = json.loads((model / "record.json").read_text(encoding="utf-8"))
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        write_json(folder / MEASURED, record | hardware(fields.precision) | {"date": today, "measured_as": name})
        fitting.join()
        if fitting.found is not None:
            write_json(folder / "baseline.json", fitting.found | {"lengths": evaluation.lengths})
    return failed


def only(labels: Sequence[str], data: Path, folder: Path) -> Path:
    """Make a folder of links to some of the class folders of another."""
    folder.mkdir(exist_ok=True)
    for label in labels:
        if not (folder / label).exists():
            (folder / label).symlink_to((data / label).resolve(), target_is_directory=True)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Read the command line; return the exit code."""
    if arguments is None and sys.argv[1:2] == ["baseline"]:  # a process of `Baselines`
        length, output, recipe, *options = sys.argv[2:]
        fit_baselines(recipe, int(length), Path(output), options)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, what in (("run", run), ("measure", measure)):
        command = commands.add_parser(name, help=what.__doc__)
        command.set_defaults(what=what)
        command.add_argument("tasks", nargs="+", help=f"of {', '.join(TASKS)}{'; :MINUTES' if what is run else ''}")
        command.add_argument("--data", type=Path, required=True, help="folder of the collections")
        command.add_argument("--out", type=Path, required=True, help="folder of the results")
        command.add_argument("--deadline", type=float, help="seconds that a task may take, or an evaluation")
        command.add_argument("--option", action="append", default=[], help="FIELD=VALUE of the recipes")
        command.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="baselines at once")
    commands.choices["run"].add_argument("--start-from", help=f"instead of {LANGUAGE_MODEL}; 'none' for random weights")
    commands.choices["measure"].add_argument("--model", required=True, help="name or folder")
    command = commands.add_parser("table", help=table.__doc__)
    command.set_defaults(what=table)
    command.add_argument("folders", nargs="+", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True)
    command.add_argument("--markdown", type=Path)
    asked = parser.parse_args(arguments)
    unknown = {each.partition(":")[0] for each in getattr(asked, "tasks", ())} - set(TASKS)
    if unknown:
        parser.error(f"unknown task {min(unknown)!r}; there is {', '.join(TASKS)}")
    code: int = asked.what(asked)
    return code


if __name__ == "__main__":
    sys.exit(main())
