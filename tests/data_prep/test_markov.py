"""Markov models with back-off, against counts made letter by letter."""

from collections import Counter

import numpy as np
import pytest

from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.data_prep.markov import MarkovCounts, bits_per_base, choose


def slow(texts: list[str], context: str, base: str, alpha: float) -> float:
    """The formula of the module's head, by recursion."""
    below = slow(texts, context[1:], base, alpha) if context else 0.25
    k = len(context) + 1
    windows = Counter(text[i : i + k] for text in texts for i in range(len(text) - k + 1))
    total = sum(windows[context + b] for b in "ACGT")
    return (windows[context + base] + alpha * below) / (total + alpha)


@pytest.mark.parametrize("both_strands", [False, True])
def test_probabilities_are_those_of_counts(both_strands: bool) -> None:
    rng = np.random.default_rng(0)
    train = "".join(rng.choice(list("ACGT"), 400, p=[0.4, 0.1, 0.2, 0.3]))
    counts = MarkovCounts(3)
    codes = DNA.encode(train)
    counts.add(codes, both_strands)
    texts = [train, DNA.decode(DNA.reverse_complement(codes))] if both_strands else [train]
    # lower orders are sums of higher ones: the first bases of a text are not counted in them
    model, test = counts.model(2.0), "".join(rng.choice(list("ACGT"), 60)) + "NNA" + "CGT"
    found = model.log2_probabilities(DNA.encode(test))
    known = ""
    for i, letter in enumerate(test):
        if letter == "N":
            known = ""
            assert np.isnan(found[i])
            continue
        expected = np.log2(slow(texts, known[-3:], letter, 2.0))
        assert found[i] == pytest.approx(expected, abs=0.02 if len(known) < 3 else 0.01), i
        known += letter
    for order in range(4):
        table = counts.model(1.0, order)
        for context in ("", "A", "CA", "GCA")[: order + 1]:
            each = [2 ** table.log2_probabilities(DNA.encode(context + base))[-1] for base in "ACGT"]
            assert sum(each) == pytest.approx(1, abs=1e-5)


def test_the_best_order_is_chosen_on_the_validation() -> None:
    rng = np.random.default_rng(1)
    cycle = np.array([0, 1, 0, 2, 3], dtype=np.uint8)  # the next base needs two before it
    train, test = (np.where(rng.random(n) < 0.02, 3, np.resize(cycle, n)).astype(np.uint8) for n in (5000, 2000))
    counts = MarkovCounts(5)
    counts.add(train, both_strands=False)
    best = choose(counts, [test], range(6))
    assert best.order >= 2
    assert bits_per_base(best, [test]) < 0.5 < bits_per_base(counts.model(1.0, 1), [test])
    assert bits_per_base(MarkovCounts(2).model(1.0), [test]) == pytest.approx(2)


def test_orders_out_of_range() -> None:
    with pytest.raises(ValueError, match="order is 13, expected 0 to 12"):
        MarkovCounts(13)
