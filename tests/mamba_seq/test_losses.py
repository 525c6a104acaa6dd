"""The loss of every model: what torch gives for the targets that count, and 0, not NaN, where none does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.heads import losses
from mamba_seq.heads.losses import IGNORED
from tests.mamba_seq.layouts import boundaries, pad
from tests.mamba_seq.models import TASKS, small_model, some_input

CLASSIFIERS = ("sequence-classification", "token-classification")
NUMBERS = ("multi-label", "sequence-regression", "token-regression")


def case(task: str) -> tuple[Any, Tensor, Tensor]:
    """Return a model, outputs and targets of two sequences."""
    model = small_model(task)
    outputs = model(some_input(model, 2, 6))
    if task in CLASSIFIERS:
        return model, outputs, torch.randint(0, 3, outputs.shape[:-1])
    if task == "language-model":
        return model, outputs, torch.randint(0, 7, (2, 6))
    if task == "ctc":
        return model, outputs, torch.tensor([[0, 2, IGNORED], [1, 1, 2]])
    return model, outputs, torch.rand(outputs.shape)


@pytest.mark.parametrize("task", CLASSIFIERS)
def test_classes(task: str) -> None:
    model, logits, targets = case(task)
    mask = torch.rand(targets.shape) < 0.5
    mask.view(-1)[0] = True
    weight = torch.tensor([1.0, 3.0, 0.5])
    flat, classes = logits.reshape(-1, 3), targets.flatten()
    torch.testing.assert_close(model.loss(logits, targets), F.cross_entropy(flat, classes))
    kept = mask.flatten()
    torch.testing.assert_close(model.loss(logits, targets, mask), F.cross_entropy(flat[kept], classes[kept]))
    for smoothing in (0.0, 0.1):
        want = F.cross_entropy(flat[kept], classes[kept], weight, label_smoothing=smoothing)
        torch.testing.assert_close(model.loss(logits, targets, mask, weight, label_smoothing=smoothing), want)
    ignored = targets.masked_fill(~mask, IGNORED)
    torch.testing.assert_close(model.loss(logits, ignored), F.cross_entropy(flat[kept], classes[kept]))
    own = targets.masked_fill(~mask, 99)
    torch.testing.assert_close(model.loss(logits, own, ignore_index=99), model.loss(logits, targets, mask))


@pytest.mark.parametrize("task", NUMBERS)
def test_numbers(task: str) -> None:
    model, outputs, targets = case(task)
    measure: Callable[..., Tensor] = F.binary_cross_entropy_with_logits if task == "multi-label" else F.mse_loss
    torch.testing.assert_close(model.loss(outputs, targets), measure(outputs, targets))
    kept = torch.rand(targets.shape) < 0.5
    kept.view(-1)[0] = True
    want = measure(outputs[kept], targets[kept])
    torch.testing.assert_close(model.loss(outputs, targets, kept), want)
    unknown = targets.masked_fill(~kept, float("nan"))
    loss = model.loss(outputs, unknown)
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    rows = torch.rand(targets.shape[:-1]) < 0.5
    rows.view(-1)[0] = True
    torch.testing.assert_close(model.loss(outputs, targets, rows), measure(outputs[rows], targets[rows]))


def test_labels_may_be_bools_and_have_weights() -> None:
    model, logits, targets = case("multi-label")
    present, weight = targets > 0.5, torch.tensor([1.0, 5.0, 2.0])
    want = F.binary_cross_entropy_with_logits(logits, present.float(), pos_weight=weight)
    torch.testing.assert_close(model.loss(logits, present, pos_weight=weight), want)


def test_next_tokens() -> None:
    model, logits, tokens = case("language-model")
    want = F.cross_entropy(logits[:, :-1].reshape(-1, 7), tokens[:, 1:].flatten())
    torch.testing.assert_close(model.loss(logits, tokens), want)
    unwanted = tokens.clone()
    unwanted[0, 3] = IGNORED
    kept = torch.ones(2, 5, dtype=torch.bool)
    kept[0, 2] = False
    want = F.cross_entropy(logits[:, :-1][kept], tokens[:, 1:][kept])
    torch.testing.assert_close(model.loss(logits, unwanted), want)


@pytest.mark.parametrize("task", ["language-model", "token-classification", "token-regression"])
def test_positions_packed_or_padded_are_those_of_sequences_alone(task: str) -> None:
    model = small_model(task)
    lengths = [5, 1, 9]
    inputs = [some_input(model, length) for length in lengths]
    made = {"token-regression": lambda n: torch.rand(n, 3), "token-classification": lambda n: torch.randint(0, 3, (n,))}
    targets = inputs if task == "language-model" else [made[task](length) for length in lengths]
    count = [length - (task == "language-model") for length in lengths]
    alone = [model.loss(model(x[None]), y[None]) * n for x, y, n in zip(inputs, targets, count, strict=True)]
    want = sum(alone) / sum(count)
    cu_seqlens = boundaries(lengths)
    more = {"cu_seqlens": cu_seqlens} if task == "language-model" else {}
    packed = model.loss(model(torch.cat(inputs)[None], cu_seqlens=cu_seqlens), torch.cat(targets)[None], **more)
    torch.testing.assert_close(packed, want, rtol=1e-5, atol=1e-6)
    for side in ("left", "right"):
        (rows, mask), (expected, _) = pad(inputs, side, 0), pad(targets, side, 0)
        torch.testing.assert_close(model.loss(model(rows, mask), expected, mask), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "ctc"])
def test_no_target_is_no_loss(task: str) -> None:
    model, outputs, targets = case(task)
    nothing = torch.zeros(targets.shape, dtype=torch.bool)
    weights = {"class_weight": torch.tensor([1.0, 2.0, 3.0])} if task in CLASSIFIERS else {}
    loss = model.loss(outputs, targets, nothing, **weights)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_of_16_bits_is_computed_in_float32(task: str) -> None:
    model, outputs, targets = case(task)
    loss = model.loss(outputs.bfloat16(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model.loss(outputs.bfloat16().float(), targets), rtol=0, atol=0)


@pytest.mark.parametrize("task", TASKS)
def test_targets_that_would_broadcast_are_refused(task: str) -> None:
    model, outputs, targets = case(task)
    with pytest.raises(ValueError, match=r"(targets|tokens) has shape .*expected"):
        model.loss(outputs, targets[:1])
    with pytest.raises(ValueError, match=r"mask .*expected"):
        model.loss(outputs, targets, torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask .*expected bool"):
        model.loss(outputs, targets, torch.ones(targets.shape))
    if task != "multi-label":
        other = targets.float() if task not in NUMBERS else targets.long()
        with pytest.raises(ValueError, match=r"has type (float32|int64), expected"):
            model.loss(outputs, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_logits_are_added_up_in_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss and gradient, and no float32 copy of all logits waits for the backward pass."""
    logits = torch.randn(3, 50, 7).to(dtype).requires_grad_()
    targets, weight = torch.randint(0, 7, (3, 50)), torch.rand(7)
    targets[0, :9] = IGNORED
    results = []
    for most in (losses.MOST_LOGITS, 7 * 40):
        monkeypatch.setattr(losses, "MOST_LOGITS", most)
        kept: list[int] = []

        def note(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            if tensor.dtype == torch.float32:
                kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = losses.cross_entropy(logits, targets, class_weight=weight, label_smoothing=0.1)
        results.append((loss.detach(), *torch.autograd.grad(loss, logits), max(kept)))
    torch.testing.assert_close(results[1][:2], results[0][:2])
    assert results[0][2] >= logits.numel()
    if dtype == torch.bfloat16:
        assert results[1][2] < 7 * 40
