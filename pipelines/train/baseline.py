"""The baselines that stand beside a DNA classifier's accuracy: canonical k-mer frequencies and logistic regression.

They see the same training regions and the same test windows as the model, and are fitted anew for every length. With
k-mers of one base what is left is composition: the part of G and C.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

K = 6
"""Length of the k-mers."""
COMPOSITION_K = 1
"""The same of the baseline that knows the composition alone."""
REGULARISATION = (1e-4, 1e-3, 1e-2)
"""Inverse strengths C that are tried; the best on the test windows themselves counts, which favours the baseline."""

Codes = NDArray[np.uint8]


def kmer_features(sequences: Sequence[Codes], k: int = K) -> NDArray[np.float64]:
    """Return log-frequencies of canonical k-mers, with half a pseudo-count.

    Args:
        sequences: token ids A 0, C 1, G 2, T 3, others unknown; k-mers with an unknown base are left out.
        k: length of the k-mers.

    Returns:
        (number of sequences, number of canonical k-mers).
    """
    canonical, size = canonical_kmers(k)
    rows = np.empty((len(sequences), size))
    for row, codes in zip(rows, sequences, strict=True):
        counts = np.bincount(canonical[kmer_indices(codes, k)], minlength=size) + 0.5
        row[:] = np.log(counts / counts.sum())
    return rows


def canonical_kmers(k: int) -> tuple[NDArray[np.int64], int]:
    """Return the class of each k-mer, which it shares with its reverse complement, and the number of classes."""
    forward = np.arange(4**k)
    reverse, rest = np.zeros_like(forward), forward.copy()
    for _ in range(k):
        reverse = 4 * reverse + (3 - rest % 4)
        rest //= 4
    kept, classes = np.unique(np.minimum(forward, reverse), return_inverse=True)
    return classes, len(kept)


def kmer_indices(codes: Codes, k: int) -> NDArray[np.int64]:
    """Return the index (base 4) of every k-mer of known bases."""
    n = len(codes) - k + 1
    if n < 1:
        return np.zeros(0, dtype=np.int64)
    index = np.zeros(n, dtype=np.int64)
    known = np.ones(n, dtype=bool)
    for i in range(k):
        base = codes[i : i + n]
        index = 4 * index + np.minimum(base, 3)
        known &= base < 4
    return index[known]


Windows = tuple[Sequence[Codes], Sequence[int]]
"""Sequences and their classes."""


def baseline_accuracy(train: Windows, test: Windows, k: int = K) -> float:
    """Fit logistic regression on k-mer log-frequencies of `train`; return the best accuracy on `test` over C.

    Args:
        train: to fit on.
        test: to count on.
        k: length of the k-mers.

    Raises:
        ImportError: without scikit-learn, which only the development extra installs.
    """
    from sklearn.linear_model import LogisticRegression

    x_train, x_test = (kmer_features(sequences, k) for sequences, _ in (train, test))
    mean, spread = x_train.mean(axis=0), x_train.std(axis=0) + 1e-9
    x_train, x_test = (x_train - mean) / spread, (x_test - mean) / spread
    models = [LogisticRegression(C=C, max_iter=300).fit(x_train, train[1]) for C in REGULARISATION]
    return max(float(model.score(x_test, test[1])) for model in models)
