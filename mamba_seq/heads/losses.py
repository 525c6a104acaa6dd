"""Losses: means over the targets that count, in float32, 0 where none does.

A target is left out where its mask is false, where it is `IGNORED` (a class), or NaN (a number). Nothing here waits for
the device.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_seq.padding import at_least_float32

IGNORED = -100
"""A class that is not known: torch's and Hugging Face's `ignore_index`."""

MOST_LOGITS = 1 << 26
"""Logits whose float32 copy and logarithms are in memory at a time; those of further positions are made after them."""


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of logits (..., labels) and classes (...), weighted by class if asked for."""
    check_targets("targets", targets, logits.shape[:-1], floating=False)
    if mask is not None:
        check_targets_mask(mask, targets.shape)
        targets = targets.masked_fill(~mask, ignore_index)
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if class_weight is not None:
        class_weight = class_weight.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
    options = {"weight": class_weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    total = _summed_cross_entropy(logits, targets, options)
    counts = targets != ignore_index
    if class_weight is None:
        return total / counts.sum().clamp(min=1)
    weight = class_weight[targets.masked_fill(~counts, 0)].masked_fill(~counts, 0).sum()
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, mask: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """Return the mean binary cross-entropy of logits and targets (..., labels), each 0 to 1, NaN or bool."""
    check_targets("targets", targets, logits.shape, floating=None)
    logits = at_least_float32(logits)
    known, targets = _known(targets.to(logits.dtype), mask)
    weight = None if pos_weight is None else pos_weight.to(logits)
    return _mean(F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none"), known)


def squared_error(outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of outputs and targets (..., targets)."""
    check_targets("targets", targets, outputs.shape, floating=True)
    outputs = at_least_float32(outputs)
    known, targets = _known(targets.to(outputs.dtype), mask)
    return _mean((outputs - targets).square(), known)


def check_targets(name: str, targets: Tensor, shape: torch.Size | tuple[int, ...], floating: bool | None) -> None:
    """Raise ValueError unless targets have the shape, and are numbers (`floating`) or classes, or either (None)."""
    if targets.shape != shape:
        raise ValueError(f"{name} has shape {tuple(targets.shape)}, expected {tuple(shape)} as the outputs need")
    if floating is not None and targets.is_floating_point() != floating:
        kind = str(targets.dtype).removeprefix("torch.")
        raise ValueError(f"{name} has type {kind}, expected {'floating-point' if floating else 'int64, the classes'}")


def check_targets_mask(mask: Tensor, *shapes: torch.Size) -> None:
    """Raise ValueError unless `mask` is bool and of one of the shapes."""
    if mask.dtype != torch.bool or mask.shape not in shapes:
        kind = str(mask.dtype).removeprefix("torch.")
        allowed = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"mask is {kind} {tuple(mask.shape)}, expected bool {allowed} as the targets need")


def _summed_cross_entropy(logits: Tensor, targets: Tensor, options: dict[str, Any]) -> Tensor:
    """Return the sum of cross-entropies of logits (n, labels), in pieces where they are many."""

    def summed(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(at_least_float32(logits), targets, reduction="sum", **options)

    rows = max(1, MOST_LOGITS // max(1, logits.shape[1]))
    if len(logits) <= rows or torch.compiler.is_compiling():
        return summed(logits, targets)
    pieces = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.stack(
        [checkpoint(summed, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    ).sum()


def _known(targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which targets count, and the targets with 0 in place of the others: a NaN would reach the gradients."""
    known = ~targets.isnan()
    if mask is not None:
        check_targets_mask(mask, targets.shape, targets.shape[:-1])
        known &= mask if mask.shape == targets.shape else mask[..., None]
    return known, targets.masked_fill(~known, 0)


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    return losses.masked_fill(~known, 0).sum() / known.sum().clamp(min=1)
