"""The head of a trained DNA classifier, fitted again on windows as they will be read.

Training sees mutated, masked windows in a random order, and ends after some minutes; small shifts of the scores of a
window, far below its noise, decide what the sum of hundreds of windows says. So the head is fitted once more, its
vectors held fixed: multinomial logistic regression on the vectors of whole training windows of every length, read in
windows of the context on both strands and averaged, a window counting by its bases that are not N, as
`mamba_seq.pipelines.evidence` does. What is fitted is

    W = W0 + D / spread,   b,     mean over lengths of the cross-entropy of (W x + b) n^growth  +  strength |D|^2 / 2

for vectors x averaged over n windows of the context, their spread, and the head (W0, b0) that was trained. Strong
penalties move the offsets b alone. The strength is chosen on validation windows, and the trained head stays if nothing
is better there.

Shapes: S sequences, K labels, d = d_model.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.dna import GenomeData
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.genome_windows import EvaluationWindows
from mamba_seq.data_prep.splits import Split
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines.train.recipe import Recipe
from mamba_seq.pipelines.vectors import VectorReader

log = logging.getLogger("mamba_seq.train")

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)
"""Penalties that are tried."""
SEED = 1
"""Of the training windows; those of tests and of validation have the data's."""


class Read(NamedTuple):
    """Sequences of one length as a classifier reads them."""

    vectors: Tensor
    """Averaged over windows and strands (S, d), float64."""
    labels: Tensor
    """(S,)"""
    windows: int
    """Of the context, in each."""


class Head(NamedTuple):
    """Weights (K, d) and offsets (K,), float64."""

    weight: Tensor
    bias: Tensor

    def loss(self, reads: Sequence[Read], growth: float) -> Tensor:
        """Return the cross-entropy, every length counting alike."""
        parts = [
            F.cross_entropy(F.linear(read.vectors, self.weight, self.bias) * read.windows**growth, read.labels)
            for read in reads
        ]
        return torch.stack(parts).mean()


def refit(model: SequenceClassifier, recipe: Recipe, data: GenomeData, device: torch.device) -> dict[str, Any] | None:
    """Fit the head of a model anew; `put_head` puts it there.

    Args:
        model: trained, where `device` is, in evaluation mode.
        recipe: with `refit_windows`.
        data: set up.
        device: of the model.

    Returns:
        What was found: the strength that was chosen (None for the head as it was trained), the cross-entropy on
        validation windows before and after, and the head's weight (K, d) and bias (K,), as lists. None where no length
        fits into the validation regions: nothing can be chosen there, and the head stays as it was trained.
    """
    growth = recipe.evidence_growth or 0.0
    held_out = read_lengths(model, recipe, data, "validation", recipe.evaluation.calibration_windows, device)
    if not held_out:
        log.warning("the validation regions are shorter than every length of data: the head stays as it was trained")
        return None
    train = read_lengths(model, recipe, data, "train", recipe.refit_windows, device)
    old = Head(model.head.weight.detach().double().cpu(), model.head.bias.detach().double().cpu())
    best, strength = choose(old, train, held_out, growth)
    before, after = (float(head.loss(held_out, growth)) for head in (old, best))
    what = "the trained head stays" if strength is None else f"head fitted again, strength {strength:g}"
    log.info("%s: %.4f nats on validation windows, %.4f before", what, after, before)
    head = {"weight": best.weight.tolist(), "bias": best.bias.tolist()}
    return {"strength": strength, "before": before, "after": after, **head}


def put_head(model: SequenceClassifier, found: dict[str, Any]) -> None:
    """Give a model the head that `refit` has found."""
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor(found["weight"], dtype=torch.float64))
        model.head.bias.copy_(torch.tensor(found["bias"], dtype=torch.float64))


def choose(old: Head, train: Sequence[Read], held_out: Sequence[Read], growth: float) -> tuple[Head, float | None]:
    """Return the head with the lowest loss on held-out sequences, and its strength; None for the old head."""
    best, chosen, lowest = old, None, float(old.loss(held_out, growth))
    start = old
    for strength in STRENGTHS:
        start = fit(old, start, train, growth, strength)
        loss = float(start.loss(held_out, growth))
        if loss < lowest:
            best, chosen, lowest = start, strength, loss
    return best, chosen


def fit(old: Head, start: Head, train: Sequence[Read], growth: float, strength: float) -> Head:
    """Return the head that fits best, held to the old one's weights with a strength; the search begins at `start`."""
    everything = torch.cat([read.vectors for read in train])
    centre, spread = everything.mean(dim=0), everything.std(dim=0).clamp(min=1e-9)
    change = ((start.weight - old.weight) * spread).requires_grad_()
    # the offsets of centred vectors: those of the others would follow every change of the weights
    offset = (start.bias + start.weight @ centre).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [change, offset], max_iter=300, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def head() -> Head:
        weight = old.weight + change / spread
        return Head(weight, offset - weight @ centre)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = head().loss(train, growth) + strength / 2 * change.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return head()


def read_lengths(
    model: SequenceClassifier, recipe: Recipe, data: GenomeData, split: Split, per_class: int, device: torch.device
) -> list[Read]:
    """Read windows of a split, so many a class, of every length that is trained on and fits."""
    reader = VectorReader(model, device)
    found = []
    for length in sorted(set(recipe.data.lengths)):
        try:
            windows = data.evaluation_windows(split, length, per_class, SEED if split == "train" else None)
        except TooFewData:
            log.info("the head is fitted without %s windows of %s bases: there is no room", split, f"{length:,}")
            continue
        found.append(read(reader, windows, recipe.context))
    return found


def read(reader: VectorReader, windows: EvaluationWindows, context: int) -> Read:
    """Read every sequence in windows of the context, which count by their bases that are not N."""
    each = max(1, -(-windows.length // context))
    at_once = max(1, reader.chunk // context)
    pieces: list[Codes] = []
    parts, bases = [], []
    for i in range(len(windows)):
        codes = windows[i][0]
        cut = [codes[at : at + context] for at in range(0, len(codes), context)]
        bases.append([np.count_nonzero(piece < DNA.unknown_code) for piece in cut])
        pieces += cut
        while len(pieces) >= at_once or (pieces and i == len(windows) - 1):
            parts.append(reader.together(pieces[:at_once]))
            pieces = pieces[at_once:]
    vectors = torch.from_numpy(np.concatenate(parts)).double().unflatten(0, (len(windows), each))
    weights = torch.tensor(bases, dtype=torch.float64)
    weights /= weights.sum(dim=1, keepdim=True).clamp(min=1.0)
    return Read((vectors * weights[..., None]).sum(dim=1), torch.tensor(windows.labels), each)
