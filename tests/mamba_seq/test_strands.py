"""Models that read both strands: a sequence and its reverse complement get the same answer, padded and packed too."""

import pytest
import torch

from mamba_seq import MambaConfig, ModelConfig, from_pretrained
from mamba_seq.heads import SequenceClassifier

COMPLEMENT = [3, 2, 1, 0, 4]
POOLING = ["mean", "last", "max"]


def make(pooling: str = "mean", complement: list[int] = COMPLEMENT) -> SequenceClassifier:
    torch.manual_seed(0)
    config = ModelConfig(
        task="sequence-classification",
        labels=["a", "b", "c"],
        vocab_size=5,
        backbone=MambaConfig(d_model=16, n_layer=2, d_state=4),
        pooling=pooling,  # type: ignore[arg-type]
        complement=complement,
    )
    model = SequenceClassifier(config)
    torch.nn.init.normal_(model.embedding.weight)  # logits that differ
    return model


def reverse_complement(tokens: torch.Tensor) -> torch.Tensor:
    return torch.tensor(COMPLEMENT)[tokens].flip(1)


@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("length", [1, 63, 1000])
def test_both_strands_give_the_same_probabilities(pooling: str, length: int) -> None:
    model = make(pooling)
    tokens = torch.randint(0, 5, (3, length))
    forward, reverse = (model(each).softmax(dim=1) for each in (tokens, reverse_complement(tokens)))
    torch.testing.assert_close(forward, reverse, rtol=0, atol=1e-6)
    one_strand = make(pooling, [])
    one_strand.load_state_dict(model.state_dict())
    if length > 1:
        assert (one_strand(tokens) - one_strand(reverse_complement(tokens))).abs().max() > 1e-3


def test_the_answer_is_made_of_both_strands() -> None:
    model, one_strand = make("mean"), make("mean", [])
    tokens = torch.randint(0, 5, (2, 70))
    expected = (one_strand(tokens) + one_strand(reverse_complement(tokens))) / 2
    torch.testing.assert_close(model(tokens), expected)


@pytest.mark.parametrize("pooling", POOLING)
def test_padded_and_packed_are_as_alone(pooling: str) -> None:
    model = make(pooling)
    sequences = [torch.randint(0, 5, (1, n)) for n in (70, 1, 200)]
    alone = torch.cat([model(each) for each in sequences])
    ends = torch.tensor([0, 70, 71, 271], dtype=torch.int32)
    packed = model(torch.cat(sequences, dim=1), cu_seqlens=ends)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    for side in ("left", "right"):
        batch, mask = torch.full((3, 200), -1), torch.zeros(3, 200, dtype=torch.bool)
        for i, each in enumerate(sequences):
            here = slice(200 - each.shape[1], 200) if side == "left" else slice(0, each.shape[1])
            batch[i, here], mask[i, here] = each[0], True
        torch.testing.assert_close(model(batch, mask), alone, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_other_strand_too() -> None:
    model = make("last")
    tokens, labels = torch.randint(0, 5, (3, 65)), torch.tensor([0, 1, 2])
    gradients = []
    for each in (tokens, reverse_complement(tokens)):
        model.zero_grad()
        model.loss(model(each), labels).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_chunks_are_refused(tmp_path: object) -> None:
    model = make()
    tokens = torch.randint(0, 5, (1, 9))
    with pytest.raises(ValueError, match="a chunk came, expected whole sequences"):
        model(tokens, return_state=True)
    with pytest.raises(ValueError, match="a chunk came, expected whole sequences"):
        model.step(tokens[:, 0], model.allocate_state(1))


def test_it_is_saved(tmp_path: object) -> None:
    model = make()
    again = from_pretrained(model.save_pretrained(str(tmp_path), dtype=torch.float32))
    assert again.config.complement == COMPLEMENT
    tokens = torch.randint(0, 5, (2, 40))
    torch.testing.assert_close(again(tokens), model(tokens))


@pytest.mark.parametrize("complement", [[0, 1, 2], [3, 2, 1, 0, 5], [1, 2, 3, 0, 4]])
def test_a_map_that_is_no_complement_is_refused(complement: list[int]) -> None:
    with pytest.raises(ValueError, match="expected for each of the 5 tokens the one that stands for it"):
        make(complement=complement)


def test_only_whole_sequences_have_two_strands() -> None:
    with pytest.raises(ValueError, match="expected none for language-model"):
        ModelConfig(
            task="language-model", vocab_size=5, backbone=MambaConfig(d_model=8, n_layer=1), complement=COMPLEMENT
        )
