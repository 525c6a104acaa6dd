"""The script for compute-sanitizer, on the CPU kernels: every case runs, and what is not finite is named."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mamba_seq.kernels._dispatch import implementation

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "sanitize.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sanitize", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_case_runs(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cases = (script.SCANS, script.CONVOLUTIONS, script.STEPS, script.STACKS, script.CLIPS)
    assert lines == [f"{name}: ran" for each in cases for name in each]


def test_what_is_not_finite_is_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = implementation("selective_scan", "cpu")
    backward = module.backward

    def poisoned(*arguments: Any, **options: Any) -> Any:
        du, ddelta, *others = backward(*arguments, **options)
        return du, torch.full_like(ddelta, float("nan")), *others

    monkeypatch.setattr(module, "backward", poisoned)
    assert script.main(["--device", "cpu", "--only", "one step"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "gluon, one step: not finite: ddelta",
        "conv, 2 taps, one step: ran",
    ]


def test_gluon_runs_what_bears_its_name(script: ModuleType) -> None:
    gluon = implementation("selective_scan", "gluon")
    for name, case in script.SCANS.items():
        plain = not (case.get("packed") or case.get("constant") or case.get("complex"))
        width = case["D"] // case.get("G", 1)
        blocks = case.get("G", 1) == 1 or width % (512 // case.get("N", 16)) == 0
        assert name.startswith("gluon") == (plain and blocks and case.get("N", 16) in (8, 16, 32, 64)), name
    assert {name.split(",")[0] for name in script.SCANS} == {"gluon", "triton"}
    assert isinstance(gluon.MOST_KEPT, int)
