"""The script of the README's table, without a GPU: what it asks for, what it saves, and when it saves nothing."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mamba_seq.pipelines.bench import table
from mamba_seq.pipelines.errors import CheckError

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_scan.py"
MACHINE = dict(zip(table.ON_GPU, ("NVIDIA H200", "580.1", "2.11.0", "3.6.0", "2026-11-24"), strict=True))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_scan", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "about", lambda device: MACHINE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def rows(plan: Any, device: torch.device, peers: list[str]) -> list[dict[str, Any]]:
        assert device == torch.device("cuda", 0)
        blank = dict.fromkeys(table.COLUMNS, "")
        return [
            {**blank, "L": L, "direction": way, "peer": p}
            for _, L, _ in plan.shapes
            for way in plan.directions
            for p in peers
        ]

    monkeypatch.setattr(module, "check", lambda plan, device: plan.peers)
    monkeypatch.setattr(module, "measure", rows)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_scan.py", *arguments])
    code: int = script.main()
    return code


def test_rows_are_added_to_the_file_of_the_gpu(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, monkeypatch, "table") == 0
    assert run(script, monkeypatch) == 0
    with (tmp_path / "scan_h200.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*table.COLUMNS, *table.ON_GPU]
    assert len(rows) == 14 + 14 + 36
    assert {row["peer"] for row in rows[:28]} == {"mamba_ssm"}
    assert {row["direction"] for row in rows[28:]} == {"forward"}
    assert [int(row["L"]) for row in rows[28::3]] == [2**exponent for exponent in range(9, 21)]
    assert "50 rows added to" in capsys.readouterr().out


def test_nothing_is_saved_when_asked_or_when_the_check_fails(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, monkeypatch, "--dry") == 0

    def fail(plan: Any, device: torch.device) -> None:
        raise CheckError("du is off")

    monkeypatch.setattr(script, "check", fail)
    assert run(script, monkeypatch) == 1
    assert "du is off" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_without_a_gpu(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(script, monkeypatch) == 1


def test_wrong_usage(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(script, monkeypatch, "tables")
