"""Every `recompute` under every arithmetic and layout, compiled, checkpointed and on strided input; on a GPU too.

On a GPU the models are wide enough for the kernels that most models run on.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq import Backbone, Mamba, MambaConfig
from tests.mamba_seq import recompute_cases as cases
from tests.mamba_seq.layouts import random_backbone, weighted_sum

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {"float32": 1e-4, "autocast": 0.06, "bfloat16": 0.06}
"""Largest error against float64, of the largest element of a tensor. In 16 bits half a unit in the last place is 0.004,
and gradients went through some ten such roundings."""


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.short_segments(monkeypatch)


def model_on(device: str, **fields: Any) -> Backbone:
    sizes = {} if device == "cpu" else {"d_model": 32, "d_state": 16}
    return random_backbone(**{**sizes, **fields}).to(device)


def compare(backbone: Backbone, device: str, form: str, arithmetic: str, **settings: Any) -> None:
    """Hold a backbone against its float64 self."""
    weights, autocast = cases.ARITHMETIC[arithmetic]
    for name, value in settings.items():
        setattr(backbone, name, value)
    backbone = backbone.to(weights)
    found = cases.run(backbone, dict(cases.forms(backbone, device))[form], autocast, device)
    backbone = backbone.double()
    backbone.recompute, backbone.gradient_checkpointing = "nothing", False
    expected = cases.run(backbone, dict(cases.forms(backbone, device))[form], None, device)
    got, name = cases.worst(found, expected)
    assert got <= TOLERANCE[arithmetic], name


@pytest.mark.parametrize("form", ["plain", "padded left, state wanted", "state", "packed, state"])
@pytest.mark.parametrize("arithmetic", TOLERANCE)
@pytest.mark.parametrize("option", ["auto", *cases.OPTIONS])
@pytest.mark.parametrize("device", DEVICES)
def test_every_arithmetic_and_layout(device: str, option: str, arithmetic: str, form: str) -> None:
    compare(model_on(device), device, form, arithmetic, recompute=option)


@pytest.mark.parametrize("option", cases.OPTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_complex_states(device: str, option: str) -> None:
    compare(model_on(device, ssm="complex"), device, "state", "float32", recompute=option)


@pytest.mark.parametrize("every", [True, 2])
@pytest.mark.parametrize("option", ["auto", *cases.OPTIONS])
@pytest.mark.parametrize("device", DEVICES)
def test_checkpoints(device: str, option: str, every: bool | int) -> None:
    compare(model_on(device, n_layer=3), device, "state", "autocast", recompute=option, gradient_checkpointing=every)


@pytest.mark.parametrize("residual_in_fp32", [True, False])
@pytest.mark.parametrize("option", cases.OPTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_residual_of_16_bits(device: str, option: str, residual_in_fp32: bool) -> None:
    backbone = model_on(device, residual_in_fp32=residual_in_fp32, bias=True, norm="layer")
    compare(backbone, device, "plain", "autocast", recompute=option)


@pytest.mark.parametrize("keep", ["autograd", "everything", "little"])
@pytest.mark.parametrize("device", DEVICES)
def test_strided_input(device: str, keep: Any) -> None:
    """A block reads its input wherever that lies, and so does its backward pass with the gradient of its output."""
    torch.manual_seed(0)
    block = Mamba(MambaConfig(d_model=32, n_layer=1)).to(device)
    wide = torch.randn(70, 2, 3, 32, device=device)
    results = []
    for hidden in (wide[:, :, 1].transpose(0, 1), wide[:, :, 1].transpose(0, 1).contiguous()):
        leaf = hidden.detach().requires_grad_()
        out = block(leaf, keep=keep)
        dout = torch.randn(32, 70, 2, generator=torch.Generator().manual_seed(1)).permute(2, 1, 0).to(device)
        gradients = torch.autograd.grad(out, [leaf, *block.parameters()], dout)
        results.append([out.detach(), *gradients])
    for found, expected in zip(*results, strict=True):
        assert cases.error(found.double(), expected.double()) <= 1e-5


# dynamo warns of what it does itself, such as asking a tensor for .grad, and then stops at its own warning
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_nothing_compiled")
@pytest.mark.parametrize("option", cases.OPTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_compiled(device: str, option: str) -> None:
    backbone = model_on(device)
    backbone.recompute = option
    hidden = torch.randn(2, cases.LENGTH, backbone.config.d_model, device=device)
    found: list[dict[str, Tensor]] = []
    backend = "aot_eager" if device == "cpu" else "inductor"
    for run in (backbone, torch.compile(backbone, backend=backend, fullgraph=True)):
        backbone.zero_grad()
        out = run(hidden)
        weighted_sum([out.cpu()]).backward()
        gradients = {name: p.grad.double() for name, p in backbone.named_parameters() if p.grad is not None}
        found.append(gradients | {"out": out.detach().double()})
    got, name = cases.worst(found[1], found[0])
    assert got <= 1e-4, name


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["plain", "state"])
def test_outputs_from_states_far_apart(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Very long sequences keep a state every 128 steps, and their outputs are made from these in the backward pass."""
    from mamba_seq.kernels.selective_scan import gluon

    monkeypatch.setattr(gluon, "MOST_KEPT", 0)
    monkeypatch.setattr(cases, "LENGTH", 3 * 128 + 17)
    compare(model_on("cuda"), "cuda", form, "float32", recompute="inner")


@pytest.mark.gpu
@pytest.mark.parametrize("option", cases.OPTIONS)
def test_ten_runs_give_the_same_bits(option: str) -> None:
    backbone = model_on("cuda")
    backbone.recompute = option
    runs = [cases.run(backbone, {}, torch.bfloat16, "cuda") for _ in range(10)]
    for again in runs[1:]:
        assert all(torch.equal(again[name], first) for name, first in runs[0].items())
