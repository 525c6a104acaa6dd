"""Decoding on a GPU: the fused step beside the separate operators, and the captured loop beside single steps."""

import copy
import gc
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mamba_seq import Backbone, LanguageModel, MambaConfig, ModelConfig
from mamba_seq.config import SSM_KINDS
from mamba_seq.decoding import StepGraph, TokenLoop, length_until_all_stopped
from mamba_seq.fused_step import fused_step, weights_of
from mamba_seq.kernels.block_step import FinalNorm, block_step
from tests.kernels.compare import DEVICE, relative_error

gpu = pytest.mark.gpu
SAMPLING = [{"temperature": 0.0}, {}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.9}]


def lively(ssm: str = "selective", seed: int = 3, **backbone: Any) -> LanguageModel:
    """A model whose next token depends much on what came before."""
    torch.manual_seed(seed)
    config = MambaConfig(**({"d_model": 24, "n_layer": 2, "d_state": 5, "ssm": ssm} | backbone))
    model = LanguageModel(ModelConfig(task="language-model", backbone=config, vocab_size=13))
    for parameter in model.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


def step_by_step(model: LanguageModel, *arguments: Any, **named: Any) -> Tensor:
    with mock.patch("mamba_seq.heads.language_model.FEWEST", 10**9):
        return model.generate(*arguments, **named)


def separate(backbone: Backbone, hidden: Tensor, state: Any) -> Tensor:
    with mock.patch("mamba_seq.backbone.fused_step", return_value=None):
        return backbone.step(hidden, state)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_the_operator_on_a_backbone_is_its_whole_sequence(norm: str) -> None:
    """On the kernels in the interpreter, with the weights and states as the backbone has them."""
    torch.manual_seed(0)
    backbone = Backbone(MambaConfig(d_model=24, n_layer=2, d_state=5, norm=norm, bias=True)).to(DEVICE["triton"])
    for parameter in backbone.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    hidden = torch.randn(2, 6, 24, device=DEVICE["triton"])
    with torch.no_grad():
        whole = backbone(hidden)
    state = backbone.allocate_state(2)
    blocks = [weights_of(block) for block in backbone.blocks]
    assert all(block is not None for block in blocks)
    final = FinalNorm(backbone.norm.weight, getattr(backbone.norm, "bias", None), 1e-5)
    for t in range(6):
        states = [(block.conv, block.ssm) for block in state]
        out = block_step(hidden[:, t], states, blocks, norm, 1e-5, final, "triton")
        assert relative_error(out, whole[:, t]) <= 1e-5


def test_layers_that_were_changed_are_not_passed_over() -> None:
    backbone = Backbone(MambaConfig(d_model=12, n_layer=1))
    assert weights_of(backbone.blocks[0]) is not None

    class Adapted(torch.nn.Linear):
        pass

    backbone.blocks[0].mixer.in_proj = Adapted(12, 48, bias=False)
    assert weights_of(backbone.blocks[0]) is None


def test_length_until_all_stopped() -> None:
    tokens = torch.tensor([[1, 9, 9, 9], [2, 3, 9, 9]])
    assert length_until_all_stopped(tokens, 9) == 3
    assert length_until_all_stopped(tokens[:, :2], 9) == 2
    assert length_until_all_stopped(tokens[:, 2:], 9) == 1


def test_a_step_is_captured_on_a_gpu_only() -> None:
    with pytest.raises(ValueError, match="inputs are on cpu, expected a CUDA device"):
        StepGraph(lively(), torch.zeros(1, dtype=torch.long))


@gpu
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [24, 64, 100, 256])
def test_fused_step_is_the_separate_operators(width: int, dtype: torch.dtype, batch: int) -> None:
    torch.manual_seed(width)
    backbone = Backbone(MambaConfig(d_model=width, n_layer=3, d_state=16)).cuda().to(dtype)
    states = backbone.allocate_state(batch), backbone.allocate_state(batch)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for _ in range(5):
        hidden = torch.randn(batch, width, device="cuda")
        got, want = backbone.step(hidden, states[0]), separate(backbone, hidden, states[1])
        assert got.dtype == want.dtype
        assert relative_error(got, want) <= bound
    for mine, theirs in zip(*states, strict=True):
        assert relative_error(mine.conv, theirs.conv) <= bound
        assert relative_error(mine.ssm, theirs.ssm) <= bound


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "batch"), [(24, 3), (64, 200), (100, 2), (256, 2), (256, 7), (256, 40)])
def test_the_fused_step_is_taken_and_repeats_to_the_bit(width: int, batch: int, dtype: torch.dtype) -> None:
    """Threads that read what others have changed already would show here: all ways to launch, many times over."""
    torch.manual_seed(batch)
    backbone = Backbone(MambaConfig(d_model=width, n_layer=3)).cuda().to(dtype)
    hidden = torch.randn(30, batch, width, device="cuda")
    runs = []
    for _ in range(5):
        state = backbone.allocate_state(batch)
        outs = [fused_step(backbone, row, state) for row in hidden]
        if batch == 40 and dtype == torch.float32:
            assert outs[-1] is None  # tiles are for 16 bits
            return
        assert outs[-1] is not None
        runs.append([*outs, *(tensor for block in state for tensor in block[:2])])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@gpu
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
@pytest.mark.parametrize("ssm", SSM_KINDS)
def test_captured_loop_draws_the_tokens_of_single_steps(ssm: str, sampling: dict[str, Any]) -> None:
    model = lively(ssm).cuda()
    prompts = torch.randint(0, 13, (3, 10), device="cuda")
    generators = [torch.Generator("cuda").manual_seed(7) for _ in range(2)]
    for _ in range(2):  # a second call finds nothing of the first
        got = model.generate(prompts, 80, generator=generators[0], **sampling)
        want = step_by_step(model, prompts, 80, generator=generators[1], **sampling)
        assert torch.equal(got, want)
        assert torch.equal(generators[0].get_state(), generators[1].get_state())
    if sampling.get("temperature") != 0:
        assert len({tuple(row) for row in got.tolist()}) == 3


