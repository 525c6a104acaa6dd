"""Classifier and language model: forms that agree, padding that changes nothing, for every pooling."""

from collections.abc import Callable

import pytest
import torch

from mamba_seq import LanguageModel, SequenceClassifier

Make = Callable[..., SequenceClassifier]


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
class TestClassifier:
    def test_chunks_and_steps_give_the_whole(self, make_classifier: Make, pooling: str) -> None:
        model = make_classifier(pooling)
        tokens = torch.randint(0, 5, (3, 63))
        with torch.no_grad():
            whole = model(tokens)
            state = stepped = model.allocate_state(3)
            for chunk in tokens.split(20, dim=1):
                chunked, state = model(chunk, state=state, return_state=True)
            for t in range(63):
                logits, stepped = model.step(tokens[:, t], stepped)
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, make_classifier: Make, pooling: str, side: str) -> None:
        model = make_classifier(pooling)
        sequences = [torch.randint(0, 5, (n,)) for n in (30, 7, 1)]
        tokens = torch.zeros(3, 41, dtype=torch.long)
        mask = torch.zeros(3, 41, dtype=torch.bool)
        for i, sequence in enumerate(sequences):
            where = slice(0, len(sequence)) if side == "right" else slice(41 - len(sequence), 41)
            tokens[i, where], mask[i, where] = sequence, True
        with torch.no_grad():
            padded = model(tokens, mask)
            alone = torch.cat([model(sequence[None]) for sequence in sequences])
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)

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

    def test_a_whole_sequence_allocates_no_state_of_the_backbone(
        self, make_classifier: Make, pooling: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would be zeros that nobody reads, as large as every block's state."""
        model = make_classifier(pooling)
        monkeypatch.delattr(type(model.backbone), "allocate_state")
        assert model(torch.zeros(2, 4, dtype=torch.long)).shape == (2, 3)


def test_language_model_forms_agree(language_model: LanguageModel) -> None:
    tokens = torch.randint(0, 7, (2, 50))
    with torch.no_grad():
        whole = language_model(tokens)
        state, chunks = None, []
        for chunk in tokens.split(13, dim=1):
            logits, state = language_model(chunk, state=state, return_state=True)
            chunks.append(logits)
        prompt, stepped = language_model.prefill(tokens[:, :20])
        rest = [prompt] + [language_model.step(tokens[:, t], stepped) for t in range(20, 50)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(rest, dim=1), whole[:, 19:], rtol=1e-5, atol=1e-5)


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
