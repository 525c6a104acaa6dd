"""What a model says of examples: an array for each, on the scale of what was learnt.

    classes, several labels   probabilities (labels,)        a class a position   probabilities (L, labels)
    regression                values (targets,), (L, ...)    ctc                  the text, as numbers of symbols
    language model            mean bits a token (1,)

Shapes: B batch, L length.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.alphabet import get_alphabet
from mamba_seq.data_prep.labelled_inputs import Inputs
from mamba_seq.padding import at_least_float32
from mamba_seq.pipelines.errors import ScoringError
from mamba_seq.pipelines.runtime import mixed_precision

ROWS = 128


def predict_inputs(
    model: Any, inputs: Sequence[Inputs], device: torch.device, batch_tokens: int = 1 << 16, strand: str = "forward"
) -> list[Any]:
    """Return what the model says of each input, in their order.

    Args:
        model: of any task.
        inputs: token ids (L,) or standardised numbers (L, F); none of them empty.
        device: where the model is.
        batch_tokens: most positions in a batch, padding included.
        strand: "both" averages over each sequence and its reverse complement.

    Raises:
        ScoringError: The model gives NaN or infinity.
    """
    config: ModelConfig = model.config
    found: list[Any] = [None] * len(inputs)
    order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
    at = 0
    while at < len(order):
        rows = max(1, min(ROWS, batch_tokens // max(1, len(inputs[order[at]]))))
        batch = order[at : at + rows]
        at += rows
        results = _run(model, [inputs[i] for i in batch], device)
        if strand == "both" and config.task not in ("ctc", "language-model"):
            alphabet = get_alphabet(config.alphabet or "dna")
            other = _run(model, [alphabet.reverse_complement(inputs[i]) for i in batch], device)  # type: ignore[arg-type]
            results = [_averaged(a, b, config.task) for a, b in zip(results, other, strict=True)]
        for i, result in zip(batch, results, strict=True):
            found[i] = rescaled(result, config)
    return found


def split_outputs(model: Any, outputs: Tensor, mask: Tensor, task: str, inputs: Tensor) -> list[Any]:
    """Return what the outputs of a batch say of each of its examples, on the scale that the model computes in."""
    outputs = at_least_float32(outputs.detach())
    if task != "ctc" and not bool(torch.isfinite(outputs[mask] if outputs.ndim == 3 else outputs).all()):
        raise ScoringError(
            "the model gave a number that is none: training diverged, or the weights are damaged; try a smaller "
            "--optim.lr"
        )
    lengths = mask.sum(dim=1).tolist()
    if task == "ctc":
        return list(model.decode(outputs, mask))
    if task == "language-model":
        nats = torch.nn.functional.cross_entropy(outputs[:, :-1].transpose(1, 2), inputs[:, 1:], reduction="none")
        sums = nats.masked_fill(~mask[:, 1:], 0).sum(dim=1) / mask[:, 1:].sum(dim=1).clamp(min=1)
        return [np.array([value / math.log(2)]) for value in sums.tolist()]
    if task in ("sequence-classification", "token-classification"):
        outputs = outputs.softmax(dim=-1)
    elif task == "multi-label":
        outputs = outputs.sigmoid()
    rows = outputs.cpu().double().numpy()
    return [row[:length] if row.ndim == 2 else row for row, length in zip(rows, lengths, strict=True)]


def rescaled(result: Any, config: ModelConfig) -> Any:
    """Return a regression's result in the units of what was learnt."""
    if not config.target_mean:
        return result
    return result * np.array(config.target_scale) + np.array(config.target_mean)


def _run(model: Any, inputs: Sequence[Inputs], device: torch.device) -> list[Any]:
    longest = max(len(each) for each in inputs)
    first = inputs[0]
    padded = np.zeros((len(inputs), longest, *first.shape[1:]), dtype=np.float32 if first.ndim == 2 else np.int64)
    for row, each in zip(padded, inputs, strict=True):
        row[: len(each)] = each
    mask = torch.arange(longest)[None] < torch.tensor([len(each) for each in inputs])[:, None]
    tokens, mask = torch.from_numpy(padded).to(device), mask.to(device)
    with torch.inference_mode(), mixed_precision(device):
        outputs = model(tokens, mask=None if bool(mask.all()) else mask)
        return split_outputs(model, outputs, mask, model.config.task, tokens)


def _averaged(forward: Any, other: Any, task: str) -> Any:
    """Average over the strands: log-probabilities of classes, and otherwise the results."""
    if task.startswith("token-"):
        other = other[::-1]
    if not task.endswith("classification"):
        return (forward + other) / 2
    mean = np.exp((np.log(np.maximum(forward, 1e-30)) + np.log(np.maximum(other, 1e-30))) / 2)
    return mean / mean.sum(axis=-1, keepdims=True)
