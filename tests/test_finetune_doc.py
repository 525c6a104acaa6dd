"""The commands of docs/finetune.md run, in their order, in one folder."""

import re
import shlex
from pathlib import Path

import pytest

from mamba_seq.pipelines.cli import main
from mamba_seq.pipelines.finetune import scores
from tests.kernels.compare import one_thread

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "finetune.md").read_text(encoding="utf-8")


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scores, "RESAMPLES", 20)
    with one_thread():
        run_blocks()
    head = (tmp_path / "boxes.metrics.tsv").read_text().splitlines()
    assert head[0] == "metric\tvalue\tlow\thigh\texamples"
    assert float(head[1].split("\t")[1]) > 0.9
    assert (
        (tmp_path / "boxes.tsv")
        .read_text()
        .startswith("id\tlength\tstatus\ttruth\tprediction\tprobability\tp:box\tp:none")
    )
    for name in ("boxes", "chains", "sensor", "from_zoo"):
        assert (tmp_path / name / "model" / "README.md").is_file()


def run_blocks() -> None:
    for kind, code in re.findall(r"```(python|bash)\n(.*?)```", PAGE, flags=re.DOTALL):
        if kind == "python":
            exec(compile(code, "docs/finetune.md", "exec"), {})
            continue
        for line in code.strip().splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "mamba-seq"
            assert main(arguments) == 0, line
