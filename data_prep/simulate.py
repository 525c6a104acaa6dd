"""Sequences that look like a genome and are none: Markov chains of its k-mers, for examples and tests.

A chain of order k draws each base given the k before it, with the frequencies of the genome it was fitted to, smoothed
by a pseudo-count. It keeps composition and codon-like biases, and no gene: of a genome of some million
bases, a chain of order 8 has 65,536 contexts of about 50 bases each, too few to repeat a stretch of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import DNA, Codes

BASES = 4
LARGEST_ORDER = 12  # 4^13 counts are 537 MB


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """Probabilities of the next base, given the bases before it.

    Args:
        order: Number of bases before it, k.
        probabilities: (4^k, 4) float64, a row a context; the context's last base is its lowest digit.
        contexts: (4^k,) float64, how often each context is where a sequence begins.
    """

    order: int
    probabilities: NDArray[np.float64]
    contexts: NDArray[np.float64]

    @classmethod
    def fit(
        cls, sequences: Iterable[Codes], order: int = 8, pseudo_count: float = 0.1, both_strands: bool = True
    ) -> "MarkovChain":
        """Count the (order + 1)-mers of token ids (L,), leaving those out that have an N.

        Args:
            sequences: Token ids of each record.
            order: Number of bases that the next depends on.
            pseudo_count: Added to the count of each (order + 1)-mer.
            both_strands: Count the reverse complements too.

        Raises:
            ValueError: The order is negative or larger than 12, the pseudo-count is not above 0, or no sequence has
                a (order + 1)-mer.
        """
        if not 0 <= order <= LARGEST_ORDER:
            raise ValueError(f"order is {order}, 0 to {LARGEST_ORDER} was expected")
        if pseudo_count <= 0:
            raise ValueError(f"pseudo_count is {pseudo_count}, more than 0 was expected")
        counts = np.zeros(BASES ** (order + 1), dtype=np.int64)
        for codes in sequences:
            for strand in (codes, DNA.reverse_complement(codes)) if both_strands else (codes,):
                counts += count_kmers(strand, order + 1)
        if not counts.any():
            raise ValueError(f"no sequence has {order + 1} bases in a row without N, so no chain can be fitted to them")
        table = counts.reshape(-1, BASES) + pseudo_count
        sums = table.sum(axis=1)
        return cls(order, table / sums[:, None], sums / sums.sum())

    def sample(self, length: int, rng: np.random.Generator) -> Codes:
        """Draw a sequence (length,) uint8: a context as often as it stands in the genome, then base after base."""
        if length < 1:
            raise ValueError(f"length is {length}, at least 1 was expected")
        context = int(rng.choice(len(self.contexts), p=self.contexts))
        codes = np.empty(max(length, self.order), dtype=np.uint8)
        for i in range(self.order):
            codes[i] = context // BASES ** (self.order - 1 - i) % BASES
        thresholds = np.cumsum(self.probabilities, axis=1)[:, :-1].tolist()
        draws = rng.random(max(length - self.order, 0)).tolist()
        modulus = BASES**self.order
        for i, draw in enumerate(draws, start=self.order):
            a, c, g = thresholds[context]
            base = (draw >= a) + (draw >= c) + (draw >= g)
            codes[i] = base
            context = (context * BASES + base) % modulus
        return codes[:length]


def count_kmers(codes: Codes, k: int) -> NDArray[np.int64]:
    """How often each k-mer of bases stands in token ids (L,): (4^k,) int64; the first base is the highest digit."""
    return np.bincount(kmers(codes, k).astype(np.int64), minlength=BASES**k)


def kmers(codes: Codes, k: int) -> NDArray[np.uint64]:
    """The k-mers of token ids (L,) as numbers of base 4, at most (L - k + 1,); those with an N are left out."""
    if not 1 <= k <= 32:
        raise ValueError(f"k is {k}, 1 to 32 was expected, which fits into 64 bits")
    n = max(len(codes) - k + 1, 0)
    values = np.zeros(n, dtype=np.uint64)
    whole = np.ones(n, dtype=bool)
    for i in range(k):
        part = codes[i : i + n]
        values = values << np.uint64(2) | part
        whole &= part < BASES
    return values[whole]


def shares_kmer(codes: Codes, genome: Iterable[Codes], k: int) -> bool:
    """Whether any k bases in a row of token ids (L,) stand in a genome's records too, on either strand."""
    wanted = np.sort(kmers(codes, k))
    if not len(wanted):
        return False
    for record in genome:
        for strand in (record, DNA.reverse_complement(record)):
            there = kmers(strand, k)
            # the few wanted are sorted, not the millions that are there
            at = np.minimum(np.searchsorted(wanted, there), len(wanted) - 1)
            if (wanted[at] == there).any():
                return True
    return False
