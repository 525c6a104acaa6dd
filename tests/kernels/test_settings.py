"""Launch settings: which an architecture gets, and that what they ask for fits it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mamba_seq.kernels.selective_scan import settings
from mamba_seq.kernels.selective_scan.settings import TABLE, Launch, Settings, look_up, settings_for

HERE = Path(__file__).resolve().parent
SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that programs on one multiprocessor may have together; 99 KB on sm_86, sm_89 and sm_120."""
LAUNCHES = ("wide", "narrow", "middle", "gradients", "gradients_narrow")


@pytest.mark.parametrize(
    ("capability", "known"),
    [((8, 0), (8, 0)), ((9, 0), (9, 0)), ((8, 9), (8, 6)), ((8, 7), (8, 6)), ((10, 3), (10, 0)), ((11, 0), (10, 0)),
     ((12, 1), (12, 0)), ((99, 0), (12, 0)), ((7, 5), (8, 0))],
)  # fmt: skip
def test_an_unknown_architecture_gets_the_nearest_below(capability: tuple[int, int], known: tuple[int, int]) -> None:
    assert look_up(capability) is TABLE[known]


def test_only_what_was_measured_says_so() -> None:
    assert [capability for capability, found in TABLE.items() if found.measured] == [settings.MEASURED]


@pytest.mark.parametrize("found", [*TABLE.values(), TABLE[9, 0].scaled(20), TABLE[8, 0].scaled(108)])
def test_thresholds_increase(found: Settings) -> None:
    assert 0 < found.one_piece < found.middle_from < found.wide_from
    assert 0 < found.gradients_one_piece < found.gradients_wide_above
    assert 0 < found.shortest_chunk < found.longest_chunk
    for length in (found.shortest_chunk, found.longest_chunk):
        assert length & (length - 1) == 0


@pytest.mark.parametrize("found", TABLE.values())
@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_are_whole(found: Settings, name: str) -> None:
    launch = getattr(found, name)
    assert isinstance(launch, Launch)
    assert all(value & (value - 1) == 0 for value in launch[:4])
    # 64 states are spread over at most the 32 lanes of a warp, and 8 over at least one
    assert launch.SN <= 8
    assert 64 // launch.SN <= 32
    assert launch.registers is None or (launch.registers % 8 == 0 and 32 <= launch.registers <= 255)


def test_a_smaller_chip_is_full_with_less() -> None:
    full = TABLE[9, 0]
    assert full.scaled(132) is full
    half = full.scaled(66)
    assert (half.one_piece, half.wide_from, half.gradients_wide_above) == (5000, 20_000, 15_000)
    assert (half.wide, half.warps, half.longest_chunk) == (full.wide, full.warps, full.longest_chunk)


def test_a_device_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def capability(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 8, 0

    settings_for.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(settings, "multiprocessor_count", lambda device: 108)
    found = [settings_for(torch.device("cuda", 0)) for _ in range(3)]
    settings_for.cache_clear()
    assert len(asked) == 1
    assert found[0] == TABLE[8, 0].scaled(108)
    assert found[0].one_piece == 10_000 * 108 // 132


def test_without_a_gpu_those_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_for.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settings_for(torch.device("cuda", 0)) is settings_for(torch.device("cpu")) is TABLE[9, 0]
    settings_for.cache_clear()


def test_every_launch_fits_the_shared_memory() -> None:
    # in a process of its own: in this one Triton may be its interpreter
    command = [sys.executable, str(HERE / "compile_gluon.py"), *map(str, SHARED)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(HERE.parents[1])}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert {(sm, name) for sm, name, *_ in found} == {(sm, name) for sm in SHARED for name in LAUNCHES}
    for sm, name, kernel, shared, wide_loads, warps in found:
        assert wide_loads, (sm, name, kernel)  # rows come in 16 bytes a lane
        program = shared + 1024  # the system keeps 1 KB a program
        assert SHARED[sm] // program * warps >= 5, (sm, name, kernel, shared)
        assert 99 * 1024 // program * warps >= 3, (sm, name, kernel, shared)
