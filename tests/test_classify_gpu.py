"""The script that times classify on a GPU: its files, its check and its samples, on the CPU."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mamba_seq.data_prep.sequences import read_sequences

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "classify_gpu.py"
TABLE = "record\tlength\tprediction\tprobability\tstatus\tp:a\tp:b\n"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("classify_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("case", "records"), [("65536", 1004), ("gzip", 1004), ("reads", 266)])
def test_files_have_the_records_that_are_counted(script: ModuleType, tmp_path: Path, case: str, records: int) -> None:
    path, count, bases = script.make(case, 400_000, tmp_path)
    lengths = []
    for record in read_sequences(path):
        lengths.append(len(record.codes()))
        assert record.invalid is None
    assert (count, bases) == (len(lengths), sum(lengths)) == (records, sum(lengths))
    assert bases <= 400_000


@pytest.mark.parametrize(
    ("alone", "words"),
    [("r\t9\ta\t0.6000\tok\t0.6000\t0.4000\n", ""), ("r\t9\ta\t0.6200\tok\t0.6200\t0.3800\n", "at most")],
)
def test_rows_that_differ_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: str, words: str
) -> None:
    def classify(source: Path, folder: Path, *options: str) -> Path:
        path = folder / f"{len(options)}.tsv"
        path.write_text(TABLE + (alone if "--batch-tokens" in options else "r\t9\ta\t0.6000\tok\t0.6000\t0.4000\n"))
        return path

    monkeypatch.setattr(script, "classify", classify)
    problem = script.check(tmp_path)
    assert words in problem
    assert bool(problem) == bool(words)


def test_without_nvidia_smi_nothing_is_said(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with script.Utilisation() as busy:
        pass
    assert busy.percent == ""
    busy._samples = [0, 0, 50, 0, 100, 0]
    assert busy.percent == "50"
