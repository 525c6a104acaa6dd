"""The memory that is foreseen, beside what was measured."""

import dataclasses

import pytest
import torch

from mamba_seq import Backbone, MambaConfig
from mamba_seq.backbone import Recompute
from mamba_seq.memory import Step, training_bytes

MILLION = 1 << 20


# gigabytes at 1 x 2^20 on one H200, bf16, residual stream in 16 bits (docs/training.md)
@pytest.mark.parametrize(
    ("layers", "width", "parameters", "recompute", "measured"),
    [
        (12, 128, 1_400_192, "inner", 25.75),
        (12, 128, 1_400_192, "segments", 5.57),
        (12, 128, 1_400_192, "nothing", 55.81),
        (16, 256, 7_010_048, "inner", 62.81),
        (16, 256, 7_010_048, "segments", 12.51),
        (16, 256, 7_010_048, "nothing", 117.57),
    ],
)
def test_measured_on_a_gpu(layers: int, width: int, parameters: int, recompute: Recompute, measured: float) -> None:
    config = MambaConfig(d_model=width, n_layer=layers, residual_in_fp32=False)
    step = Step(batch=1, length=MILLION, parameters=parameters, mixed=True, gpu=True)
    assert training_bytes(config, step, recompute) == pytest.approx(measured * 1e9, rel=0.04)


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


@pytest.mark.gpu
def test_a_long_sequence_takes_what_is_foreseen() -> None:
    """What a stack takes for a training step beyond its input: less with every further `recompute`, and as counted."""
    length, peaks = 1 << 18, []
    config = MambaConfig(d_model=256, n_layer=8, residual_in_fp32=False)
    step = Step(batch=1, length=length, parameters=0, mixed=True, gpu=True)
    backbone = Backbone(config).cuda()
    hidden = torch.randn(1, length, config.d_model, device="cuda", dtype=torch.bfloat16)
    ways: list[Recompute] = ["nothing", "inner", "segments"]
    for way in ways:
        backbone.recompute = way
        for _ in range(2):  # the first run loads kernels
            backbone.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                loss = backbone(hidden).square().mean()
            loss.backward()
            peaks.append(torch.cuda.max_memory_allocated() - before)
            del loss
    nothing, inner, segments = peaks[1::2]
    assert segments < 0.5 * inner < 0.5 * nothing
    for way, peak in zip(ways, peaks[1::2], strict=True):
        assert peak == pytest.approx(training_bytes(config, step, way), rel=0.15), way
