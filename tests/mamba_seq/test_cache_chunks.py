"""Long sequences without a gradient: run in chunks that fit a cache, and the same as at once."""

import pytest
import torch

from mamba_seq import Backbone, MambaConfig, cache_chunks
from mamba_seq.cache_chunks import chunk_length

CONFIG = MambaConfig(d_model=8, n_layer=2, d_state=4)


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A backbone for which no cache is large enough: chunks are as short as they get."""
    monkeypatch.setattr(cache_chunks, "CACHE_FLOATS", 1)
    torch.manual_seed(0)
    return Backbone(CONFIG).eval()


def calls(backbone: Backbone) -> list[int]:
    """Gather the lengths that the first block is called with."""
    lengths: list[int] = []
    backbone.blocks[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    return lengths


@pytest.mark.parametrize("length", [1, 63, 129, 1000])
def test_chunks_are_the_whole(backbone: Backbone, length: int) -> None:
    hidden = torch.randn(2, length, CONFIG.d_model)
    whole, final = backbone(hidden, return_state=True)
    lengths = calls(backbone)
    with torch.no_grad():
        chunked, state = backbone(hidden, return_state=True)
        alone = backbone(hidden)
        first, carried = backbone(hidden[:, : length // 3], return_state=True)
        rest = backbone(hidden[:, length // 3 :], state=carried)
    assert max(lengths) == min(length, 128)
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, chunked, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=1e-5, atol=1e-5)
    for got, expected in zip(state, final, strict=True):
        torch.testing.assert_close(got.ssm, expected.ssm, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.conv, expected.conv, rtol=1e-5, atol=1e-5)


def test_padding_over_whole_chunks_changes_nothing(backbone: Backbone) -> None:
    hidden = torch.randn(3, 400, CONFIG.d_model)
    mask = torch.ones(3, 400, dtype=torch.bool)
    mask[0, :300] = False  # two chunks of padding before anything else
    mask[1, 5:] = False
    whole, final = backbone(hidden, mask, return_state=True)
    lengths = calls(backbone)
    with torch.no_grad():
        chunked, state = backbone(hidden, mask, return_state=True)
    assert lengths == [128, 128, 128, 16]
    torch.testing.assert_close(chunked[mask], whole[mask], rtol=1e-5, atol=1e-5)
    for got, expected in zip(state, final, strict=True):
        torch.testing.assert_close(got.ssm, expected.ssm, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.conv, expected.conv, rtol=1e-5, atol=1e-5)
    with torch.no_grad(), pytest.raises(ValueError, match=r"mask has shape \(3, 399\), expected"):
        backbone(hidden, mask[:, 1:])


def test_what_needs_a_gradient_or_draws_numbers_is_run_at_once(backbone: Backbone) -> None:
    hidden = torch.randn(1, 300, CONFIG.d_model)
    lengths = calls(backbone)
    backbone(hidden)
    backbone.train()
    with torch.no_grad():
        backbone(hidden)
    assert lengths == [300, 300]


def test_chunks_go_by_sizes_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MambaConfig(d_model=128, n_layer=12)
    lengths = {}
    with torch.no_grad():
        for threads in (1, 2):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            for batch in (1, 4, 1000):
                lengths[threads, batch] = chunk_length(torch.empty(batch, 5, 128), config)
        assert chunk_length(torch.empty(2, 0, 128), config) > 0
        assert chunk_length(torch.empty(1, 5, 128, device="meta"), config) == 5
    assert all(length % 128 == 0 for length in lengths.values())
    assert lengths[1, 1] * 2 <= lengths[2, 1] <= lengths[1, 1] * 2 + 128
    assert lengths[1, 4] * 4 <= lengths[1, 1] < lengths[1, 4] * 4 + 4 * 128
    assert lengths[2, 1000] == 128
    assert chunk_length(torch.empty(1, 5, 128), config) == 5  # with gradients