@gpu
@pytest.mark.parametrize("stop_token", [4, 12])
def test_stop_tokens_end_the_captured_loop(stop_token: int) -> None:
    model = lively().cuda()
    prompts = torch.randint(0, 13, (3, 10), device="cuda")
    generators = [torch.Generator("cuda").manual_seed(1) for _ in range(2)]
    got = model.generate(prompts, 100, stop_token=stop_token, generator=generators[0])  # looks into memory in between
    want = step_by_step(model, prompts, 100, stop_token=stop_token, generator=generators[1])
    assert torch.equal(got, want)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@gpu
def test_seeds_and_torchs_own_random_numbers() -> None:
    model = lively().cuda()
    prompts = torch.randint(0, 13, (2, 5), device="cuda")
    first, again, other = (model.generate(prompts, 40, generator=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    own, following = (model.generate(prompts, 40) for _ in range(2))
    assert not torch.equal(own, following)
    torch.manual_seed(5)
    assert torch.equal(model.generate(prompts, 40), own)


@gpu
def test_two_models_and_weights_that_change_in_between() -> None:
    models = [lively(seed=seed).cuda() for seed in (1, 2)]
    prompts = torch.randint(0, 13, (2, 5), device="cuda")
    for _ in range(2):
        for model in models:
            got = model.generate(prompts, 40, temperature=0)
            assert torch.equal(got, step_by_step(model, prompts, 40, temperature=0))
            for parameter in model.parameters():
                parameter.data.mul_(1.1)
        models[0] = copy.deepcopy(models[0])


@gpu
@pytest.mark.parametrize("how", ["bfloat16", "autocast", "residual in 16 bits"])
def test_16_bits(how: str) -> None:
    model = lively(residual_in_fp32=how != "residual in 16 bits").cuda()
    if how != "autocast":
        model = model.bfloat16()
    prompts = torch.randint(0, 13, (2, 5), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=how == "autocast"):
        got = model.generate(prompts, 40, temperature=0)
        assert torch.equal(got, step_by_step(model, prompts, 40, temperature=0))


@gpu
def test_memory_is_given_back() -> None:
    model = lively(d_model=128).cuda()
    prompts = torch.randint(0, 13, (64, 5), device="cuda")
    held = []
    for _ in range(3):
        model.generate(prompts, 40)
        gc.collect()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert held[2] <= held[0]


@gpu
@pytest.mark.parametrize("sampling", [(0.0, None, None), (1.0, None, None), (1.0, 5, 0.9)], ids=str)
@pytest.mark.parametrize("few", [True, False])
def test_nothing_that_a_graph_uses_is_freed(few: bool, sampling: Any) -> None:
    """Memory that is given back is soon another tensor's."""
    model = lively().cuda()
    first = torch.randint(0, 13, (3,), device="cuda")
    want = None
    for spoil in (False, True):
        generator = torch.Generator("cuda").manual_seed(2)
        with mock.patch("mamba_seq.decoding.few_launches", return_value=few):
            loop = TokenLoop(model, first, model.allocate_state(3), 60, sampling, generator)
        spoilt = [torch.full((n,), 255, dtype=torch.uint8, device="cuda") for n in (1, 64, 512, 4096) * 50 if spoil]
        loop.advance(59)
        got = loop.finish(60).clone()
        assert want is None or torch.equal(got, want)
        want = got
        del spoilt


@gpu
def test_a_step_graph_is_the_step() -> None:
    model = lively().cuda()
    states = model.allocate_state(3), model.allocate_state(3)
    tokens = torch.randint(0, 13, (3, 30), device="cuda")
    graph = StepGraph(model, tokens[:, 0], states[0])
    for t in range(30):
        assert torch.equal(graph(tokens[:, t]), model.step(tokens[:, t], states[1]))
    assert all(torch.equal(a.ssm, b.ssm) for a, b in zip(*states, strict=True))


@gpu
def test_what_cannot_be_captured_runs_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    model = lively().cuda()
    prompts = torch.randint(0, 13, (2, 5), device="cuda")
    want = step_by_step(model, prompts, 40, generator=3)
    model.backbone.norm.register_forward_hook(lambda *_: torch.cuda.synchronize())
    with mock.patch("mamba_seq.backbone.fused_step", return_value=None):
        got = model.generate(prompts, 40, generator=3)
    assert "its step cannot be captured" in caplog.text
    torch.rand(1, device="cuda")  # the generator does not wait for the graph that was never made
    assert (got == want).float().mean() > 0.5  # the separate operators round elsewhere


@pytest.fixture(autouse=True)
def _no_graph_left() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
