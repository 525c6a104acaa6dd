"""Models under torch.compile: one graph, forward and backward, for any length, and chunk after chunk."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mamba_seq import Backbone, LanguageModel, Mamba, MambaConfig, ModelConfig, SequenceClassifier

pytestmark = pytest.mark.usefixtures("_nothing_compiled")

CONFIG = MambaConfig(d_model=16, n_layer=1, d_state=4)


def classifier() -> nn.Module:
    return SequenceClassifier(
        ModelConfig(task="sequence-classification", backbone=CONFIG, vocab_size=5, labels=["one", "other"])
    )


def language_model() -> nn.Module:
    return LanguageModel(ModelConfig(task="language-model", backbone=CONFIG, vocab_size=5))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "block": (lambda: Mamba(CONFIG), lambda L: torch.randn(2, L, 16)),
    "backbone": (lambda: Backbone(CONFIG), lambda L: torch.randn(2, L, 16)),
    "classifier": (classifier, lambda L: torch.randint(5, (2, L))),
    "language-model": (language_model, lambda L: torch.randint(5, (2, L))),
}


@pytest.mark.parametrize("kind", MODELS)
def test_one_graph_for_every_length(kind: str) -> None:
    make, draw = MODELS[kind]
    torch.manual_seed(0)
    model = make()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for L in (130, 1000):
        given, mask = draw(L), torch.arange(L) < torch.tensor([[L], [L - 5]])
        results = []
        for run in (model, compiled):
            model.zero_grad()
            out = run(given, mask)
            out.square().mean().backward()
            results.append({"out": out} | {name: p.grad.clone() for name, p in model.named_parameters()})
        for name, want in results[0].items():
            close = 1e-5 * want.abs().max().item()
            torch.testing.assert_close(results[1][name], want, rtol=1e-4, atol=close, msg=lambda m, n=name: f"{n}: {m}")
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 2


def test_autocast() -> None:
    torch.manual_seed(0)
    block, hidden = Mamba(CONFIG), torch.randn(2, 130, 16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        want, got = block(hidden), compiled(hidden)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2 * want.abs().max().item())


def test_chunks_and_steps() -> None:
    """The state of a compiled chunk goes on in the next, and in compiled steps that change it in place."""
    torch.manual_seed(0)
    backbone, hidden = Backbone(MambaConfig(d_model=16, n_layer=2, d_state=4)), torch.randn(2, 136, 16)
    whole = backbone(hidden)
    run = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    step = torch.compile(backbone.step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        first, state = run(hidden[:, :67], return_state=True)
        second, state = run(hidden[:, 67:133], state=state, return_state=True)
        rest = [step(hidden[:, t], state)[:, None] for t in range(133, 136)]
    torch.testing.assert_close(torch.cat([first, second, *rest], dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ssm", ["selective", "complex"])
def test_packed(ssm: str) -> None:
    """Boundaries are read when the graph runs: others of the same number need no new one."""
    torch.manual_seed(0)
    backbone, hidden = Backbone(MambaConfig(d_model=16, n_layer=1, d_state=4, ssm=ssm)), torch.randn(1, 130, 16)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(backbone, fullgraph=True, backend=counter)
    graphs = []
    for cut in ([0, 5, 70, 130], [0, 64, 65, 130]):
        cu_seqlens = torch.tensor(cut, dtype=torch.int32)
        want, got = backbone(hidden, cu_seqlens=cu_seqlens), compiled(hidden, cu_seqlens=cu_seqlens)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]
