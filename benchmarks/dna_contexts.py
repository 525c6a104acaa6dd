"""Accuracy by length of context of the DNA classifiers of the zoo, from a folder of genomes to a table.

    python benchmarks/dna_contexts.py run yeast3:3.5 yeast2:2 --data DATA --out OUT --deadline 420 --jobs 12
    python benchmarks/dna_contexts.py measure bacteria11 --model mamba-dna.bacteria11 --data DATA --out OUT
    python benchmarks/dna_contexts.py table OUT -o table.csv --markdown table.md

`run` trains the recipe of each task in turn, so many minutes (the recipe's own by default), and measures it: OUT/TASK
is the run, OUT/TASK.log what it said. A task that fails or takes longer than the deadline, in seconds, is ended and the
next one begins; the same command goes on with it. For more GPUs give each a command of its own, with tasks of its own
and one OUT. The baselines are fitted meanwhile on the CPU, a length each, `--jobs` at once, into OUT/baselines; a run
whose baselines are not there when it needs them fits them itself. `--option optim.lr=0.001` overrides a field of every
recipe.

`measure` trains nothing: it evaluates a saved model on the windows of a recipe, of test regions that the model's
`splits.tsv` says where there is one. `table` also takes folders of released models.

DATA holds the collections of `TASKS`, a folder of FASTA files for each class. yeast2 is the pair of yeasts as the
k-mers of `KNOWN` were measured on it: two strains to train, the other two to test, on chromosomes held out of both.
"""

import argparse
import csv
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLI = (sys.executable, "-c", "from mamba_seq.pipelines.cli import main; main()")
LANGUAGE_MODEL = "mamba-dna-lm.genomes"
PAIR = ("saccharomyces_cerevisiae", "saccharomyces_paradoxus")
PAIR_TRAIN, PAIR_TEST = ("S288C", "CBS432"), ("SK1", "N44")
PAIR_TEST_RECORDS, PAIR_VALIDATION_RECORDS = ("chrIV", "chrVII", "chrXV"), ("chrXVI",)
NOVEL_RATES = (0.05, 0.1)
MEASURED = "measured.json"


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
KNOWN = {
    "cupriavidus7": {1024: 0.431, 4096: 0.707, 16384: 0.851, 65536: 0.956, 262144: 0.990, 1048576: 1.000},
    "yeast2": {1024: 0.527, 4096: 0.517, 16384: 0.600, 65536: 0.792, 262144: 0.912},
    "mammals5": {1024: 0.474, 8192: 0.796, 65536: 0.820},
    "primates5": {1024: 0.206, 8192: 0.254, 65536: 0.278},
    "vertebrates21": {65536: 0.732},
}
"""Accuracy of 6-mers in another fit of the same kind to the same collections, on other windows, one seed."""
COLUMNS = (
    *("task", "context", "accuracy", "low", "high", "windows", "independent", "kmer", "composition", "kmer_known"),
    *("chance", "ece", "model", "parameters", "start_from", "steps", "minutes", "seed", "hardware", "date"),
)


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


def ended(
    command: Sequence[str], log: Path, deadline: float | None = None, variables: dict[str, str] | None = None
) -> bool:
    """Run a command, its words appended to a log; say whether it ended well, and end it at the deadline (seconds)."""
    with log.open("a", encoding="utf-8") as sink:
        env = os.environ | {"PYTHONUNBUFFERED": "1"} | (variables or {})
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            return process.wait(deadline) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:  # with its workers, on Ctrl-C too
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def fit_baselines(recipe: str, length: int, output: Path, options: Sequence[str]) -> None:
    """Fit the baselines of a recipe at one of its lengths, on the very windows that its run draws."""
    from mamba_seq.data_prep.dna import GenomeData
    from mamba_seq.pipelines.train.finish import measure_baseline
    from mamba_seq.pipelines.train.recipe import read_recipe

    fields, _ = read_recipe(Path(recipe), [*options, "--data.workers=0"])
    data = GenomeData(fields.data)
    data.setup("fit")
    wanted = dict(zip(fields.evaluation.lengths, fields.evaluation.windows_per_class, strict=True))
    found = measure_baseline(data, fields, [data.evaluation_windows("test", length, wanted[length])])
    write_json(output, found)


