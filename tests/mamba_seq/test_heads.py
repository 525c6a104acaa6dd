"""What is particular to the classifier, for every pooling, and to the language model. Forms: `test_forms.py`."""

from collections.abc import Callable

import pytest
import torch

from mamba_seq import LanguageModel, SequenceClassifier

Make = Callable[..., SequenceClassifier]


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
class TestClassifier:
    def test_a_chunk_of_padding_alone_changes_nothing(self, make_classifier: Make, pooling: str) -> None:
        model = make_classifier(pooling)
        tokens = torch.randint(0, 5, (2, 12))
        with torch.no_grad():
            before, state = model(tokens, return_state=True)
            after, _ = model(tokens[:, :5], torch.zeros(2, 5, dtype=torch.bool), state=state, return_state=True)
        torch.testing.assert_close(after, before, rtol=0, atol=0)

    def test_logits_are_float32_and_of_every_label(self, make_classifier: Make, pooling: str) -> None:
        logits = make_classifier(pooling).bfloat16()(torch.randint(0, 5, (2, 9)))
        assert logits.dtype == torch.float32
        assert logits.shape == (2, 3)

    def test_nothing_read_gives_the_bias(self, make_classifier: Make, pooling: str) -> None:
        model = make_classifier(pooling)
        torch.nn.init.normal_(model.head.bias)
        masked = model(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.bool))
        for logits in (masked, model(torch.zeros(2, 0, dtype=torch.long))):
            assert torch.equal(logits, model.head.bias.expand(2, 3))

    def test_a_step_has_no_gradient(self, make_classifier: Make, pooling: str) -> None:
        model = make_classifier(pooling)
        logits, state = model.step(torch.zeros(2, dtype=torch.long), model.allocate_state(2))
        assert not logits.requires_grad
        assert not state.pooled.vector.requires_grad


def test_prefill_of_left_padded_prompts_continues_each(language_model: LanguageModel) -> None:
    prompts = [torch.randint(0, 7, (n,)) for n in (9, 4)]
    tokens = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        tokens[i, 9 - len(prompt) :], mask[i, 9 - len(prompt) :] = prompt, True
    following = torch.tensor([3, 5])
    with torch.no_grad():
        logits, state = language_model.prefill(tokens, mask)
        then = language_model.step(following, state)
        for i, prompt in enumerate(prompts):
            alone = language_model(torch.cat([prompt, following[i : i + 1]])[None])[0]
            torch.testing.assert_close(logits[i], alone[-2], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(then[i], alone[-1], rtol=1e-5, atol=1e-5)


def test_prefill_refuses_prompts_without_a_last_token(language_model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"tokens is \(1, 0\), expected \(B, L\) with at least one token"):
        language_model.prefill(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="pad prompts on the left"):
        language_model.prefill(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[True, False]]))


def test_empty_sequence_of_a_stateful_call_keeps_the_state(language_model: LanguageModel) -> None:
    with torch.no_grad():
        _, state = language_model.prefill(torch.randint(0, 7, (1, 8)))
        logits, after = language_model(torch.zeros(1, 0, dtype=torch.long), state=state, return_state=True)
    assert logits.shape == (1, 0, 7)
    assert all(torch.equal(a.ssm, b.ssm) and torch.equal(a.conv, b.conv) for a, b in zip(after, state, strict=True))
