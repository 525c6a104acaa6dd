"""CTC against the sum over all alignments: the loss, and the search; texts in every layout."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.ctc import beam_search, best_path, collapse
from mamba_seq.heads.losses import IGNORED
from tests.mamba_seq.layouts import boundaries, pad
from tests.mamba_seq.models import small_model, some_input


def random_outputs(length: int, symbols: int, sharpness: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return (sharpness * torch.randn(length, 1 + symbols, generator=generator)).log_softmax(dim=-1)


def probabilities_of_texts(outputs: Tensor) -> dict[tuple[int, ...], float]:
    """Add up the probabilities of all paths, by their text."""
    found: dict[tuple[int, ...], float] = {}
    table = outputs.double().exp().tolist()
    for path in itertools.product(range(outputs.shape[1]), repeat=len(table)):
        text = tuple(collapse(path))
        found[text] = found.get(text, 0.0) + math.prod(row[output] for row, output in zip(table, path, strict=True))
    return found


@pytest.mark.parametrize(
    ("path", "text"),
    [([], []), ([0, 0], []), ([1, 1, 0, 1, 2, 2], [0, 0, 1]), ([3, 0, 3, 3], [2, 2]), ([1, 2, 1], [0, 1, 0])],
)
def test_collapse(path: list[int], text: list[int]) -> None:
    assert collapse(path) == text


@pytest.mark.parametrize(("length", "symbols"), [(1, 1), (6, 2), (7, 2), (5, 3)])
def test_a_wide_beam_is_exact(length: int, symbols: int) -> None:
    outputs = random_outputs(length, symbols)
    want = probabilities_of_texts(outputs)
    found = beam_search(outputs, beam_width=10_000)
    assert {tuple(hypothesis.text) for hypothesis in found} == set(want)
    for hypothesis in found:
        assert math.isclose(math.exp(hypothesis.log_probability), want[tuple(hypothesis.text)], rel_tol=1e-6)
    assert tuple(found[0].text) == max(want, key=lambda text: want[text])
    logs = [hypothesis.log_probability for hypothesis in found]
    assert logs == sorted(logs, reverse=True)


def test_the_best_text_is_not_always_on_the_best_path() -> None:
    """The blank is best at both positions, and still the symbol is the more probable text (Hannun et al.)."""
    outputs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert best_path(outputs) == []
    found = beam_search(outputs, beam_width=2)
    assert found[0].text == [0]
    assert math.isclose(math.exp(found[0].log_probability), 0.64, rel_tol=1e-6)


def test_a_narrow_beam_finds_no_more_than_there_is() -> None:
    outputs = random_outputs(8, 2)
    want = probabilities_of_texts(outputs)
    best = [beam_search(outputs, beam_width=width)[0] for width in (1, 2, 4, 8, 64)]
    for hypothesis in best:
        assert math.exp(hypothesis.log_probability) <= want[tuple(hypothesis.text)] * (1 + 1e-6)
    assert tuple(best[-1].text) == max(want, key=lambda text: want[text])
    assert [len(beam_search(outputs, beam_width=width)) for width in (1, 3)] == [1, 3]


def test_no_positions_are_the_empty_text() -> None:
    assert best_path(torch.zeros(0, 4)) == []
    assert beam_search(torch.zeros(0, 4), beam_width=3) == [([], 0.0)]


def test_what_is_no_output_of_one_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log_probabilities is \(2, 5, 4\), expected \(L, 1 \+ symbols\)"):
        beam_search(torch.zeros(2, 5, 4), beam_width=2)
    with pytest.raises(ValueError, match="beam_width is 0, expected at least 1"):
        beam_search(torch.zeros(5, 4), beam_width=0)


@pytest.fixture
def model() -> Any:
    return small_model("ctc")


def test_the_loss_is_the_sum_over_alignments(model: Any) -> None:
    logits = random_outputs(6, 3)[None] + 2.5  # not normalised
    texts = probabilities_of_texts(random_outputs(6, 3))
    for text in ([0], [1, 1], [2, 0, 1], [0, 0, 0]):
        want = -math.log(texts[tuple(text)]) / len(text)
        assert math.isclose(model.loss(logits, torch.tensor([text])).item(), want, rel_tol=1e-5)


def test_texts_in_every_layout(model: Any) -> None:
    lengths, texts = [20, 9, 30], [[0, 2, 2], [1], [0, 1, 2, 0]]
    inputs = [some_input(model, length) for length in lengths]
    targets = torch.full((3, 5), IGNORED)
    for i, text in enumerate(texts):
        targets[i, : len(text)] = torch.tensor(text)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()} | {"loss": loss.detach()}

    alone = [model.loss(model(x[None]), torch.tensor([text])) for x, text in zip(inputs, texts, strict=True)]
    want = gradients(torch.stack(alone).mean())
    cu_seqlens = boundaries(lengths)
    packed = model(torch.cat(inputs)[None], cu_seqlens=cu_seqlens)
    found = {"packed": gradients(model.loss(packed, targets, cu_seqlens=cu_seqlens))}
    decoded = [[model.decode(model(x[None]), beam_width=width)[0] for x in inputs] for width in (1, 4)]
    assert [model.decode(packed, cu_seqlens=cu_seqlens, beam_width=width) for width in (1, 4)] == decoded
    for side in ("left", "right"):
        rows, mask = pad(inputs, side, 0)
        logits = model(rows, mask)
        found[side] = gradients(model.loss(logits, targets, mask))
        assert [model.decode(logits, mask, beam_width=width) for width in (1, 4)] == decoded
    for layout, got in found.items():
        for name, expected in want.items():
            assert (got[name] - expected).abs().max() <= 1e-4 * expected.abs().max(), (layout, name)


def test_decode_reads_labels(model: Any) -> None:
    logits = torch.full((1, 6, 4), -9.0)
    for t, output in enumerate([1, 1, 0, 1, 3, 0]):
        logits[0, t, output] = 9.0
    for width in (1, 5):
        assert model.decode(logits, beam_width=width) == [[0, 0, 2]]
        assert [model.config.labels[i] for i in model.decode(logits, beam_width=width)[0]] == ["b", "b", "c"]
    with pytest.raises(ValueError, match="beam_width is 0"):
        model.decode(logits, beam_width=0)


def test_a_text_that_does_not_fit(model: Any) -> None:
    """Two of the same need a blank between them: three positions."""
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    text = torch.tensor([[1, 1]])
    assert model.loss(logits, text) == math.inf
    loss = model.loss(logits, text, zero_infinity=True)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[0, 3]], "targets holds 3, expected the index of one of 3 labels"),
        ([[0, -1]], "targets holds -1, expected the index of one of 3 labels"),
        ([[IGNORED, 1]], "targets has -100 inside a text"),
        ([[0], [1]], r"targets has shape \(2, 1\), expected \(1, T\)"),
        ([0], r"targets has shape \(1,\), expected \(1, T\)"),
    ],
)
def test_bad_texts_are_refused(model: Any, targets: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.loss(torch.zeros(1, 5, 4), torch.tensor(targets))


def test_an_index_that_may_be_a_label_cannot_fill_texts_up(model: Any) -> None:
    with pytest.raises(ValueError, match="ignore_index is 0, expected a negative number"):
        model.loss(torch.zeros(1, 5, 4), torch.tensor([[1, 0]]), ignore_index=0)