def write_json(path: Path, fields: object) -> None:
    """Write a file that is whole as soon as it is there."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(fields) + "\n", encoding="utf-8")
    part.replace(path)


class Baselines(threading.Thread):
    """Fits the baselines of a task, a process a length, and puts them where its run looks for them."""

    def __init__(self, pool: ThreadPoolExecutor, jobs: int, name: str, options: list[str], out: Path) -> None:
        super().__init__(daemon=True)
        from mamba_seq.pipelines.train.recipe import read_recipe

        self.run_folder, self.folder, self.name_, self.options = out / name, out / "baselines", name, options
        self.folder.mkdir(parents=True, exist_ok=True)
        self.no_run = threading.Event()
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        self.alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        self.lengths = read_recipe(Path(options[0]), options[1:])[0].evaluation.lengths
        self.fits = [pool.submit(self.fit, length) for length in self.lengths]
        self.start()

    def fit(self, length: int) -> Path:
        """Fit those of a length, if that has not been done; return their file, which a failure leaves missing."""
        path = self.folder / f"{self.name_}_{length}.json"
        if not path.is_file():
            command = [sys.executable, __file__, "baseline", str(length), str(path), *self.options]
            ended(command, self.folder / f"{self.name_}.log", variables=self.alone)
        return path

    def run(self) -> None:
        """Gather all lengths; a run refuses a folder that has results and no recipe, so wait for that."""
        parts = [fit.result() for fit in self.fits]
        if not all(part.is_file() for part in parts):
            return
        found = [json.loads(part.read_text(encoding="utf-8")) for part in parts]
        together = {key: [value for each in found for value in each[key]] for key in found[0]}
        write_json(self.folder / f"{self.name_}.json", together)
        there = self.run_folder / "baseline.json"
        while not (self.run_folder / "recipe.yaml").is_file() and not self.no_run.wait(0.5):
            pass
        if (self.run_folder / "recipe.yaml").is_file() and not there.is_file():
            write_json(there, together)


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
        well = ended(command, log, asked.deadline)
        fitting[name].no_run.set()
        if well:
            measure_novelty(name, asked, log, began)
        failed += not well
        said = "ended well" if well else f"FAILED or was ended: see {log}"
        print(f"{time.strftime('%T')} {name}: {said}, {time.monotonic() - began:.0f} s", flush=True)
    for thread in fitting.values():
        thread.join()
    return failed


def measure_novelty(name: str, asked: argparse.Namespace, log: Path, began: float) -> None:
    """Write how many windows of genomes of no class are called novel, at the stated rates, in the time that is left."""
    task = TASKS[name]
    if task.unknown is None or task.test is None:
        return
    for rate in NOVEL_RATES:
        command = [*CLI, "evaluate", str(asked.data / task.test), "-m", str(asked.out / name / "model")]
        command += ["--lengths", "1024,4096,16384", "--per-class", "80", "--max-windows", "0", "--novel", str(rate)]
        command += ["--unknown", str(asked.data / task.unknown), "-o", str(asked.out / name / f"novel_{rate}.tsv")]
        ended(command, log, None if asked.deadline is None else max(1, asked.deadline + began - time.monotonic()))


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
            failed += not ended([*command, "-o", str(folder / f"measured_{length}.tsv")], log, asked.deadline)
        record = json.loads((model / "record.json").read_text(encoding="utf-8"))
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        write_json(folder / MEASURED, record | hardware(fields.precision) | {"date": today, "measured_as": name})
        fitting.join()
        fitted = fitting.folder / f"{name}.json"
        if fitted.is_file():
            found = json.loads(fitted.read_text(encoding="utf-8"))
            write_json(folder / "baseline.json", found | {"lengths": evaluation.lengths})
    return failed


def only(labels: Sequence[str], data: Path, folder: Path) -> Path:
    """Make a folder of links to some of the class folders of another."""
    folder.mkdir(exist_ok=True)
    for label in labels:
        if not (folder / label).exists():
            (folder / label).symlink_to((data / label).resolve(), target_is_directory=True)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's folder, or of one of `measure`; those of the folders below it where it is neither."""
    places = (folder / MEASURED, folder / "record.json", folder / "model" / "record.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return [row for below in sorted(folder.iterdir()) if below.is_dir() for row in rows_of(below)]
    measured = sorted(folder.glob("measured*.tsv")) if file.name == MEASURED else None
    record = json.loads(file.read_text(encoding="utf-8"))
    # a model may be measured on the windows of another task than the one that it is named after
    task = record.get("measured_as", record["name"].removeprefix("mamba-dna."))
    about = {"task": task, "chance": 1 / len(record["labels"]), "model": record["name"]}
    about |= {"start_from": record.get("start_from") or "random weights"}
    about |= {key: record[key] for key in ("parameters", "steps", "minutes", "seed", "hardware", "date")}
    found = record["results"] if measured is None else _measured(measured, folder / "baseline.json")
    rows = []
    for result in found:
        row = {key: result[key] for key in ("accuracy", "low", "high", "windows", "independent", "ece")}
        row |= {"context": result["length"], "kmer": result["baseline"], "composition": result.get("composition")}
        rows.append(about | row | {"kmer_known": KNOWN.get(task, {}).get(result["length"])})
    return rows


def _measured(tables: Sequence[Path], baseline: Path) -> list[dict[str, Any]]:
    """Read what `evaluate` wrote, and the baselines beside it, into the form of a run's results."""
    fitted = json.loads(baseline.read_text(encoding="utf-8")) if baseline.is_file() else {"lengths": []}
    texts = [each.read_text(encoding="utf-8") for each in tables]
    lines = [line for text in texts for line in csv.DictReader(text.splitlines(), delimiter="\t")]
    results = []
    for line in sorted((line for line in lines if line["class"] == "all"), key=lambda line: int(line["length"])):
        length, windows = int(line["length"]), int(line["windows"])
        own = [each for each in lines if each["length"] == line["length"] and each["class"] != "all"]
        independent = sum(min(int(each["windows"]), int(each["disjoint"])) for each in own)
        at = fitted["lengths"].index(length) if length in fitted["lengths"] else None
        result: dict[str, Any] = {key: float(line[key]) for key in ("accuracy", "low", "high", "ece")}
        result |= {name: None if at is None else fitted[name][at] for name in ("baseline", "composition")}
        results.append(result | {"length": length, "windows": windows, "independent": independent})
    return results


def table(asked: argparse.Namespace) -> int:
    """Write the rows of all folders as CSV, and as a table for people."""
    rows = [row for folder in asked.folders for row in rows_of(folder)]
    with asked.output.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells: dict[str, Any] = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(cells)
    lines = ["| task | bases | accuracy | 95 % interval | windows | independent | 6-mers | composition | others' |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        figures = [row[key] for key in ("kmer", "composition", "kmer_known")]
        last = " | ".join("" if value is None else f"{value:.3f}" for value in figures)
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        first = f"| {row['task']} | {row['context']:,} | {row['accuracy']:.3f} | {interval} "
        lines.append(f"{first}| {row['windows']:,} | {row['independent']:,} | {last} |")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if asked.markdown is not None:
        asked.markdown.write_text(text, encoding="utf-8")
    return 0


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
