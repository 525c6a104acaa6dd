"""Learned positions of aligned sequences: whole, chunked, stepped, padded and packed forms agree."""

import pytest
import torch

from mamba_seq import MambaConfig, ModelConfig
from mamba_seq.heads import SequenceClassifier


@pytest.fixture
def model() -> SequenceClassifier:
    torch.manual_seed(0)
    config = ModelConfig(
        task="sequence-classification",
        backbone=MambaConfig(d_model=8, n_layer=2, d_state=4),
        vocab_size=5,
        labels=["a", "b"],
        pooling="mean",
        positions=9,
    )
    made = SequenceClassifier(config).eval()
    assert made.position is not None
    torch.nn.init.normal_(made.position.weight)
    return made


def test_all_forms_agree(model: SequenceClassifier) -> None:
    tokens = torch.randint(0, 5, (3, 9))
    with torch.inference_mode():
        whole = model(tokens)
        _, state = model(tokens[:, :4], return_state=True)
        chunked = model(tokens[:, 4:], state=state)
        state = model.allocate_state(3)
        for i in range(9):
            stepped, state = model.step(tokens[:, i], state)
        lengths = (9, 4, 1)
        mask = torch.arange(12)[None] >= torch.tensor([12 - n for n in lengths])[:, None]
        padded = torch.zeros(3, 12, dtype=torch.long)
        padded[mask] = torch.cat([tokens[i, :n] for i, n in enumerate(lengths)])
        boundaries = torch.tensor([0, 9, 13, 14], dtype=torch.int32)
        packed = model(padded[mask][None], cu_seqlens=boundaries)
        left = model(padded, mask=mask)
        alone = torch.cat([model(tokens[i : i + 1, :n]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(stepped, whole)
    torch.testing.assert_close(left, alone)
    torch.testing.assert_close(packed, alone)
    assert not torch.allclose(whole, model(tokens.flip(1)), atol=1e-3)


def test_longer_sequences_are_refused(model: SequenceClassifier) -> None:
    with pytest.raises(ValueError, match="a sequence of 10 positions came, expected at most 9"):
        model(torch.zeros(1, 10, dtype=torch.long))


def test_positions_need_a_whole_sequence_task() -> None:
    backbone = MambaConfig(d_model=8, n_layer=1)
    with pytest.raises(ValueError, match="positions is 9, expected none for ctc"):
        ModelConfig(task="ctc", backbone=backbone, vocab_size=5, labels=["a"], positions=9)
    with pytest.raises(ValueError, match="target_mean has 1 numbers and target_scale 0"):
        ModelConfig(task="sequence-regression", backbone=backbone, vocab_size=5, labels=["a"], target_mean=[1.0])
