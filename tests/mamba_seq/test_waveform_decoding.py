"""Clips sample by sample: every engine is the whole forward pass, and a clip is the same alone and in any batch."""

from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq import LanguageModel, MambaConfig, ModelConfig, SaShiMiConfig
from mamba_seq.config import SSM_KINDS
from mamba_seq.counted import Drawing, counted_uniform, draw_counted
from mamba_seq.kernels._dispatch import implementation
from mamba_seq.kernels.step_program import StepProgram
from mamba_seq.step_writer import StepWriter
from mamba_seq.waveform_decoding import WaveformDecoder
from mamba_seq.waveform_graph import FusedLevels, why_not_fused
from tests.kernels.compare import DEVICE, relative_error

V, SILENCE = 33, 16
LABELS = ["low", "high", "none"]
TWO = {"d_model": 10, "n_layer": 2, "d_state": 3, "pool": [2, 4]}


def levels_model(backbone: Any = None, **fields: Any) -> LanguageModel:
    """Build a small one whose logits are far from even and in which no parameter is without effect."""
    torch.manual_seed(0)
    backbone = backbone or SaShiMiConfig(**{**TWO, "norm": "layer"})
    tied = fields.pop("tie_embeddings", False)
    config = ModelConfig(task="language-model", backbone=backbone, vocab_size=V, tie_embeddings=tied, **fields)
    model = LanguageModel(config).eval()
    for name, p in model.named_parameters():
        if name.endswith((".D", "bias")) and "dt_bias" not in name:
            torch.nn.init.uniform_(p, 0.5, 1.5)
        if name in ("output.weight", "embedding.weight", "label_embedding.weight"):
            torch.nn.init.normal_(p, std=0.3 if tied else 1.0)
    return model


