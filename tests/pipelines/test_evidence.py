"""Batches on their way through a model: other strands, results that are taken in late, how much goes at once."""

import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.pipelines import evidence
from mamba_seq.pipelines.classify import Classifier, Options
from mamba_seq.pipelines.errors import ScoringError
from mamba_seq.pipelines.evidence import Evidence, WindowPool, default_batch_tokens, score

CPU = torch.device("cpu")


class Counts(nn.Module):
    """Logits are the logarithms of how often A, C and G stand in a row, the first and last position counted double."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls.append((tokens.clone(), mask))
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        hot = nn.functional.one_hot(tokens, 5) * real[..., None]
        ends = hot[:, 0] + hot.gather(1, (real.sum(1) - 1)[:, None, None].expand(-1, 1, 5))[:, 0]
        return (1 + hot.sum(1) + ends)[:, :3].double().log()


def windows(*lengths: int) -> list[Codes]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(0, 5, n).astype(np.uint8) for n in lengths]


@pytest.mark.parametrize("lengths", [(1,), (63, 63), (1000, 1, 63), (2049, 2049), (2049, 2048, 1)])
def test_batches_hold_windows_and_their_other_strands(lengths: tuple[int, ...]) -> None:
    model, codes = Counts(), windows(*lengths)
    score(model, codes, CPU)
    ((tokens, mask),) = model.calls
    rows = [*codes, *map(DNA.reverse_complement, codes)]
    assert tokens.shape == (len(rows), max(lengths))
    assert (mask is None) == (len(set(lengths)) == 1)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(tokens[i, : len(row)].numpy(), row)
        assert (tokens[i, len(row) :] == DNA.unknown_code).all()
        if mask is not None:
            assert mask[i].tolist() == [True] * len(row) + [False] * (max(lengths) - len(row))


@pytest.mark.parametrize("late", [0, 1, 3])
def test_results_that_are_taken_in_late_change_nothing(late: int) -> None:
    codes = windows(*np.random.default_rng(0).integers(1, 200, 300).tolist())
    done: list[int] = []
    pool = WindowPool(Counts(), device=CPU, batch_tokens=2000, on_batch=lambda: done.append(pool.windows))
    pool._most_under_way = late
    records = [Evidence() for _ in codes]
    for each, window in zip(records, codes, strict=True):
        pool.add(each, window)
        assert len(pool._under_way) <= late
    assert (sum(each.waiting for each in records) > 0) == (late > 0 or bool(pool._waiting))
    pool.flush()
    assert not pool._under_way
    assert [each.waiting for each in records] == [0] * len(records)
    assert done == sorted(done)
    assert done[-1] == pool.windows == pool.added == sum(int((window < 4).any()) for window in codes)
    for each, window in zip(records, codes, strict=True):
        probabilities = each.probabilities()
        if probabilities is None:
            assert (window == 4).all()
            continue
        alone = np.exp(score(Counts(), [window], CPU)[0])
        np.testing.assert_allclose(probabilities, alone / alone.sum(), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"max_windows": 0, "stride": 7, "calls": True}, {"both_strands": False}])
def test_rows_are_the_same_when_results_are_late(tmp_path: Any, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "in.fa"
    lengths = (0, 1, 63, 64, 65, 1000, 2049, 5)
    path.write_text("".join(f">r{i}\n{''.join(rng.choice(list('ACGTN'), n))}\n" for i, n in enumerate(lengths * 9)))

    def rows(late: int) -> list[Any]:
        classifier = Classifier(
            Counts(), ["a", "b", "c"], CPU, Options(**{"context": 64, "stride": 64, "batch_tokens": 256, **options})
        )
        classifier._pool._most_under_way = late
        found = []
        for row in classifier.rows([str(path)]):
            calls = None if row.calls is None else np.concatenate(list(row.calls)).tolist()
            found.append((row.record, row.length, row.status, row.prediction, row.probabilities, calls))
        assert classifier.summary.windows == classifier._pool.added
        return found

    assert rows(4) == rows(0)


def test_a_score_that_is_no_number_is_told_when_it_comes_in() -> None:
    class Broken(nn.Module):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            return torch.full((len(tokens), 2), torch.nan)

    pool = WindowPool(Broken(), device=CPU, batch_tokens=64)
    pool._most_under_way = 4
    pool.add(Evidence(), np.zeros(10, np.uint8))
    with pytest.raises(ScoringError, match="not a number"):
        pool.flush()


def test_what_is_added_may_be_a_view_or_not() -> None:
    pool = WindowPool(Counts(), device=CPU, batch_tokens=1 << 20)
    block = np.zeros(1 << 16, np.uint8)
    pool.add(Evidence(), block[5:15])
    owned = np.ones(10, np.uint8)
    pool.add(Evidence(), owned)
    kept = [window for _, window, _, _ in pool._waiting]
    assert kept[0].base is None
    assert kept[1] is owned


@pytest.mark.parametrize(
    ("gigabytes", "channels", "tokens"),
    [
        (140, 256, 1 << 20),
        (80, 256, 1 << 20),
        (24, 256, 1 << 19),
        (80, 3072, 1 << 17),
        (4, 8192, evidence.SHORTEST_PIECE),
    ],
)
def test_a_batch_takes_an_eighth_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, channels: int, tokens: int
) -> None:
    size = types.SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    model = Counts()
    model.config = types.SimpleNamespace(backbone=types.SimpleNamespace(d_inner=channels))  # type: ignore[assignment]
    assert default_batch_tokens(model, torch.device("cuda")) == tokens
    assert default_batch_tokens(model, CPU) == evidence.CPU_BATCH_TOKENS


@pytest.mark.gpu
@pytest.mark.parametrize("both", [True, False])
def test_on_a_gpu_as_on_a_cpu(both: bool) -> None:
    codes = windows(2, 63, 1000, 2049, 2049, 150, 70)
    found = {}
    for device in (CPU, torch.device("cuda")):
        pool = WindowPool(Counts().to(device), device=device, batch_tokens=4096, both_strands=both)
        records = [Evidence() for _ in codes]
        for each, window in zip(records, codes, strict=True):
            pool.add(each, window)
        pool.flush()
        found[device.type] = np.array([each.probabilities() for each in records])
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=1e-5)
