"""From CTC's outputs to a text: the best path, and the prefix beam search, which adds up the paths of each text.

An output sequence stands for the text that is left when repeated outputs become one and blanks go (Graves et al. 2006,
section 3.1). Output 0 is the blank, and output i + 1 stands for symbol i of a text.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

BLANK = 0


class Hypothesis(NamedTuple):
    """A text that a beam search found."""

    text: list[int]
    log_probability: float
    """Of all its paths that the search kept."""


def collapse(path: Iterable[int]) -> list[int]:
    """Return the text of a path of outputs: repeats become one, then blanks go."""
    text, previous = [], BLANK
    for output in path:
        if output not in (BLANK, previous):
            text.append(output - 1)
        previous = output
    return text


def best_path(log_probabilities: Tensor) -> list[int]:
    """Return the text of the most probable output at every position of (L, 1 + symbols): fast, not always the best."""
    check_outputs(log_probabilities)
    return collapse(log_probabilities.argmax(dim=-1).tolist())


def beam_search(log_probabilities: Tensor, beam_width: int) -> list[Hypothesis]:
    """Return the most probable texts, best first: the prefix beam search of Hannun et al. (arXiv 1408.2873).

    For every prefix it keeps the probability of the paths that end in a blank, after which a repeated symbol is a new
    one, and that of those which do not.

    Args:
        log_probabilities: of the outputs at every position (L, 1 + symbols), normalised.
        beam_width: how many prefixes stay after every position. If none is ever dropped, the result is exact.

    Raises:
        ValueError: for another shape, or a beam_width below 1.
    """
    check_outputs(log_probabilities)
    if beam_width < 1:
        raise ValueError(f"beam_width is {beam_width}, expected at least 1")
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for outputs in log_probabilities.double().tolist():
        following: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blank, symbol) in beams.items():
            total = log_add(blank, symbol)
            _add(following, prefix, total + outputs[BLANK], -math.inf)
            for s, log_p in enumerate(outputs[1:]):
                if prefix and prefix[-1] == s:
                    _add(following, prefix, -math.inf, symbol + log_p)  # the same symbol goes on
                    _add(following, (*prefix, s), -math.inf, blank + log_p)
                else:
                    _add(following, (*prefix, s), -math.inf, total + log_p)
        # equals in the order of their texts, so that the result does not depend on that of a dictionary
        best = sorted(following.items(), key=lambda item: (-log_add(*item[1]), item[0]))
        beams = dict(best[:beam_width])
    return [Hypothesis(list(prefix), log_add(*ends)) for prefix, ends in beams.items()]


def log_add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def check_outputs(log_probabilities: Tensor) -> None:
    """Raise ValueError unless it is a matrix of outputs, the blank among them."""
    if log_probabilities.ndim != 2 or log_probabilities.shape[1] < 1 or not torch.is_floating_point(log_probabilities):
        raise ValueError(
            f"log_probabilities is {tuple(log_probabilities.shape)}, expected (L, 1 + symbols) for one sequence"
        )


def _add(
    beams: dict[tuple[int, ...], tuple[float, float]], prefix: tuple[int, ...], blank: float, symbol: float
) -> None:
    if blank == symbol == -math.inf:
        return  # no path leads there, such as to a repeated symbol with no blank before it
    before = beams.get(prefix, (-math.inf, -math.inf))
    beams[prefix] = (log_add(before[0], blank), log_add(before[1], symbol))