MODELS: dict[str, Any] = {
    **{kind: (SaShiMiConfig(**TWO, ssm=kind, norm="layer"), {}) for kind in SSM_KINDS},
    "s4": (SaShiMiConfig(**TWO, block="s4", ssm="time-invariant", topology="sashimi", ff=2), {}),
    "s4-real-unet": (SaShiMiConfig(**TWO, block="s4", ssm="time-invariant-real"), {}),
    "mixed": (SaShiMiConfig(**{**TWO, "n_layer": [3, 1, 2]}, ssm=["selective", "time-invariant", "complex"]), {}),
    "one-layer-16-16": (SaShiMiConfig(d_model=16, n_layer=1, d_state=16, pool=[16, 16]), {}),
    "wide": (SaShiMiConfig(d_model=34, n_layer=4, d_state=4, pool=[2], bias=True, conv_bias=False, d_conv=2), {}),
    "no-pools": (SaShiMiConfig(d_model=8, n_layer=2, pool=[]), {}),
    "stack": (MambaConfig(d_model=12, n_layer=3, d_state=5), {"tie_embeddings": True}),
    "waves": (SaShiMiConfig(**TWO), {"embedding": "sinusoidal"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_compiled_is_the_whole_forward_pass_and_the_eager_step(name: str) -> None:
    backbone, fields = MODELS[name]
    model = levels_model(backbone, **fields)
    length = 63 if name != "one-layer-16-16" else 290
    writer = StepWriter(model)
    first = torch.full((3,), SILENCE)
    program = StepProgram(writer.builder, 3, V, Drawing(seed=5), first, torch.arange(3))
    read, logits, found = [first], [], []
    for _ in range(length):
        drawn, likelihood = program.run(1)
        read.append(drawn[:, 0])
        found.append(likelihood[:, 0])
        logits.append(program.read(writer.logits.place, (V,)))
    tokens = torch.stack(read, dim=1)
    with torch.no_grad():
        whole = model(tokens[:, :-1])
    assert relative_error(torch.stack(logits, dim=1), whole) <= 1e-5
    expected = whole.log_softmax(dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
    assert relative_error(torch.stack(found, dim=1), expected) <= 1e-5
    levels, likelihood = WaveformDecoder(model, SILENCE, "eager").start([0, 1, 2], Drawing(seed=5)).advance(length)
    assert torch.equal(levels, tokens[:, 1:])
    assert relative_error(likelihood, expected) <= 1e-5


@pytest.mark.parametrize("name", ["selective", "complex", "s4", "stack"])
@pytest.mark.parametrize("length", [1, 5, 8, 41])
def test_prompt_then_steps_is_the_whole(name: str, length: int) -> None:
    backbone, fields = MODELS[name]
    model = levels_model(backbone, **fields)
    prompt = torch.randint(0, V, (length,))
    tokens, likelihood = WaveformDecoder(model, SILENCE).start([4, 9], Drawing(), None, prompt).advance(19)
    clips = torch.cat([torch.full((2, 1), SILENCE), prompt.expand(2, -1), tokens], dim=1)
    with torch.no_grad():
        whole = model(clips[:, :-1]).log_softmax(dim=-1)
    expected = whole.gather(-1, clips[:, 1:, None])[:, length:, 0]
    assert (likelihood - expected).abs().max() <= 1e-4
    eager = WaveformDecoder(model, SILENCE, "eager").start([4, 9], Drawing(), None, prompt).advance(19)
    assert torch.equal(tokens, eager[0])


@pytest.mark.parametrize(("threads", "guidance"), [(1, 1), (3, 1), (3, 3)])
def test_clip_is_the_same_alone_and_in_any_batch(threads: int, guidance: float) -> None:
    model = levels_model(labels=LABELS, label_dropout=0.1)
    prompt = torch.randint(0, V, (11,))
    decoder = WaveformDecoder(model, SILENCE)
    torch.set_num_threads(threads)
    for begin in (None, prompt):
        indices, labels = list(range(37)), [i % 4 - 1 for i in range(37)]
        drawing = Drawing(0.9, 20, 0.95, 2**40 + 3, guidance)
        together = decoder.start(indices, drawing, labels, begin).advance(50)
        for some in ([0], [36], [5, 3], list(range(7, 25))):
            alone = decoder.start(some, drawing, [labels[i] for i in some], begin)
            parts = [alone.advance(n) for n in (1, 30, 19)]
            assert torch.equal(torch.cat([p[0] for p in parts], dim=1), together[0][some])
            assert torch.equal(torch.cat([p[1] for p in parts], dim=1), together[1][some])
    assert len({tuple(row.tolist()) for row in together[0]}) == 37


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing(0.0),
        Drawing(0.3, seed=1),
        Drawing(2.0, top_k=3),
        Drawing(1.0, top_p=0.5),
        Drawing(1.5, 7, 0.8),
        Drawing(1.0, 1000, 1.0),
        Drawing(1e-30),
    ],
)
def test_compiled_draws_as_eager(drawing: Drawing) -> None:
    model = levels_model(labels=LABELS)
    labels = [0, 1, 2, -1]
    compiled = WaveformDecoder(model, SILENCE).start([0, 1, 2, 7], drawing, labels).advance(64)
    eager = WaveformDecoder(model, SILENCE, "eager").start([0, 1, 2, 7], drawing, labels).advance(64)
    assert torch.equal(compiled[0], eager[0])
    assert relative_error(compiled[1], eager[1]) <= 1e-5


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize("length", [0, 11])
def test_guided_draws_are_those_of_the_formula(engine: str, length: int) -> None:
    """By the whole forward pass with classes and without, put together by hand."""
    model = levels_model(labels=LABELS, label_dropout=0.1)
    prompt, labels, index = torch.randint(0, V, (length,)), torch.tensor([2, 0, -1]), torch.tensor([4, 9, 1])
    drawing = Drawing(0.8, 20, seed=3, guidance=2.5)
    levels, found = WaveformDecoder(model, SILENCE, engine).start(index, drawing, labels, prompt).advance(24)
    clips = torch.cat([torch.full((3, 1), SILENCE), prompt.expand(3, -1), levels], dim=1)
    with torch.no_grad():
        given, none = (model(clips[:, :-1], labels=each)[:, length:] for each in (labels, torch.full((3,), -1)))
    kept = (none + 2.5 * (given - none)) / 0.8
    kept = kept.masked_fill(kept < kept.topk(20).values[..., -1:], -torch.inf)
    numbers = torch.stack([counted_uniform(3, index, length + t) for t in range(24)], dim=1)
    expected = (kept.double().softmax(dim=-1).cumsum(dim=-1) <= numbers[..., None]).sum(dim=-1)
    assert torch.equal(levels, expected)
    assert (found - given.log_softmax(dim=-1).gather(-1, levels[..., None])[..., 0]).abs().max() <= 1e-4
    plain = WaveformDecoder(model, SILENCE, engine).start(index, drawing._replace(guidance=1), labels, prompt)
    levels = plain.advance(24)[0]
    assert not torch.equal(levels[:2], expected[:2])
    assert torch.equal(levels[2], expected[2])  # of no class, there is nothing to be guided by


def test_without_guidance_nothing_changes() -> None:
    """Of a model that has none of its own, and of one that is asked for none; what a config says is what is done."""
    own, old = levels_model(labels=LABELS, label_dropout=0.1, guidance=2.0), levels_model(labels=LABELS)

    def clips(model: LanguageModel, guidance: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        drawing = Drawing(seed=2, guidance=guidance)
        return WaveformDecoder(model, SILENCE).start([0, 1, 2], drawing, [0, 1, 2]).advance(40)

    for model, guidance in ((old, 1), (own, 1.0)):
        assert all(map(torch.equal, clips(model, guidance), clips(old, None)))
    assert all(map(torch.equal, clips(own, None), clips(own, 2)))
    # so near to 1 that it is 1 in float32: still pairs
    assert torch.equal(clips(own, 1 + 1e-12)[0], clips(old, None)[0])


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & 0xFFFFFFFF, (p >> 32) ^ d ^ m, p & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def test_random_numbers_are_philox() -> None:
    # the known answers of Random123's kat_vectors
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    for seed, index, position in [(0, 0, 0), (2**62 + 12345, 2**35 + 9, 2**33 + 1), (7, 3, 15999)]:
        words = philox(
            [position & 0xFFFFFFFF, position >> 32, index & 0xFFFFFFFF, index >> 32], [seed & 0xFFFFFFFF, seed >> 32]
        )
        found = counted_uniform(seed, torch.tensor([index]), position)
        assert found.item() == (2 * (words[0] >> 9) + 1) / 2**24


def test_random_numbers_are_even_and_never_the_ends() -> None:
    numbers = torch.cat([counted_uniform(3, torch.arange(2000), t) for t in range(10)])
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = np.histogram(numbers.numpy(), bins=20, range=(0, 1))[0]
    assert abs(counts / 1000 - 1).max() < 0.12


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -torch.inf]).expand(20_000, 5)
    tokens, likelihood = draw_counted(logits, Drawing(2.0, seed=1), torch.arange(20_000), 7)
    expected = (logits[0] / 2).softmax(dim=0)
    assert abs(tokens.bincount(minlength=5) / 20_000 - expected).max() < 0.01
    assert torch.allclose(likelihood, logits[0].log_softmax(dim=0)[tokens])
    kept = draw_counted(logits, Drawing(1.0, top_k=2, top_p=0.99), torch.arange(20_000), 7)[0]
    assert set(kept.tolist()) == {0, 3}


def test_wrong_arguments_are_refused() -> None:
    model = levels_model(labels=LABELS)
    decoder = WaveformDecoder(model, SILENCE)
    with pytest.raises(ValueError, match="expected the classes"):
        decoder.start([0], Drawing())
    with pytest.raises(ValueError, match="seed is -1"):
        decoder.start([0], Drawing(seed=-1), [0])
    with pytest.raises(ValueError, match="top_p is 0"):
        decoder.start([0], Drawing(top_p=0.0), [0])
    with pytest.raises(ValueError, match="temperature is 1e-320"):
        decoder.start([0], Drawing(1e-320), [0])
    with pytest.raises(ValueError, match="guidance is nan"):
        decoder.start([0], Drawing(guidance=float("nan")), [0])
    with pytest.raises(ValueError, match=r"guidance is 2, expected 1: .* without label dropout.*label_dropout 0\.1"):
        decoder.start([0], Drawing(guidance=2), [0])
    with pytest.raises(ValueError, match=r"guidance is 2, expected 1: the model knows no classes"):
        WaveformDecoder(levels_model(), SILENCE).start([0], Drawing(guidance=2))
    with pytest.raises(ValueError, match="graphs are for CUDA devices"):
        WaveformDecoder(model, SILENCE, "graph")
    with pytest.raises(ValueError, match="float64 on cpu"):
        WaveformDecoder(levels_model().double(), SILENCE, "compiled")
    with pytest.raises(ValueError, match="expected one of compiled"):
        WaveformDecoder(model, SILENCE, "fast")


UNET = {"d_model": 16, "n_layer": 2, "d_state": 4, "norm": "layer"}


@pytest.mark.parametrize(("alone", "guidance"), [(0, 1.7), (8192, 1.0)])
def test_fused_levels_are_the_eager_step(alone: int, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = implementation("block_step", "triton")
    monkeypatch.setattr(kernels, "LARGEST_ALONE", alone)  # 0: all blocks in tiles
    device = DEVICE["triton"]
    model = levels_model(SaShiMiConfig(**UNET, pool=[2]), labels=LABELS, label_dropout=0.1).to(device)
    index, labels = torch.tensor([3, 2**33], device=device), torch.tensor([1, -1], device=device)
    drawing = Drawing(0.8, 9, 0.9, 2**40 + 5, guidance)
    levels, likelihood = WaveformDecoder(model, SILENCE, "eager").start(index, drawing, labels).advance(4)
    if guidance != 1:
        labels, index = torch.tensor([1, -1, -1, -1], device=device), index.repeat_interleave(2)
    state, tokens = model.allocate_state(len(index)), torch.full_like(index, SILENCE)
    positions = torch.zeros_like(index)
    drawn, found = index.new_zeros((2, 4)), torch.zeros((2, 4), device=device)
    assert why_not_fused(model, state, drawing) is None
    with torch.no_grad():
        step = FusedLevels(model, state, index, drawing, labels, tokens, positions, drawn, found, 0)
        for position in range(4):
            step(position)
    assert torch.equal(drawn, levels)
    assert relative_error(found, likelihood) <= 1e-5
    assert torch.equal(tokens, levels[:, -1].repeat_interleave(drawing.rows))
    assert (positions == 4).all()


def test_fused_levels_say_what_they_do_not_run() -> None:
    for fields, words in (
        ({"ssm": "complex"}, "not all real selective"),
        ({"topology": "sashimi"}, "no U-Net"),
        ({"residual_in_fp32": False}, "not float32"),
        ({"d_model": 264}, "are not small"),
    ):
        model = levels_model(SaShiMiConfig(**{**UNET, "pool": [2], **fields}))
        assert words in (why_not_fused(model, model.allocate_state(1), Drawing()) or "")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [1, 2])
@pytest.mark.parametrize("name", ["fused", "wide", "complex", "stack"])
def test_graph_is_the_eager_step(name: str, guidance: float, dtype: torch.dtype) -> None:
    wide = SaShiMiConfig(d_model=64, n_layer=3, pool=[4, 4], norm="layer")
    backbone = {"fused": SaShiMiConfig(**UNET, pool=[2, 4]), "wide": wide}.get(name) or MODELS[name][0]
    model = levels_model(backbone, labels=LABELS, label_dropout=0.1).cuda().to(dtype)
    prompt = torch.randint(0, V, (21,)).cuda()
    arguments = (list(range(5)), Drawing(0.9, 20, 0.95, 3, guidance), [0, 1, 2, -1, 0])
    for begin in (None, prompt):
        levels, likelihood = WaveformDecoder(model, SILENCE).start(*arguments, begin).advance(50)
        tokens = levels if begin is None else torch.cat([begin.expand(5, -1), levels], dim=1)
        inputs = torch.cat([torch.full((5, 1), SILENCE, device="cuda"), tokens[:, :-1]], dim=1)
        with torch.no_grad():
            whole = model(inputs, labels=torch.tensor(arguments[2]).cuda()).float().log_softmax(dim=-1)
        expected = whole.gather(-1, tokens[..., None])[:, -50:, 0]
        assert (likelihood - expected).abs().max() <= (1e-3 if dtype == torch.float32 else 0.5)
        if dtype == torch.float32:
            eager = WaveformDecoder(model, SILENCE, "eager").start(*arguments, begin).advance(50)
            assert torch.equal(levels, eager[0])


@pytest.mark.gpu
@pytest.mark.parametrize("guidance", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clip_is_the_same_in_any_batch_on_a_gpu(dtype: torch.dtype, guidance: float) -> None:
    for backbone in (SaShiMiConfig(d_model=64, n_layer=2, pool=[4, 4], norm="layer"), MODELS["complex"][0]):
        model = levels_model(backbone, labels=LABELS, label_dropout=0.1).cuda().to(dtype)
        decoder = WaveformDecoder(model, SILENCE)
        indices, labels = list(range(300)), [i % 3 for i in range(300)]
        drawing = Drawing(seed=1, guidance=guidance)
        levels, likelihood = decoder.start(indices, drawing, labels).advance(200)
        for some in ([0], [299], list(range(10, 47)), list(range(100, 250))):
            alone = decoder.start(some, drawing, [labels[i] for i in some]).advance(200)
            assert torch.equal(alone[0], levels[some])
            assert torch.equal(alone[1], likelihood[some])
