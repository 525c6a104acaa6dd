"""Calls of windows: their order, what they hold, and how much memory they take."""

import tracemalloc

import numpy as np
import pytest

from mamba_seq.calibration import Calibration
from mamba_seq.pipelines import calls as module
from mamba_seq.pipelines.calls import NO_BASES, Calls


def logs(label: int, p: float) -> np.ndarray:
    probabilities = np.full(3, (1 - p) / 2)
    probabilities[label] = p
    return np.log(probabilities)


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 63, 1000])
@pytest.mark.parametrize("behind", [1, 5, 20])
def test_calls_come_in_order_whatever_waits(monkeypatch: pytest.MonkeyPatch, count: int, behind: int) -> None:
    monkeypatch.setattr(module, "LOT", 7)
    monkeypatch.setattr(module, "LOTS_IN_MEMORY", 3)
    calls, waiting = Calls(), []
    for i in range(count):
        number = calls.reserve(10 * i, 10 * i + 10)
        if i % 4 != 3:
            calls.wait()
            waiting.append(number)
        while len(waiting) > behind:
            done = waiting.pop(0)
            calls.settle(done, logs(done % 3, 0.5 + done % 5 / 10), 10.0)
    for done in waiting:
        calls.settle(done, logs(done % 3, 0.5 + done % 5 / 10), 10.0)
    for _ in range(2):  # they can be read again
        found = [call for lot in calls for call in lot.tolist()]
        assert found == [
            (10 * i, 10 * i + 10, *((i % 3, 5000 + i % 5 * 1000) if i % 4 != 3 else (NO_BASES, 0)))
            for i in range(count)
        ]
    assert calls.count == count


def test_ties_are_decided_on_the_rounded_probability() -> None:
    calls = Calls()
    calls.reserve(0, 1)
    calls.wait()
    calls.settle(0, np.log([0.4 - 1e-9, 0.4 + 1e-9, 0.2]), 1.0)
    assert next(iter(calls))["label"].tolist() == [0]


def test_calibration_is_that_of_one_window() -> None:
    calls = Calls(Calibration(temperature=2.0, growth=1.0, context=10, windows=99))
    calls.reserve(0, 10)
    calls.wait()
    calls.settle(0, np.log([0.8, 0.1, 0.1]), 10.0)
    root = np.sqrt([0.8, 0.1, 0.1])
    assert next(iter(calls))["share"][0] == round(1e4 * root[0] / root.sum())


def test_memory_does_not_grow_with_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOTS_IN_MEMORY", 2)
    log = logs(1, 0.7)
    tracemalloc.start()
    calls = Calls()
    for number in range(40_000):
        calls.reserve(number, number + 1)
        calls.wait()
        calls.settle(number, log, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6  # a list of all of them takes some 10 MB
    assert sum(len(lot) for lot in calls) == 40_000
