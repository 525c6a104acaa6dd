"""Long sequences: whole, in pieces, and padded beside a short one; and what is read first decides at the end."""

from typing import Any

import pytest
import torch

from mamba_seq import MambaConfig, ModelConfig
from mamba_seq.heads import LanguageModel, SequenceClassifier

BACKBONE = MambaConfig(d_model=16, n_layer=2, d_state=8)
LONG = [
    pytest.param("cpu", 1 << 16, 1 << 13, id="2^16"),
    pytest.param("cuda", 1 << 20, 1 << 16, id="2^20", marks=pytest.mark.gpu),
]


def models(device: str, pooling: str) -> list[Any]:
    torch.manual_seed(0)
    labels = ["a", "b", "c"]
    classifier = ModelConfig(
        task="sequence-classification",
        labels=labels,
        vocab_size=5,
        backbone=BACKBONE,
        pooling=pooling,  # type: ignore[arg-type]
    )
    language = ModelConfig(task="language-model", vocab_size=5, backbone=BACKBONE)
    both = [SequenceClassifier(classifier), LanguageModel(language)]
    for model in both:
        torch.nn.init.normal_(model.embedding.weight)
    # in training mode, for a model in evaluation goes through the CPU's cache in chunks by itself
    return [model.to(device).train() for model in both]


@pytest.mark.parametrize(("device", "length", "piece"), LONG)
@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_whole_is_chunked_is_padded(device: str, length: int, piece: int, pooling: str) -> None:
    classifier, language = models(device, pooling)
    tokens = torch.randint(0, 5, (1, length), device=device)
    batch = torch.cat([tokens, torch.zeros_like(tokens)])
    mask = torch.ones_like(batch, dtype=torch.bool)
    mask[1, 1000:] = False
    for model in (classifier, language):
        whole = model(tokens)
        state, pieces = None, []
        for chunk in tokens.split(piece, dim=1):
            out, state = model(chunk, state=state, return_state=True)
            pieces.append(out)
        chunked = pieces[-1] if model is classifier else torch.cat(pieces, dim=1)
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)
        torch.testing.assert_close(model(batch, mask)[:1], whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_a_million_positions_on_a_cpu(pooling: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        task="sequence-classification",
        labels=["a", "b", "c"],
        vocab_size=5,
        backbone=MambaConfig(d_model=4, n_layer=1, d_state=4),
        pooling=pooling,  # type: ignore[arg-type]
    )
    model = SequenceClassifier(config).train()
    torch.nn.init.normal_(model.embedding.weight)
    tokens = torch.randint(0, 5, (1, 1 << 20))
    whole, state = model(tokens), None
    for chunk in tokens.split(1 << 16, dim=1):
        chunked, state = model(chunk, state=state, return_state=True)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)
    mask = torch.ones(2, 1 << 20, dtype=torch.bool)
    mask[1, 1000:] = False
    padded = model(tokens.expand(2, -1), mask)
    torch.testing.assert_close(padded[:1], whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(padded[1:], model(tokens[:, :1000]), rtol=0, atol=1e-4)


def needle_model() -> SequenceClassifier:
    """Keep in two channels which of two tokens came, and let a third, the filler, change nothing: its step is 2e-9."""
    backbone = MambaConfig(d_model=4, n_layer=1, d_state=1, conv_bias=True)
    config = ModelConfig(
        task="sequence-classification", labels=["one", "two"], vocab_size=3, backbone=backbone, pooling="last"
    )
    model = SequenceClassifier(config)
    block = model.backbone.blocks[0].mixer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight[:, :3] = torch.eye(3)
        for norm in (model.backbone.norm, model.backbone.blocks[0].norm):
            norm.weight.fill_(1)
        block.in_proj.weight[:4] = torch.eye(4)  # x: which token it is; D = 8, of which 4 are used
        block.in_proj.weight[8:, 0] = 1  # the gate is open at fillers
        block.conv_weight[:, -1] = 1
        block.x_proj.weight[0, 1:3] = 20  # delta's factor, B: at the two tokens
        block.x_proj.weight[1, 1:3] = 0.03
        block.x_proj.weight[2, 0] = 1  # C: at fillers
        block.dt_proj.weight.fill_(1)
        block.dt_bias.fill_(-20)
        block.out_proj.weight[1, 1] = block.out_proj.weight[2, 2] = 1
        model.head.weight[0, 1] = model.head.weight[1, 2] = 2
    return model


@pytest.mark.parametrize(
    ("device", "length", "piece"), [pytest.param("cpu", 1 << 20, 1 << 16, id="2^20 on a CPU"), LONG[1]]
)
def test_a_needle_at_the_start_decides_at_the_end(device: str, length: int, piece: int) -> None:
    model = needle_model().to(device)
    tokens = torch.zeros(2, length, dtype=torch.long, device=device)
    tokens[0, 0], tokens[1, 0] = 1, 2
    logits = model(tokens)
    assert logits.argmax(dim=1).tolist() == [0, 1]
    assert (logits.softmax(dim=1).amax(dim=1) > 0.75).all()
    # moved by one place it is the same; it is no matter of the place
    torch.testing.assert_close(model(tokens.roll(1, dims=1)), logits, rtol=1e-4, atol=1e-4)
    state = None
    for chunk in tokens.split(piece, dim=1):
        chunked, state = model(chunk, state=state, return_state=True)
    torch.testing.assert_close(chunked, logits, rtol=0, atol=1e-4)
    hidden = model.embed(tokens).detach().requires_grad_()
    model.read(model.backbone(hidden)).gather(1, torch.tensor([[0], [1]], device=device)).sum().backward()
    assert hidden.grad is not None
    first, middle = hidden.grad[:, 0].abs().amax(), hidden.grad[:, length // 2].abs().amax()
    assert first > 1e-3
    assert middle < 1e-3 * first
