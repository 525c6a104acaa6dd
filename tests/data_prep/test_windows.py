import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from mamba_seq.data_prep.alphabet import Codes, encode
from mamba_seq.data_prep.windows import KEPT_PER_WINDOW, WindowSampler, window_starts, windows_of


def pieces(codes: Codes, rng: np.random.Generator) -> Iterator[Codes]:
    at = 0
    while at < len(codes):
        n = int(rng.integers(0, 1 + rng.choice([3, 50, 5000])))
        yield codes[at : at + n]
        at += n


@pytest.mark.parametrize("seed", range(150))
def test_streamed_windows_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    context = int(rng.integers(1, 60))
    stride = int(rng.integers(1, 100)) if rng.random() < 0.7 else None
    most = int(rng.choice([0, 1, 2, 3, 5, 32]))
    codes = rng.integers(0, 5, int(rng.choice([0, 1, context, context + 1, 63, 1000, 2049, 20_000])), dtype=np.uint8)
    found = list(windows_of(pieces(codes, rng), context, stride, most))
    assert [window.start for window in found] == window_starts(len(codes), context, stride, most)
    for window in found:
        np.testing.assert_array_equal(window.codes, codes[window.start : window.start + context])
        assert window.end == window.start + len(window.codes) <= len(codes)


@pytest.mark.parametrize("seed", range(100))
def test_windows_are_distinct_evenly_spaced_and_reach_both_ends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    context, stride = int(rng.integers(1, 200)), int(rng.integers(1, 200))
    length, most = int(rng.integers(1, 10**6)), int(rng.integers(2, 40))
    starts = window_starts(length, context, stride, most)
    every = window_starts(length, context, stride, 0)
    assert starts == sorted(set(starts))
    assert set(starts) <= set(every)
    assert len(starts) == min(most, len(every))
    assert starts[0] == 0
    assert starts[-1] == max(length - context, 0)
    if len(every) > most:
        even = np.linspace(0, length - context, most)
        # half the distance of the candidates that are still kept at the end, which is at most 1/4 M of the record
        kept = max(stride, (length - context) / (KEPT_PER_WINDOW * most / 2))
        assert np.abs(np.array(starts) - even).max() <= kept / 2 + 1


def test_all_windows_cover_the_record_and_come_before_its_end() -> None:
    sampler = WindowSampler(context=10, max_windows=0)
    sampler.feed(np.zeros(15, dtype=np.uint8))
    assert [w.start for w in sampler.feed(np.zeros(20, dtype=np.uint8))] == [0, 10, 20]
    assert [w.start for w in sampler.finish()] == [25]
    assert [w.start for w in sampler.windows([np.zeros(20, dtype=np.uint8)])] == [0, 10]


def test_a_short_record_is_one_window_and_an_empty_one_none() -> None:
    assert [(w.start, len(w.codes)) for w in windows_of([encode("ACG")], context=8)] == [(0, 3)]
    assert list(windows_of([], context=8)) == []
    assert list(windows_of([encode("")], context=8)) == []


def test_a_stride_beyond_the_context_leaves_gaps() -> None:
    assert window_starts(100, context=10, stride=40) == [0, 40, 80, 90]


def test_bases_count_what_is_not_n() -> None:
    found = list(windows_of([encode("ACNRNNNNGG")], context=4, max_windows=0))
    assert [w.bases for w in found] == [2, 0, 2]


def test_memory_is_bounded_whatever_the_length() -> None:
    block = np.arange(1 << 20, dtype=np.uint8) % 4
    context, most = 1000, 32
    tracemalloc.start()
    try:
        found = list(windows_of((block for _ in range(200)), context, None, most))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == most
    assert found[-1].end == 200 << 20
    assert peak < 2 << 20


@pytest.mark.parametrize(("arguments", "message"), [((0,), "context"), ((5, 0), "stride"), ((5, 5, -1), "max_windows")])
def test_impossible_numbers_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowSampler(*arguments)
