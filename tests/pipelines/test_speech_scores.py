"""Scores of generated speech, held to scipy, to limits that are known, and to what their inputs must do to them."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.pipelines.speech import scores
from mamba_seq.pipelines.speech.intervals import bootstrap


def logs(count: int, classes: int, seed: int, sharp: float = 3.0) -> np.ndarray:
    logits = sharp * np.random.default_rng(seed).standard_normal((count, classes))
    result: np.ndarray = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
    return result


@pytest.mark.parametrize(("count", "others", "width"), [(64, 63, 1), (1000, 257, 7), (99, 2049, 63)])
def test_frechet_distance_is_that_of_scipy(count: int, others: int, width: int) -> None:
    rng = np.random.default_rng(width)
    first = rng.standard_normal((count, width)) @ rng.standard_normal((width, width))
    second = 0.5 + rng.standard_normal((others, width)) * 2
    one, two = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (first, second))
    root = scipy.linalg.sqrtm(one @ two)
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(one + two - 2 * np.real(root))
    assert scores.frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert scores.frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_a_constant_feature_and_of_too_few_clips() -> None:
    features = np.random.default_rng(0).standard_normal((50, 4))
    features[:, 2] = 1  # a covariance without full rank
    assert scores.frechet_distance(features, features + np.array([0, 0, 2, 0])) == pytest.approx(4, rel=1e-6)
    with pytest.raises(TooFewData, match="of 4 features needs more clips than features on both sides, and 4 came"):
        scores.frechet_distance(features[:4], features)
    with pytest.raises(ValueError, match=r"features \(50, 4\) and \(50, 3\) came"):
        scores.frechet_distance(features, features[:, :3])


@pytest.mark.parametrize("count", [2, 63, 1000])
def test_inception_scores_are_those_of_scipy(count: int) -> None:
    log_p = logs(count, 10, count)
    p = np.exp(log_p)
    expected = math.exp(scipy.stats.entropy(p, p.mean(axis=0)[None], axis=1).mean())
    assert scores.inception_score(log_p) == pytest.approx(expected, rel=1e-10)
    shuffled = p[np.random.RandomState(0).permutation(count)]
    half, rest = shuffled[: count // 2], shuffled[count // 2 :]
    released = math.exp(scipy.stats.entropy(half, np.tile(rest.mean(axis=0), (len(half), 1))).mean())
    assert scores.inception_score_as_released(log_p) == pytest.approx(released, rel=1e-10)
    pairs = [scipy.stats.entropy(p[i], p[j]) for i in range(min(count, 63)) for j in range(min(count, 63))]
    if count <= 63:
        assert scores.modified_inception_score(log_p) == pytest.approx(math.exp(np.mean(pairs)), rel=1e-10)


def test_am_score_is_that_of_scipy() -> None:
    log_p, real = logs(101, 10, 1), logs(57, 10, 2, 9.0)
    mean, wanted = np.exp(log_p).mean(axis=0), np.exp(real).mean(axis=0)
    expected = scipy.stats.entropy(wanted, mean) + scipy.stats.entropy(np.exp(log_p), axis=1).mean()
    assert scores.am_score(log_p, real) == pytest.approx(expected, rel=1e-10)


def test_limits_and_the_wrong_axis() -> None:
    sure = np.full((1000, 10), -np.inf)
    sure[np.arange(1000), np.arange(1000) % 10] = 0
    assert scores.inception_score(sure) == pytest.approx(10)
    assert scores.inception_score(np.full((50, 10), -math.log(10))) == pytest.approx(1)
    assert scores.am_score(sure, sure) == pytest.approx(0, abs=1e-12)
    # one word alone has no diversity, and the released score does not see it
    skewed = logs(4000, 10, 3, 1.0) + np.where(np.random.default_rng(3).random((4000, 1)) < 0.9, 8, 0) * (
        np.arange(10) == 0
    )
    skewed -= scipy.special.logsumexp(skewed, axis=1, keepdims=True)
    assert scores.inception_score(skewed) < 2
    assert scores.inception_score_as_released(skewed) > 2 * scores.inception_score(skewed)


def test_no_word_is_any_word() -> None:
    p = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    with np.errstate(divide="ignore"):
        words = np.exp(scores.without_nothing(np.log(p), 2))
    assert words.tolist() == [pytest.approx([0.6, 0.4]), pytest.approx([0.5, 0.5])]
    assert scores.without_nothing(np.log(p + 1e-9), None).shape == (2, 3)


def test_noise_and_speech_of_made_up_features() -> None:
    """Two halves of one cloud are near each other, and far from another; the same of their scores."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((10, 8))

    def speech(count: int) -> tuple[np.ndarray, np.ndarray]:
        of = rng.integers(10, size=count)
        x = centres[of] + rng.standard_normal((count, 8))
        logits = -((x[:, None] - centres) ** 2).sum(axis=2)
        return x, logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)

    (first, said), (second, heard) = speech(1000), speech(1000)
    noise = rng.standard_normal((1000, 8))
    flat = logs(1000, 10, 5, 0.01)
    assert scores.frechet_distance(first, second) < 0.05 * scores.frechet_distance(noise, second)
    assert scores.inception_score(said) > 9
    assert scores.inception_score(flat) < 1.01
    assert scores.am_score(said, heard) < 0.1 < 2 < scores.am_score(flat, heard)


def test_intervals_hold_the_value_and_its_scatter() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(40):
        x = rng.standard_normal(100)
        low, high = bootstrap(lambda i, x=x: float(x[i].mean()), [100], float(x.mean()), seed, 200)
        assert low <= x.mean() <= high
        assert high - low == pytest.approx(2 * 1.96 / 10, rel=0.4)
        inside += low < 0 < high
    assert inside >= 33
    features = rng.standard_normal((200, 5))
    value = scores.frechet_distance(features[:100], features[100:])
    few = bootstrap(lambda i, j: float(i.mean() - j.mean()), [100, 4], 0.0)
    assert np.isnan(few).all()
    low, high = bootstrap(
        lambda i, j: scores.frechet_distance(features[:100][i], features[100:][j]), [100, 100], value, lowest=0.0
    )
    assert 0 <= low <= value <= high < 4 * value
