"""The conformance script, on the CPU: it passes, it counts, it fails when a gradient is wrong, and it stops in time."""

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mamba_seq.kernels._dispatch import implementation

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_conformance.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_conformance", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("conformance_*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_on_the_cpu(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--device", "cpu", "--cases", "40", "--output", str(tmp_path)]) == 0
    rows = table(tmp_path)
    assert all(row["failed"] == "0" for row in rows)
    grid = [row for row in rows if row["group"].startswith("grid")]
    assert sum(int(row["cases"]) for row in grid if row["tensor"] == "y") == 40
    assert {row["tensor"] for row in grid} == {
        *("y", "final_state", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias")
    }
    assert {row["group"] for row in rows} >= {"long", "one base", "1,000 boundaries", "near-constant state"}
    assert "0 failed" in capsys.readouterr().out


def test_a_wrong_gradient_fails(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = implementation("selective_scan", "cpu")
    backward = module.backward

    def wrong(*arguments: Any, **options: Any) -> Any:
        du, ddelta, *others = backward(*arguments, **options)
        return du, ddelta * (1 + 1e-4), *others

    monkeypatch.setattr(module, "backward", wrong)
    monkeypatch.setattr(script, "special_checks", lambda *_: iter(()))
    assert script.main(["--device", "cpu", "--cases", "40", "--output", str(tmp_path)]) == 1
    failed = {(row["group"], row["tensor"]) for row in table(tmp_path) if row["failed"] != "0"}
    assert failed == {("grid real fp32", "ddelta"), ("grid complex fp32", "ddelta")}
    assert "FAILED grid real fp32" in capsys.readouterr().out


def test_a_backend_that_raises_fails(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = implementation("selective_scan", "cpu")
    monkeypatch.setattr(module, "forward", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(script, "special_checks", lambda *_: iter(()))
    assert script.main(["--device", "cpu", "--cases", "3", "--output", str(tmp_path)]) == 1
    assert {row["tensor"] for row in table(tmp_path)} == {"error"}


def test_a_limit_stops_early_and_says_so(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--device", "cpu", "--cases", "40", "--output", str(tmp_path)]
    assert script.main([*asked, "--seconds", "1e-9"]) == 1  # nothing ran, nothing is known
    assert re.search(r"\b0 of \d+ cases ran", capsys.readouterr().out)
