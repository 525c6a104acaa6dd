"""A token drawn in one launch against torch's operators on the same logits and random numbers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mamba_seq.kernels.next_token.triton import keeps_some, next_token, why_not
from mamba_seq.sampling import sample
from tests.kernels.compare import DEVICE

TRITON = DEVICE["triton"]


@pytest.mark.parametrize(
    ("V", "M", "B", "dtype"),
    [
        (13, 24, 3, torch.float32),
        (256, 64, 2, torch.float32),
        (100, 100, 5, torch.bfloat16),
        (200, 256, 2, torch.float16),
    ],
)
@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 0.3, "top_k": 4},
        {"top_p": 0.8},
        {"top_k": 9, "top_p": 0.5},
        {"top_k": 1},
    ],
    ids=str,
)
def test_it_is_the_draw_from_the_same_logits(V: int, M: int, B: int, dtype: torch.dtype, given: dict[str, Any]) -> None:
    torch.manual_seed(V)
    weight, embedding = (torch.randn(V, M).div(M**0.25).to(TRITON, dtype) for _ in range(2))
    sampling = (given.get("temperature", 1.0), given.get("top_k"), given.get("top_p"))
    generators = [torch.Generator(TRITON).manual_seed(1) for _ in range(2)]
    history = torch.full((B, 3), -1, device=TRITON)
    token, positions = (torch.ones(B, dtype=torch.int64, device=TRITON) for _ in range(2))
    hidden, ended = torch.empty(B, M, device=TRITON), torch.zeros(B, dtype=torch.bool, device=TRITON)
    want = []
    for _ in range(3):  # the last one has no place in the history
        out = torch.randn(B, M, device=TRITON).to(dtype)
        want.append(sample(F.linear(out, weight), *sampling, generators[0]))
        noise = torch.empty(B, V, device=TRITON).exponential_(generator=generators[1]) if sampling[0] else None
        next_token(token, hidden, history, positions, ended, out, weight, embedding, sampling, noise, None)
        assert torch.equal(token, want[-1])
        assert torch.equal(hidden, embedding[token].float())
    assert torch.equal(history[:, 1:], torch.stack(want[:2], dim=1))
    assert (history[:, 0] == -1).all()
    assert (positions == 4).all()
    assert not ended.any()


def test_equal_logits_and_stops() -> None:
    """Among equals the first is taken, and a sequence that has ended repeats its stop."""
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 3.0]], device=TRITON)
    out = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], device=TRITON)
    ended = torch.tensor([False, False, True], device=TRITON)
    token, positions = (torch.zeros(3, dtype=torch.int64, device=TRITON) for _ in range(2))
    hidden, history = torch.empty(3, 2, device=TRITON), torch.zeros((3, 4), dtype=torch.int64, device=TRITON)
    next_token(token, hidden, history, positions, ended, out, weight, weight, (0.0, None, None), None, 3)
    assert token.tolist() == [1, 3, 3]
    assert ended.tolist() == [False, True, True]
    noise = torch.ones(3, 4, device=TRITON)
    next_token(token, hidden, history, positions, ended, out, weight, weight, (1.0, 2, None), noise, 3)
    assert token.tolist() == [1, 3, 3]
    assert history[:, :2].tolist() == [[1, 1], [3, 3], [3, 3]]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_logits_that_are_no_numbers_give_a_token() -> None:
    weight = torch.ones(5, 4, device=TRITON)
    out = torch.full((1, 4), float("nan"), device=TRITON)
    token, positions = (torch.zeros(1, dtype=torch.int64, device=TRITON) for _ in range(2))
    ended, hidden = torch.zeros(1, dtype=torch.bool, device=TRITON), torch.empty(1, 4, device=TRITON)
    history = token.clone()[:, None]
    for sampling in ((0.0, None, None), (1.0, 2, 0.5)):
        noise = torch.ones(1, 5, device=TRITON) if sampling[0] else None
        next_token(token, hidden, history, positions, ended, out, weight, weight, sampling, noise, None)
        assert 0 <= int(token) < 5


def test_what_it_does_not_take() -> None:
    for sampling, some in (((0.0, 3, 0.5), False), ((1.0, 10, 1.0), False), ((1.0, 9, None), True)):
        assert keeps_some(sampling, 10) == some
    weight = torch.zeros(1000, 8)
    assert why_not(1, weight, weight, keeps_some=False) is None
    assert "not small" in str(why_not(1, weight, weight, keeps_some=True))
    assert "not small" in str(why_not(1, torch.zeros(1025, 8), torch.zeros(1025, 8), keeps_some=False))
    assert "not contiguous" in str(why_not(1, weight.t(), weight, keeps_some=False))
    assert "of such a type" in str(why_not(1, weight.double(), weight, keeps_some=False))
