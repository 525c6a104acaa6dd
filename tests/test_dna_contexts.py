"""The script that measures accuracy by context: its splits, what it takes for a run, its table."""

import csv
import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mamba_seq import models_zoo
from mamba_seq.data_prep.splits import Splits
from mamba_seq.pipelines.train.recipe import read_recipe

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
EVALUATED = """length\tclass\twindows\tdisjoint\tcorrect\taccuracy\tlow\thigh\tece
64\tall\t20\t35\t15\t0.7500\t0.5313\t0.8881\t0.0500
64\ta\t10\t30\t9\t0.9000\t0.5958\t0.9821\tNA
64\tb\t10\t5\t6\t0.6000\t0.2307\t0.8824\tNA
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of the benchmarks, which import each other by their names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in ("dna_contexts", "dna_baselines", "dna_table", "side_by_side"):
        sys.modules.pop(name, None)


@pytest.fixture
def script(load: Any) -> ModuleType:
    return load("dna_contexts")


def test_tasks_have_recipes(load: Any, script: ModuleType) -> None:
    for name, task in script.TASKS.items():
        assert f"mamba-dna.{task.recipe or name}" in models_zoo.recipes()
    assert set(load("dna_table").KNOWN) <= set(script.TASKS)


def test_no_strain_and_no_chromosome_of_the_pair_is_on_both_sides(script: ModuleType, tmp_path: Path) -> None:
    for label, strains in zip(script.PAIR, zip(script.PAIR_TRAIN, script.PAIR_TEST, strict=True), strict=True):
        (tmp_path / label).mkdir()
        for strain in strains:
            text = "".join(f">{name}\nACGT\n" for name in ("chrI", "chrIV", "chrXVI"))
            (tmp_path / label / f"{strain}.fa").write_text(text)
    path = script.write_pair_splits(tmp_path, tmp_path)
    splits = {i.split: set() for i in Splits.from_tsv(path.read_text()).intervals}
    for each in Splits.from_tsv(path.read_text()).intervals:
        splits[each.split].add((Path(each.file).stem, each.record))
    assert splits == {
        "train": {("S288C", "chrI"), ("CBS432", "chrI")},
        "validation": {("S288C", "chrXVI"), ("CBS432", "chrXVI")},
        "test": {("SK1", "chrIV"), ("N44", "chrIV")},
    }


def test_what_takes_too_long_is_ended(script: ModuleType, tmp_path: Path) -> None:
    assert script.run_command(["echo", "done"], tmp_path / "log") == 0
    assert script.run_command([*script.CLI, "train"], tmp_path / "usage") == 2
    assert script.run_command(["sleep", "60"], tmp_path / "log", time.monotonic() + 0.05) is None
    assert (tmp_path / "log").read_text() == "done\n"


def test_baselines_of_other_options_are_others(load: Any, script: ModuleType, tmp_path: Path) -> None:
    def keys(*extra: str) -> list[str]:
        path, *options = script.options_of("mammals5", tmp_path, tmp_path, extra)
        recipe, _ = read_recipe(Path(path), options)
        return [load("dna_baselines").key_of(recipe, length) for length in recipe.evaluation.lengths]

    before = keys()
    assert keys("--optim.lr=0.5", "--evaluation.max_windows=1") == before
    for option in ("--data.seed=5", "--evaluation.baseline_windows=7"):
        assert not set(keys(option)) & set(before)


def test_table_of_runs_and_of_measured_models(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "measured" / "ab"
    folder.mkdir(parents=True)
    record = models_zoo.describe("mamba-dna.bacteria11") | {"measured_as": "yeast2", "labels": ["a", "b"]}
    (folder / "measured.json").write_text(json.dumps(record))
    (folder / "measured_64.tsv").write_text(EVALUATED)
    (folder / "baseline.json").write_text('{"baseline": [0.25, 0.5], "composition": [0.125, 0.5], "lengths": [64, 9]}')
    released = str(models_zoo.path("mamba-dna.cupriavidus7"))
    written = tmp_path / "table.csv"
    assert script.main(["table", str(tmp_path / "measured"), released, "-o", str(written)]) == 0
    with written.open() as file:
        first, second, *_ = csv.DictReader(file)
    # 10 windows of a, and no more than the 5 that fit into b, are independent
    assert [first[key] for key in ("task", "context", "accuracy", "independent", "kmer")] == [
        *("yeast2", "64", "0.75", "15", "0.25"),
    ]
    assert [second[key] for key in ("task", "context", "kmer_known", "seed")] == ["cupriavidus7", "1024", "0.431", "0"]
    assert "| yeast2 | 64 | 0.750 | 0.531 to 0.888 | 20 | 15 | 0.250 | 0.125 |  |" in capsys.readouterr().out


def test_unknown_tasks_are_named(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["run", "apes:3", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "unknown task 'apes'; there is bacteria11, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
