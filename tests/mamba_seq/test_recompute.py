"""What a backbone computes again for its backward pass: the same results, and the bytes that are kept instead."""

from typing import Any

import pytest
import torch

from mamba_seq import Backbone, Mamba, MambaConfig
from mamba_seq.inner import Inside
from mamba_seq.normed import NormedProjection
from tests.mamba_seq import recompute_cases as cases
from tests.mamba_seq.layouts import KINDS, random_backbone, weighted_sum

FORMS = [name for name, _ in cases.forms(random_backbone())]


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.short_segments(monkeypatch)


def results(backbone: Backbone, form: str, arithmetic: str) -> dict[str, torch.Tensor]:
    _, autocast = cases.ARITHMETIC[arithmetic]
    return cases.run(backbone, dict(cases.forms(backbone))[form], autocast)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["inner", "segments"])
def test_same_results_and_gradients(option: str, kind: str, form: str) -> None:
    backbone = random_backbone(kind, norm="layer" if form == "packed" else "rms", bias=form == "padded")
    expected = results(backbone, form, "float32")
    backbone.recompute = option
    found = results(backbone, form, "float32")
    got, name = cases.worst(found, expected)
    assert got <= (2e-4 if kind.startswith("time") else 3e-5), name


@pytest.mark.parametrize("arithmetic", ["autocast", "bfloat16"])
@pytest.mark.parametrize("option", cases.OPTIONS)
@pytest.mark.parametrize("kind", ["selective", "complex"])
def test_16_bits_stay_near_float64(kind: str, option: str, arithmetic: str) -> None:
    weights, _ = cases.ARITHMETIC[arithmetic]
    backbone = random_backbone(kind).to(weights)  # both start from the same rounded weights
    backbone.recompute = option
    found = results(backbone, "state", arithmetic)
    expected = results(backbone.double(), "state", "float64")
    got, name = cases.worst(found, expected)
    assert got <= 0.06, name


def test_float64_goes_through_the_reference() -> None:
    backbone = random_backbone().double()
    expected = results(backbone, "state", "float64")
    for backbone.recompute in ("inner", "segments"):
        assert cases.worst(results(backbone, "state", "float64"), expected)[0] <= 1e-12


@pytest.mark.parametrize("every", [True, 2, 7])
@pytest.mark.parametrize("option", ["inner", "segments"])
def test_together_with_checkpoints(option: str, every: bool | int) -> None:
    backbone = random_backbone(n_layer=3)
    expected = results(backbone, "state", "float32")
    backbone.recompute, backbone.gradient_checkpointing = option, every
    assert cases.worst(results(backbone, "state", "float32"), expected)[0] <= 3e-5


def test_frozen_weights_and_a_state_alone() -> None:
    backbone = random_backbone()
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name.endswith(("x_proj.weight", "A_log")))
    found = []
    for backbone.recompute in ("nothing", "inner"):
        backbone.zero_grad()
        _, states = backbone(torch.randn(1, 9, 12, generator=torch.Generator().manual_seed(0)), return_state=True)
        weighted_sum([s.ssm for s in states]).backward()
        found.append({n: p.grad.double() for n, p in backbone.named_parameters() if p.grad is not None})
    assert len(found[0]) == 4
    assert cases.worst(found[1], found[0])[0] <= 1e-5


def test_dropout_in_segments_is_drawn_again() -> None:
    """The gradient of a sum of outputs is linear in what was dropped: with other numbers it would not match."""
    backbone = random_backbone(n_layer=1, dropout=0.5).train()
    backbone.recompute = "segments"
    hidden = torch.randn(1, cases.LENGTH, 12, requires_grad=True)
    torch.manual_seed(3)
    out = backbone(hidden)
    direction = torch.randn(12, 24) / 100
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    weight = backbone.blocks[0].mixer.out_proj.weight
    slope = float((weight.grad * direction).sum())
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * direction
        torch.manual_seed(3)
        values.append(float((backbone(hidden) * weights).sum().detach()))
        with torch.no_grad():
            weight -= sign * direction
    assert abs((values[0] - values[1]) / 2 - slope) <= 2e-2 * abs(slope)


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"recompute": "all"}, "recompute is 'all', expected one of 'auto', 'nothing', 'inner', 'segments'")],
)
def test_refusals(fields: dict[str, Any], error: str) -> None:
    backbone = random_backbone()
    for name, value in fields.items():
        setattr(backbone, name, value)
    with pytest.raises(ValueError, match=error):
        backbone(torch.randn(1, 4, 12))


def test_layers_with_hooks_or_of_other_types_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter around a projection must not be passed by."""

    class Adapted(torch.nn.Linear):
        pass

    def refuse(*_: object) -> None:
        raise AssertionError("the projection's weight was used without calling it")

    for name in ("in_proj", "x_proj", "out_proj"):
        backbone = random_backbone(n_layer=1)
        backbone.recompute = "inner"
        mixer = backbone.blocks[0].mixer
        calls: list[int] = []
        if name == "in_proj":
            mixer.in_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            monkeypatch.setattr(NormedProjection, "apply", refuse)
            backbone(torch.randn(1, 9, 12))
            assert calls == [1]
            monkeypatch.undo()
            continue
        getattr(mixer, name).__class__ = Adapted
        monkeypatch.setattr(Inside, "apply", refuse)
        backbone(torch.randn(1, 9, 12))
        monkeypatch.undo()


def kept_bytes(backbone: Backbone, hidden: torch.Tensor, autocast: bool) -> int:
    """Return the bytes that wait for the backward pass, every storage once, weights and the input not counted."""
    backbone.zero_grad()
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", enabled=autocast):
        out = backbone(hidden)
        own = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
        total = sum(size for at, size in storages.items() if at not in own)
    assert out.requires_grad
    return total


@pytest.mark.parametrize(
    ("option", "bytes_a_position"),
    [
        # residual after; D = 2 d_model: 16 bits each of d_model and D. "little" is 2 for the residual stream, 8 for
        # in_proj's output, x_proj's output (R + 2 N) / d_model, states on a CPU every 64 steps, y
        ("nothing", (34.0, 60.0)),
        ("inner", (14.0, 20.5)),
        ("segments", (2.0, 2.2)),
    ],
)
def test_bytes_a_block_keeps(
    option: str, bytes_a_position: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a block for every position and channel of the residual stream, bf16 autocast, 16-bit residual."""
    monkeypatch.setattr("mamba_seq.backbone.segment_length", lambda residual, config: 256)
    d_model, length = 64, 1024
    hidden = torch.randn(1, length, d_model, dtype=torch.bfloat16)
    totals = []
    for n_layer in (1, 3):
        backbone = Backbone(MambaConfig(d_model=d_model, n_layer=n_layer, residual_in_fp32=False))
        backbone.recompute = option
        totals.append(kept_bytes(backbone, hidden, autocast=True))
    a_block = (totals[1] - totals[0]) / 2 / (length * d_model)
    low, high = bytes_a_position
    assert low <= a_block <= high, a_block


def test_a_block_alone_keeps_what_it_is_told() -> None:
    torch.manual_seed(0)
    block, hidden = Mamba(MambaConfig(d_model=12, n_layer=1, d_state=5)), torch.randn(2, 70, 12)
    found = []
    for keep in ("autograd", "everything", "little", "auto"):
        block.zero_grad()
        out = block(hidden, keep=keep)
        weighted_sum([out]).backward()
        found.append({name: p.grad.double() for name, p in block.named_parameters()} | {"out": out.detach().double()})
    for other in found[1:]:
        assert cases.worst(other, found[0])[0] <= 1e-5
