"""The baselines beside the DNA classifiers of `dna_contexts.py`: fitted on the CPU, while their runs have the GPU.

    OUT/baselines/TASK_LENGTH_KEY.json  of one length; a fit that has its file is not done again
    OUT/baselines/TASK.log              what the fits said
    OUT/TASK/baseline.json              of all lengths, where the run looks for it and the table reads it

KEY stands for what the windows depend on, the options of the task among it: see `key_of`. Files without one are of an
older form that did not say what they were fitted to, and are not taken; a run that has its `baseline.json` keeps it.
"""

import dataclasses
import hashlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from side_by_side import run_command

SCRIPT = Path(__file__).with_name("dna_contexts.py")
"""Whose `baseline LENGTH FILE RECIPE OPTION...` calls `fit_baselines` in a process of its own."""


class Baselines(threading.Thread):
    """Fits the baselines of a task, a process a length, and puts them where its run looks for them.

    Args:
        pool: in which the fits take their turn.
        jobs: fits at once, which share the cores.
        name: of the task.
        options: its recipe, and the options of that.
        out: folder of the results.

    Attributes:
        no_run: set it when the run has ended, or there is none, and nothing is waited for.
        found: accuracies of all lengths; None until this thread has ended, or where a fit failed.
    """

    def __init__(self, pool: ThreadPoolExecutor, jobs: int, name: str, options: list[str], out: Path) -> None:
        super().__init__(daemon=True)
        from mamba_seq.pipelines.train.recipe import read_recipe

        self.run_folder, self.folder, self.name_, self.options = out / name, out / "baselines", name, options
        self.folder.mkdir(parents=True, exist_ok=True)
        self.no_run = threading.Event()
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        self.alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        self.found: dict[str, list[float | None]] | None = None
        recipe, _ = read_recipe(Path(options[0]), options[1:])
        self.fits = [pool.submit(self.fit, length, key_of(recipe, length)) for length in recipe.evaluation.lengths]
        self.start()

    def fit(self, length: int, key: str) -> Path:
        """Fit those of a length, if that has not been done; return their file, which a failure leaves missing."""
        path = self.folder / f"{self.name_}_{length}_{key}.json"
        if not path.is_file():
            command = [sys.executable, str(SCRIPT), "baseline", str(length), str(path), *self.options]
            run_command(command, self.folder / f"{self.name_}.log", variables=self.alone)
        return path

    def run(self) -> None:
        """Gather all lengths; a run refuses a folder that has results and no recipe, so wait for that."""
        parts = [fit.result() for fit in self.fits]
        if not all(part.is_file() for part in parts):
            return
        found = [json.loads(part.read_text(encoding="utf-8")) for part in parts]
        self.found = {key: [value for each in found for value in each[key]] for key in found[0]}
        there = self.run_folder / "baseline.json"
        while not (self.run_folder / "recipe.yaml").is_file() and not self.no_run.wait(0.5):
            pass
        if (self.run_folder / "recipe.yaml").is_file() and not there.is_file():
            write_json(there, self.found)


def key_of(recipe: Any, length: int) -> str:
    """Return a key of what the baselines of a recipe depend on at a length.

    These are all fields of its data (more than the windows depend on, so that none is missed), and how many windows are
    drawn to test and at least to fit. What is not in it, the contents of the genomes and this code, is of one state in
    a folder of results: a run refuses other genomes, too.
    """
    evaluation = recipe.evaluation
    tested = evaluation.windows_per_class[evaluation.lengths.index(length)]
    fields = [dataclasses.asdict(recipe.data), tested, evaluation.baseline_windows]
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:12]


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
