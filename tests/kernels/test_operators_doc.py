"""The operator reference says what the code does: signatures, tolerances, and the reasons of the fallbacks."""

import inspect
from pathlib import Path

import pytest

from mamba_seq import kernels
from tests.kernels import test_selective_state_update
from tests.kernels.scan_cases import FP32, TOLERANCES
from tests.kernels.test_causal_conv1d import ACTIVATIONS, PARAMETERS
from tests.kernels.test_dispatch import REFERENCE_ONLY

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())
TYPES = ("fp32", "fp16", "bf16")


@pytest.mark.parametrize("name", kernels.__all__)
def test_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(kernels, name)).parameters.values()
    words = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert f"{name}({', '.join(words)})" in FLAT


@pytest.mark.parametrize("tensor", FP32)
def test_tolerances_of_the_scan(tensor: str) -> None:
    cells = " | ".join(f"{TOLERANCES[dtype][tensor].scaled:g}" for dtype in TYPES)
    assert f"| {tensor} | {cells} |" in TEXT


def test_tolerances_of_the_others() -> None:
    conv = ", ".join(f"{ACTIVATIONS[dtype].scaled:g}" for dtype in TYPES)
    assert f"y, states and dx {conv}; dweight and dbias in float32 {PARAMETERS.scaled:g}" in FLAT
    steps = test_selective_state_update.TOLERANCES
    step = ", ".join(f"{steps[dtype]['y'].scaled:g}" for dtype in TYPES)
    assert f"y {step}, state {test_selective_state_update.STATE.scaled:g}" in FLAT


def test_every_reason_of_a_fallback_is_there() -> None:
    for _, _, reason in REFERENCE_ONLY.values():
        assert reason in TEXT


def test_phases_are_named_as_in_the_code() -> None:
    from mamba_seq.kernels.selective_scan import triton

    for name in ("summarise_chunks", "pass_summaries", "compute_outputs"):
        assert callable(getattr(triton, name))
        assert f"`{name}`" in TEXT
