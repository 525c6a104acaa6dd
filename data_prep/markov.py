"""Markov models of DNA: the next base given the k before it, the baseline that stands beside a language model.

Counts of every order up to the highest back off to the next lower one (interpolated, a Dirichlet prior):

    p_k(b | c_1 .. c_k) = (n(c_1 .. c_k b) + alpha p_(k-1)(b | c_2 .. c_k)) / (n(c_1 .. c_k) + alpha),   p_-1 = 1/4

A context ends at an N and at the beginning of a sequence: there the order is as high as the bases that are known.
"""

from collections.abc import Iterable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import DNA, Codes

HIGHEST = 12
ALPHAS = (1.0, 4.0, 16.0, 64.0)
"""Priors that are tried."""


class MarkovCounts:
    """Counts of k + 1 bases in a row, from which models of every order up to k are made.

    Args:
        order: k, at most 12: the table has 4^(k+1) counts of 4 bytes.
    """

    def __init__(self, order: int) -> None:
        if not 0 <= order <= HIGHEST:
            raise ValueError(f"order is {order}, expected 0 to {HIGHEST}")
        self.order = order
        self._counts = np.zeros(4 ** (order + 1), dtype=np.uint32)

    def add(self, codes: Codes, both_strands: bool = True) -> None:
        """Count a sequence of token ids (n,), and its other strand."""
        _count(np.ascontiguousarray(codes), self.order, self._counts)
        if both_strands:
            _count(np.ascontiguousarray(DNA.reverse_complement(codes)), self.order, self._counts)

    def model(self, alpha: float, order: int | None = None) -> "MarkovModel":
        """Return the model of an order up to the highest, that by default."""
        order = self.order if order is None else order
        counts = self._counts.astype(np.float64).reshape(-1, 4)
        tables = []
        for k in range(self.order, -1, -1):
            if k <= order:
                tables.append(counts)
            counts = counts.reshape(4, -1, 4).sum(axis=0) if k else counts
        below = np.full((1, 4), 0.25)
        flat = []
        for table in reversed(tables):
            prior = alpha * np.broadcast_to(below, (max(1, len(table) // len(below)), *below.shape)).reshape(-1, 4)
            below = (table + prior) / (table.sum(axis=1, keepdims=True) + alpha)
            flat.append(np.log2(below).astype(np.float32).ravel())
        return MarkovModel(order, alpha, np.concatenate(flat))


class MarkovModel:
    """The logarithms of the probabilities of one order and all below it, one after the other."""

    def __init__(self, order: int, alpha: float, log2: NDArray[np.float32]) -> None:
        self.order = order
        self.alpha = alpha
        self._log2 = log2

    def log2_probabilities(self, codes: Codes) -> NDArray[np.float32]:
        """Log2 of the probability of each base (n,), NaN where it is N."""
        found: NDArray[np.float32] = _score(np.ascontiguousarray(codes), self.order, self._log2)
        return found


def bits_per_base(model: MarkovModel, sequences: Iterable[Codes]) -> float:
    """Mean bits over all bases of sequences that are no N."""
    total, bases = 0.0, 0
    for codes in sequences:
        found = model.log2_probabilities(codes)
        total -= float(np.nansum(found, dtype=np.float64))
        bases += int(np.count_nonzero(codes < 4))
    return total / max(1, bases)


def choose(counts: MarkovCounts, validation: list[Codes], orders: Iterable[int]) -> MarkovModel:
    """Return the model of that order and prior that says validation sequences best."""
    tried = (counts.model(alpha, order) for order in orders for alpha in ALPHAS)
    return min(tried, key=lambda model: bits_per_base(model, validation))


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True)(function)


@_compiled
def _count(codes: Any, order: int, counts: Any) -> None:
    mask = 4 ** (order + 1) - 1
    word, known = 0, 0
    for code in codes:
        if code > 3:
            known = 0
            continue
        word = (word << 2 | code) & mask
        known += 1
        if known > order:
            counts[word] += 1


@_compiled
def _score(codes: Any, order: int, log2: Any) -> Any:
    found = np.empty(len(codes), dtype=np.float32)
    word, known = 0, 0
    for i in range(len(codes)):
        code = codes[i]
        if code > 3:
            known = 0
            found[i] = np.nan
            continue
        k = min(order, known)
        word = word << 2 | code
        # tables of the orders below k have 4 + 16 + .. + 4^k entries
        found[i] = log2[(4 ** (k + 1) - 4) // 3 + (word & (4 ** (k + 1) - 1))]
        known += 1
        word &= 4 ** (order + 1) - 1
    return found
