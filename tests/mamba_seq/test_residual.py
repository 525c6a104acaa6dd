"""The residual stream: its type in every form, and blocks that are computed again for the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from mamba_seq import Backbone
from mamba_seq.backbone import ResidualBlock
from tests.mamba_seq.layouts import KINDS, boundaries, random_backbone, weighted_sum

BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """Types of what goes into and comes out of the blocks."""
    seen: set[torch.dtype] = set()

    def watched(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: ResidualBlock, residual: torch.Tensor, *args: Any) -> Any:
            result = run(self, residual, *args)
            seen.update((residual.dtype, (result[0] if isinstance(result, tuple) else result).dtype))
            return result

        return wrapped

    for name in ("forward", "step"):
        monkeypatch.setattr(ResidualBlock, name, watched(getattr(ResidualBlock, name)))
    return seen


@pytest.mark.parametrize(
    ("in_fp32", "weights", "autocast", "given", "stream"),
    [
        (True, BF16, None, BF16, FP32),
        (True, FP32, BF16, FP32, FP32),
        (True, FP32, None, FP32, FP32),
        (True, FP64, None, FP64, FP64),
        (False, BF16, None, BF16, BF16),
        (False, BF16, None, FP32, BF16),
        (False, FP32, BF16, FP32, BF16),
        (False, FP32, None, FP32, FP32),
        (False, FP64, None, FP64, FP64),
    ],
)
@pytest.mark.parametrize("kind", ["selective", "time-invariant"])
def test_type_of_the_residual_stream(
    kind: str,
    in_fp32: bool,
    weights: torch.dtype,
    autocast: torch.dtype | None,
    given: torch.dtype,
    stream: torch.dtype,
    streams: set[torch.dtype],
) -> None:
    backbone = random_backbone(kind, residual_in_fp32=in_fp32).to(weights)
    hidden = torch.randn(1, 12, 12, dtype=given)
    with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
        whole, state = backbone(hidden, return_state=True)
        outputs = [whole, backbone(hidden, state=state), backbone(hidden, cu_seqlens=boundaries([5, 7]))]
        outputs += [backbone(hidden, torch.ones(1, 12, dtype=torch.bool)), backbone.step(hidden[:, 0], state)]
    assert streams == {stream}
    assert {out.dtype for out in outputs} == {weights}


@pytest.mark.parametrize("kind", KINDS)
def test_a_16_bit_residual_trains_and_follows_float32(kind: str) -> None:
    backbone = random_backbone(kind, residual_in_fp32=False, n_layer=4)
    hidden = torch.randn(2, 60, 12)
    expected = backbone(hidden).detach()
    with torch.autocast("cpu", dtype=BF16):
        out = backbone(hidden)
    weighted_sum([out]).backward()
    assert 1e-4 < (out.detach() - expected).norm() / expected.norm() < 3e-2
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


def arguments(backbone: Backbone) -> Iterator[dict[str, Any]]:
    """Give the ways to call a backbone with (1, 21, d_model)."""
    with torch.no_grad():
        _, state = backbone.eval()(torch.randn(1, 5, 12), return_state=True)
        _, two = backbone(torch.randn(2, 5, 12), return_state=True)
    mask = torch.arange(21)[None] < 17
    yield {}
    yield {"mask": mask, "state": state, "return_state": True}
    yield {"cu_seqlens": boundaries([20, 1]), "state": two, "return_state": True}
    yield {"state": state}


@pytest.mark.parametrize("every", [True, 2, 3, 9])
@pytest.mark.parametrize("kind", ["selective", "time-invariant"])
def test_checkpointing_gives_the_same_gradients(kind: str, every: bool | int) -> None:
    """Bit for bit, with dropout drawn again, in every form."""
    backbone = random_backbone(kind, n_layer=5, dropout=0.3)
    hidden = torch.randn(1, 21, 12, requires_grad=True)
    for form in arguments(backbone):
        found = []
        for backbone.gradient_checkpointing in (False, every):
            backbone.zero_grad()
            hidden.grad = None
            torch.manual_seed(4)
            result = backbone.train()(hidden, **form)
            out, state = result if form.get("return_state") else (result, [])
            weighted_sum([out, *(tensor for s in state for tensor in (s.conv, s.ssm))]).backward()
            gradients = {name: p.grad.clone() for name, p in backbone.named_parameters()}
            found.append(gradients | {"output": out.detach(), "hidden": hidden.grad.clone()})
        plain, checkpointed = found
        for name, expected in plain.items():
            assert torch.equal(checkpointed[name], expected), (name, list(form))


@pytest.mark.parametrize(("every", "kept"), [(True, 5), (2, 3), (5, 1)])
def test_checkpointing_keeps_the_residual_stream_alone(every: bool | int, kept: int) -> None:
    backbone = random_backbone(n_layer=5)
    hidden = torch.randn(1, 400, 12)
    saved: dict[bool, list[int]] = {}
    for checkpoint in (False, True):
        backbone.gradient_checkpointing = every if checkpoint else False
        sizes = saved[checkpoint] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            if tensor.numel() >= 400 * 12:
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            backbone(hidden).sum().backward()
    assert sum(saved[False]) > 50 * 400 * 12
    assert sum(saved[True]) <= (kept + 3) * 400 * 12  # and what the last normalisation needs


def test_checkpointing_costs_nothing_without_gradients(streams: set[torch.dtype]) -> None:
    backbone = random_backbone()
    backbone.gradient_checkpointing = True
    hidden = torch.randn(1, 9, 12)
    with torch.no_grad():
        got = backbone(hidden)
        backbone.step(hidden[:, 0], backbone.allocate_state(1))
    backbone.gradient_checkpointing = False
    assert torch.equal(got, backbone(hidden))


def test_a_negative_distance_of_checkpoints_is_refused() -> None:
    backbone = random_backbone()
    backbone.gradient_checkpointing = -1
    with pytest.raises(ValueError, match="gradient_checkpointing is -1, expected True, False or a number of blocks"):
        backbone(torch.randn(1, 4, 12))


# dynamo warns of what it does itself, such as asking a tensor for .grad, and then stops at its own warning
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_backbone_with_checkpoints_is_the_same() -> None:
    backbone = random_backbone("time-invariant")
    backbone.gradient_checkpointing = True
    hidden, found = torch.randn(2, 20, 12), []
    torch._dynamo.reset()
    for run in (backbone, torch.compile(backbone, backend="aot_eager")):
        backbone.zero_grad()
        out = run(hidden)
        weighted_sum([out]).backward()
        found.append({name: p.grad.clone() for name, p in backbone.named_parameters()} | {"output": out.detach()})
    torch._dynamo.reset()
    for name, expected in found[0].items():
        assert (found[1][name] - expected).abs().max() <= 1e-5 * expected.abs().max(), name
