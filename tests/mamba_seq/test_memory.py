"""The memory that is foreseen, beside what was measured."""

import dataclasses

import pytest

from mamba_seq import MambaConfig
from mamba_seq.backbone import Recompute
from mamba_seq.memory import Step, training_bytes

MILLION = 1 << 20


# gigabytes at 1 x 2^20 on one H200, bf16, residual stream in 16 bits (docs/training.md)
@pytest.mark.parametrize(
    ("layers", "width", "parameters", "recompute", "measured"),
    [
        (12, 128, 1_400_000, "inner", 41.3),
        (12, 128, 1_400_000, "segments", 5.4),
        (16, 256, 7_000_000, "inner", 60.6),
        (16, 256, 7_000_000, "segments", 12.5),
    ],
)
def test_measured_on_a_gpu(layers: int, width: int, parameters: int, recompute: Recompute, measured: float) -> None:
    config = MambaConfig(d_model=width, n_layer=layers, residual_in_fp32=False)
    step = Step(batch=1, length=MILLION, parameters=parameters, mixed=True, gpu=True)
    assert training_bytes(config, step, recompute) == pytest.approx(measured * 1e9, rel=0.06)


# how much a process grew by, float32, on a CPU
@pytest.mark.parametrize(
    ("layers", "width", "length", "recompute", "measured"),
    [
        (2, 64, 1 << 16, "nothing", 0.72),
        (6, 64, 1 << 16, "nothing", 1.69),
        (4, 128, 1 << 16, "nothing", 2.05),
        (2, 64, 1 << 16, "inner", 0.64),
        (6, 64, 1 << 16, "inner", 1.30),
        (2, 64, 1 << 19, "segments", 3.42),
        (4, 64, 1 << 19, "segments", 3.73),
    ],
)
def test_measured_on_a_cpu(layers: int, width: int, length: int, recompute: Recompute, measured: float) -> None:
    config = MambaConfig(d_model=width, n_layer=layers)
    step = Step(batch=1, length=length, parameters=0, mixed=False, gpu=False)
    assert training_bytes(config, step, recompute) == pytest.approx(measured * 1e9, rel=0.2)


def test_more_is_more() -> None:
    config = MambaConfig(d_model=64, n_layer=8)
    step = Step(batch=2, length=10_000, parameters=1000, mixed=True, gpu=True)
    ways: list[Recompute] = ["nothing", "inner", "segments"]
    found = [training_bytes(config, step, way) for way in ways]
    assert found == sorted(found, reverse=True)
    assert training_bytes(config, step) == found[1]
    assert training_bytes(config, dataclasses.replace(step, gpu=False)) > 0
    for change in ({"batch": 3}, {"length": 20_000}, {"parameters": 10**6}, {"mixed": False}):
        more = dataclasses.replace(step, **change)  # type: ignore[arg-type]
        assert all(training_bytes(config, more, way) > now for way, now in zip(ways, found, strict=True))
    fewer = dataclasses.replace(step, checkpoint_every=2)
    assert training_bytes(config, fewer, "inner") < found[1]
    assert training_bytes(config, fewer, "segments") != found[2]
