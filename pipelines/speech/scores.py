"""Scores of generated clips from what a classifier makes of them, all in float64.

Published tables of SC09 (SaShiMi, arXiv 2202.09729; Mamba, arXiv 2312.00752, table 4) come from released code
(state-spaces/s4, models/sashimi/sc09_classifier/test_speech_commands.py) whose Inception Score sums over the wrong
axis. That one is here too, by its own name, for comparison with them.

Shapes: N clips, M other clips, K words, F features.
"""

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.errors import TooFewData

Array = NDArray[np.float64]


def frechet_distance(features: Array, others: Array) -> float:
    """The squared Frechet distance of two Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with covariances of N - 1 degrees of freedom. The trace of the root is
    that of the symmetric (S1^(1/2) S2 S1^(1/2))^(1/2), which has no imaginary parts to throw away.

    Args:
        features: (N, F).
        others: (M, F).

    Raises:
        TooFewData: N or M is not above F: the covariance would have no full rank, and the distance no meaning.
        ValueError: The two have different widths.
    """
    features, others = np.asarray(features, np.float64), np.asarray(others, np.float64)
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1]:
        raise ValueError(f"features {features.shape} and {others.shape} came; (N, F) and (M, F) expected")
    fewest = min(len(features), len(others))
    if fewest <= features.shape[1]:
        raise TooFewData(
            f"the Frechet distance of {features.shape[1]} features needs more clips than features on both sides, and "
            f"{fewest} came; make more, thousands if it shall be compared"
        )
    difference = features.mean(axis=0) - others.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (features, others))
    root = _root(first)
    eigenvalues = np.linalg.eigvalsh(root @ second @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(max(0.0, difference @ difference + np.trace(first) + np.trace(second) - 2 * cross))


def inception_score(log_probabilities: Array) -> float:
    """Exp of the mean KL(p(y|x) || p(y)), p(y) the mean over the clips (Salimans et al. 2016, arXiv 1606.03498).

    From 1, when every clip is heard alike, to K, when each is heard clearly and all words as often.

    Args:
        log_probabilities: (N, K), natural logarithms.
    """
    p = np.exp(log_probabilities)
    marginal = p.mean(axis=0)
    with np.errstate(divide="ignore"):
        log_marginal = np.where(marginal > 0, np.log(marginal), 0.0)
    return float(np.exp((p * (_finite(log_probabilities) - log_marginal)).sum(axis=1).mean()))


def inception_score_as_released(log_probabilities: Array) -> float:
    """What the released code of published SC09 tables calls the Inception Score; it is another number.

    The clips are shuffled by numpy's seed 0 and cut in two. The divergence of the first half's probabilities from the
    mean of the second half's is then summed over clips, not over words, and scaled to 1 over clips on both sides, so
    that nothing is left of that mean: exp of the mean over words of KL(p(clip | word) || all clips alike). It passes K
    when few words are said.
    """
    p = np.exp(log_probabilities)
    p = p[np.random.RandomState(0).permutation(len(p))][: len(p) // 2]
    if not len(p):
        raise TooFewData("the Inception Score as released needs at least 2 clips, which it cuts in two")
    total = p.sum(axis=0)
    shares = p / np.where(total > 0, total, 1)
    with np.errstate(divide="ignore"):
        logs = np.where(shares > 0, np.log(shares * len(p)), 0.0)
    return float(np.exp((shares * logs).sum(axis=0).mean()))


def modified_inception_score(log_probabilities: Array) -> float:
    """Exp of the mean KL(p(y|x_i) || p(y|x_j)) over all pairs (Gurumurthy et al. 2017, arXiv 1706.02071).

    Released code draws 10,000 pairs; this is what such draws are around. The tails of the softmax decide it.
    """
    p, logs = np.exp(log_probabilities), _finite(log_probabilities)
    return float(np.exp((p * logs).sum(axis=1).mean() - p.mean(axis=0) @ logs.mean(axis=0)))


def am_score(log_probabilities: Array, reference: Array) -> float:
    """KL(mean p(y) of the reference || of the clips) + mean entropy of p(y|x) (Zhou et al. 2018, arXiv 1703.02000).

    Args:
        log_probabilities: of the clips (N, K).
        reference: of real recordings (M, K).
    """
    wanted, got = np.exp(reference).mean(axis=0), np.exp(log_probabilities).mean(axis=0)
    there = wanted > 0
    with np.errstate(divide="ignore"):
        divergence = (wanted[there] * (np.log(wanted[there]) - np.log(got[there]))).sum()
    return float(divergence - (np.exp(log_probabilities) * _finite(log_probabilities)).sum(axis=1).mean())


def without_nothing(log_probabilities: Array, nothing: int | None) -> Array:
    """Probabilities of words (N, K) from those of words and of "no word" (N, K+1), as logarithms.

    That a clip says no word tells nothing about which: the probability is spread over all words evenly, so that noise
    counts as a clip that could be any.

    Args:
        log_probabilities: (N, K+1), or (N, K) when the classifier has no such class.
        nothing: its number, or None.
    """
    if nothing is None:
        return log_probabilities
    words = np.delete(log_probabilities, nothing, axis=1)
    spread = log_probabilities[:, nothing] - np.log(words.shape[1])
    result: Array = np.logaddexp(words, spread[:, None])
    return result


def _root(matrix: Array) -> Array:
    """Return the symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    result: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return result


def _finite(logs: Array) -> Array:
    """Return logarithms with 0 in place of that of 0, which only probabilities of 0 multiply."""
    return np.where(np.isfinite(logs), logs, 0.0)
