"""Language models of sound: the class of a sequence is heard at every token, and levels may be embedded as waves."""

from typing import Any

import pytest
import torch

from mamba_seq import (
    LanguageModel,
    MambaConfig,
    ModelConfig,
    ModelError,
    SaShiMiConfig,
    export_mamba_ssm,
    from_pretrained,
)
from tests.kernels.compare import relative_error
from tests.mamba_seq.layouts import boundaries

STACK = MambaConfig(d_model=8, n_layer=1, d_state=4)


def conditional(backbone: Any = STACK) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(task="language-model", backbone=backbone, vocab_size=9, labels=["low", "high"])
    model = LanguageModel(config).eval()
    torch.nn.init.normal_(model.label_embedding.weight)
    return model


@pytest.mark.parametrize("backbone", [STACK, SaShiMiConfig(d_model=8, n_layer=1, d_state=4, pool=[2])])
def test_forms_agree_for_each_class(backbone: Any) -> None:
    model = conditional(backbone)
    tokens, labels = torch.randint(0, 9, (3, 21)), torch.tensor([1, 0, -1])
    with torch.no_grad():
        whole = model(tokens, labels=labels)
        alone = [model(row[None], labels=label[None]) for row, label in zip(tokens, labels, strict=True)]
        assert relative_error(whole, torch.cat(alone)) <= 1e-5
        logits, state = model.prefill(tokens[:, :10], labels=labels)
        assert relative_error(logits, whole[:, 9]) <= 1e-5
        for t in range(10, 21):
            out = model.step(tokens[:, t], state, labels)
        assert relative_error(out, whole[:, -1]) <= 1e-5
        # each class says something else, and none is the embedding of tokens alone
        each = [model(tokens[:1], labels=torch.tensor([label])) for label in (-1, 0, 1)]
        assert min(relative_error(a, b) for a, b in ((each[0], each[1]), (each[1], each[2]))) > 1e-3
        generated = model.generate(tokens, 5, temperature=0, labels=labels)
        assert torch.equal(model(generated, labels=labels)[:, 20:-1].argmax(dim=-1), generated[:, 21:])


def test_packed_sequences_have_a_class_each() -> None:
    model = conditional()
    sequences, labels = [torch.randint(0, 9, (n,)) for n in (5, 1, 12)], torch.tensor([1, -1, 0])
    with torch.no_grad():
        packed = model(torch.cat(sequences)[None], cu_seqlens=boundaries([5, 1, 12]), labels=labels)
        alone = [model(s[None], labels=label[None]) for s, label in zip(sequences, labels, strict=True)]
    assert relative_error(packed, torch.cat(alone, dim=1)) <= 1e-5


def test_labels_that_do_not_fit(language_model: LanguageModel) -> None:
    model, tokens = conditional(), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"labels is None, expected the classes \(2,\).*low, high.*-1"):
        model(tokens)
    with pytest.raises(ValueError, match=r"labels is int64 \(3,\), expected int64 \(2,\)"):
        model(tokens, labels=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels is float32 \(2,\)"):
        model.step(tokens[:, 0], model.allocate_state(2), torch.zeros(2))
    with pytest.raises(ValueError, match="labels came, but the model is not conditional"):
        language_model(tokens, labels=torch.zeros(2, dtype=torch.long))


def test_other_packages_have_no_such_model(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=r"the model is conditional \(low, high\)"):
        export_mamba_ssm(conditional(), tmp_path / "out")


def of_waves(**fields: Any) -> ModelConfig:
    config = {"task": "language-model", "vocab_size": 256, "tie_embeddings": False, "embedding": "sinusoidal", **fields}
    return ModelConfig(backbone=STACK, **config)


def test_near_levels_have_near_vectors(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = LanguageModel(of_waves()).eval()
    tokens = torch.randint(0, 256, (2, 30))
    with torch.no_grad():
        vectors = model.embed(torch.arange(256)[None])[0]
        distance = torch.cdist(vectors, vectors)
        gaps = [distance.diagonal(gap).mean().item() for gap in (1, 4, 16, 64)]
        assert gaps == sorted(gaps)
        assert gaps[-1] > 3 * gaps[0]
        assert (distance + 1e9 * torch.eye(256)).min() > 1e-3  # and no two are one
        whole, state = model(tokens), model.allocate_state(2)
        for t in range(30):
            out = model.step(tokens[:, t], state)
        assert relative_error(out, whole[:, -1]) <= 1e-5
        loaded = from_pretrained(model.save_pretrained(tmp_path / "saved", dtype=torch.float32))
        assert torch.equal(loaded(tokens), whole)
    model.loss(model(tokens), tokens).backward()
    assert model.embedding.linear.weight.grad.abs().max() > 0
    with pytest.raises(ModelError, match="embedding is 'sinusoidal', expected 'learned'"):
        export_mamba_ssm(model, tmp_path / "out")


@pytest.mark.parametrize(
    "fields", [{"tie_embeddings": True}, {"task": "ctc", "labels": ["a"], "vocab_size": None, "input_features": 2}]
)
def test_waves_are_no_output_matrix_and_need_tokens(fields: Any) -> None:
    if "task" in fields:
        fields = {**fields, "tie_embeddings": True}
    with pytest.raises(ValueError, match="embedding is 'sinusoidal', expected 'learned'"):
        of_waves(**fields)
