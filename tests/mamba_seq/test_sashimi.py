"""SaShiMi: three forms that agree at every rate, nothing heard of the future, and what it refuses."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq import (
    LanguageModel,
    MambaConfig,
    ModelConfig,
    ModelError,
    SaShiMi,
    SaShiMiConfig,
    cache_chunks,
    export_hf,
    from_pretrained,
)
from mamba_seq.config import SSM_KINDS
from mamba_seq.heads import MODELS
from mamba_seq.s4 import S4Layer
from tests.kernels.compare import relative_error
from tests.mamba_seq.layouts import weighted_sum

SIZES = [(8, [2], 11), (4, [4, 4], 37), (2, [2, 3, 2], 40), (1, [16, 16], 290), (2, [], 5)]
"""Layers a stage, pooling factors, a length that none of their products divides and that ends in a begun window."""


def sashimi(**fields: Any) -> SaShiMi:
    """Build a small one in which no parameter is without effect."""
    torch.manual_seed(0)
    model = SaShiMi(SaShiMiConfig(**{"d_model": 6, "n_layer": 2, "d_state": 3, "pool": [4, 4], **fields})).eval()
    for name, p in model.named_parameters():
        if name.endswith((".D", "bias")) and "dt_bias" not in name:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    return model


def in_steps(model: SaShiMi, x: Tensor, state: Any = None) -> Tensor:
    state = model.allocate_state(len(x)) if state is None else state
    return torch.stack([model.step(x[:, t], state) for t in range(x.shape[1])], dim=1)


def in_chunks(model: SaShiMi, x: Tensor, lengths: list[int]) -> tuple[Tensor, Any]:
    state, found = None, []
    for chunk in x.split([*lengths, x.shape[1] - sum(lengths)], dim=1):
        out, state = model(chunk, state=state, return_state=True)
        found.append(out)
    return torch.cat(found, dim=1), state


@pytest.mark.parametrize(("topology", "ff"), [("unet", 0), ("sashimi", 2)])
@pytest.mark.parametrize("ssm", SSM_KINDS)
@pytest.mark.parametrize(("layers", "pool", "length"), SIZES)
def test_forms_agree_in_double_precision(
    layers: int, pool: list[int], length: int, ssm: str, topology: str, ff: int
) -> None:
    model = sashimi(n_layer=layers, pool=pool, ssm=ssm, topology=topology, ff=ff).double()
    x = torch.randn(2, length, 6, dtype=torch.float64)
    with torch.no_grad():
        whole = model(x)
        chunks, state = in_chunks(model, x, [1, 0, 3])
        assert relative_error(chunks, whole) <= 1e-9
        assert relative_error(in_steps(model, x), whole) <= 1e-9
        assert state.position == length
        # after a prompt of any length, in the middle of a window too, steps go on
        cut = length * 2 // 3
        _, prompt = model(x[:, :cut], return_state=True)
        assert relative_error(in_steps(model, x[:, cut:], prompt), whole[:, cut:]) <= 1e-9


@pytest.mark.parametrize(
    ("block", "ssm"),
    [
        ("s4", "time-invariant"),
        ("s4", "time-invariant-real"),
        (["mamba", "s4", "mamba"], ["selective", "time-invariant", "complex"]),
    ],
)
@pytest.mark.parametrize("topology", ["unet", "sashimi"])
def test_forms_of_s4_layers_agree(block: Any, ssm: Any, topology: str) -> None:
    model = sashimi(block=block, ssm=ssm, topology=topology, ff=2)
    assert any(isinstance(module, S4Layer) for module in model.modules())
    x = torch.randn(2, 77, 6)
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        model, x = model.to(dtype), x.to(dtype)
        with torch.no_grad():
            whole = model(x)
            chunks, _ = in_chunks(model, x, [17, 17, 1, 33])
            assert relative_error(chunks, whole) <= most
            assert relative_error(in_steps(model, x), whole) <= most
    leaf = x.clone().requires_grad_()
    model(leaf)[0, 40].sum().backward()
    heard = leaf.grad[0].abs().sum(dim=1)
    assert (heard[41:] <= 1e-13 * heard.max()).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    kept = {name: p.dtype for name, p in model.float().bfloat16().named_parameters() if name.endswith((".C", "A_log"))}
    assert set(kept.values()) == {torch.float32}


def test_an_s4_layer_is_the_sum_over_its_kernel() -> None:
    torch.manual_seed(0)
    config = MambaConfig(d_model=3, n_layer=1, d_state=4, ssm="time-invariant")
    layer, x = S4Layer(config).double(), torch.randn(1, 20, 3, dtype=torch.float64)
    with torch.no_grad():
        delta = torch.nn.functional.softplus(layer.dt_bias)[:, None]
        A = torch.complex(-layer.A_log.exp(), layer.A_imag)
        decay, B, C = torch.exp(delta * A), torch.view_as_complex(layer.B), torch.view_as_complex(layer.C)
        kernel = [2 * (C * B * (decay - 1) / A * decay**t).real.sum(dim=1) for t in range(20)]
        y = torch.stack([sum(kernel[t - s] * x[0, s] for s in range(t + 1)) + layer.D * x[0, t] for t in range(20)])
        value, gate = layer.out_proj(torch.nn.functional.gelu(y)).chunk(2, dim=-1)
        assert relative_error(layer(x)[0], value * gate.sigmoid()) <= 1e-9
    with pytest.raises(ValueError, match="an S4 layer takes sequences that fill their tensor"):
        layer(x, torch.ones(1, 20, dtype=torch.bool))


@pytest.mark.parametrize("topology", ["unet", "sashimi"])
@pytest.mark.parametrize("ssm", SSM_KINDS)
def test_forms_agree_in_single_precision(ssm: str, topology: str) -> None:
    model = sashimi(ssm=ssm, topology=topology)
    x = torch.randn(3, 83, 6)
    with torch.no_grad():
        whole = model(x)
        chunks, _ = in_chunks(model, x, [17, 17, 1, 33])
        assert relative_error(chunks, whole) <= 1e-4
        assert relative_error(in_steps(model, x), whole) <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("topology", ["unet", "sashimi"])
@pytest.mark.parametrize("ssm", SSM_KINDS)
def test_forms_agree_on_a_gpu(ssm: str, topology: str) -> None:
    model = sashimi(ssm=ssm, topology=topology)
    x = torch.randn(3, 1003, 6)
    with torch.no_grad():
        want = model.double()(x.double()).float()
        model = model.float().cuda()
        whole = model(x.cuda())
        assert relative_error(whole, want) <= 1e-4
        chunks, _ = in_chunks(model, x.cuda(), [17, 17, 1, 333])
        assert relative_error(chunks, want) <= 1e-4
        assert relative_error(in_steps(model, x.cuda()), want) <= 1e-4


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 63, 1000, 2049])
def test_any_length(length: int) -> None:
    """A longer sequence begins with the same outputs: what is missing of the last window matters to nobody."""
    model = sashimi(n_layer=1)
    x = torch.randn(1, 2064, 6)
    with torch.no_grad():
        assert model(x[:, :length]).shape == (1, length, 6)
        assert relative_error(model(x[:, :length]), model(x)[:, :length]) <= 1e-5


@pytest.mark.parametrize("ssm", ["complex", "time-invariant"])
def test_chunks_for_the_cache_make_no_difference(monkeypatch: pytest.MonkeyPatch, ssm: str) -> None:
    model = sashimi(ssm=ssm)
    x = torch.randn(3, 137, 6)
    want = model(x).detach()  # with gradients it runs whole
    runs: list[int] = []
    level = SaShiMi._level

    def counted(self: SaShiMi, at: int, x: Tensor, *args: Any) -> Tensor:
        runs.extend([x.shape[1]] if at == 0 else [])
        return level(self, at, x, *args)

    monkeypatch.setattr(SaShiMi, "_level", counted)
    monkeypatch.setattr(cache_chunks, "SASHIMI_CHUNK", 33)
    monkeypatch.setattr(cache_chunks, "SASHIMI_POSITIONS", 33)
    with torch.no_grad():
        assert relative_error(model(x), want) <= 1e-5
        assert runs == ([137] if ssm == "time-invariant" else [48, 48, 41])
        _, state = model(x[:, :100], return_state=True)
        assert relative_error(model(x[:, 100:], state=state), want[:, 100:]) <= 1e-5


def test_kinds_and_layers_of_each_level() -> None:
    model = sashimi(ssm=["time-invariant", "complex", "selective"], n_layer=[1, 3, 2], widen=3)
    blocks = {name: m.mixer.config for name, m in model.named_modules() if hasattr(m, "mixer")}
    kinds = {name.split(".layers")[0]: (c.ssm, c.d_model) for name, c in blocks.items()}
    outer, middle = ("time-invariant", 6), ("complex", 18)
    assert kinds == {"down.0": outer, "down.1": middle, "centre": ("selective", 54), "up.1": middle, "up.0": outer}
    assert len(blocks) == 1 + 3 + 2 + 3 + 1
    x = torch.randn(2, 50, 6)
    with torch.no_grad():
        assert relative_error(in_steps(model, x), model(x)) <= 1e-4


@pytest.mark.parametrize("topology", ["unet", "sashimi"])
@pytest.mark.parametrize("ssm", ["selective", "time-invariant-real"])
def test_no_stage_hears_of_the_future(topology: str, ssm: str) -> None:
    """The gradient of what a stage says reaches to the last position that it may know, and no further."""
    model = sashimi(topology=topology, ssm=ssm, ff=2, n_layer=1).double()
    said: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        return lambda module, args, out: said.__setitem__(name, out[0][-1] if isinstance(out, tuple) else out)

    stages = {name: m for name, m in model.named_modules() if re.fullmatch(r"(down|up|pools|raises)\.\d|centre", name)}
    assert len(stages) == (9 if topology == "unet" else 7)
    for name, stage in stages.items():
        stage.register_forward_hook(listen(name))
    x = torch.randn(1, 64, 6, dtype=torch.float64, requires_grad=True)
    said["the whole"] = model(x)
    # positions of the sequence in one of the stage's; what a raise gives is of a whole window, and shifted after it
    spans = {"pools.0": 4, "down.1": 4, "up.1": 4, "pools.1": 16, "centre": 16, "raises.0": 4, "raises.1": 16}
    for name, out in said.items():
        span = spans.get(name, 1)
        raised = {"raises.0": 4, "raises.1": 4}.get(name, 1)  # positions that come up from one
        for at in (0, 1, 2, out.shape[1] // 2 + 1, out.shape[1] - 1):
            (gradient,) = torch.autograd.grad(out[0, at].sum(), x, retain_graph=True)
            heard = gradient[0].abs().sum(dim=1)
            end = (at // raised + 1) * span
            # an FFT spreads rounding over the whole sequence
            assert (heard[end:] <= 1e-13 * heard.max()).all(), (name, at)
            assert heard[end - 1] > 1e-9 * heard.max(), (name, at)


def test_only_the_pooled_path_hears_of_far_away() -> None:
    """With the outer blocks silenced, window k + 1 is the first to hear of window k, and hears all of it."""
    model = sashimi(pool=[4], n_layer=1).double()
    for stage in (*model.down, *model.up):
        for layer in stage.layers:
            torch.nn.init.zeros_(layer.mixer.out_proj.weight)
    x = torch.randn(1, 16, 6, dtype=torch.float64, requires_grad=True)
    out = model(x)
    for t in range(16):
        (gradient,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True)
        heard = (gradient[0].abs().sum(dim=1) > 0).nonzero().flatten().tolist()
        assert heard == [*range(t // 4 * 4), t]


def test_padding_changes_nothing() -> None:
    model = sashimi()
    sequences = [torch.randn(1, length, 6) for length in (1, 21, 40)]
    parameters = dict(model.named_parameters())

    def found(outputs: list[Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        weighted_sum(outputs).backward()
        return {f"output {i}": o.detach() for i, o in enumerate(outputs)} | {n: p.grad for n, p in parameters.items()}

    want = found([model(sequence) for sequence in sequences])
    for side in ("left", "right"):
        rows, mask = torch.full((3, 45, 6), 7.0), torch.zeros(3, 45, dtype=torch.bool)
        for row, real, sequence in zip(rows, mask, sequences, strict=True):
            n = sequence.shape[1]
            here = slice(0, n) if side == "right" else slice(45 - n, 45)
            row[here], real[here] = sequence[0], True
        got = found([row[real][None] for row, real in zip(model(rows, mask), mask, strict=True)])
        errors = {name: relative_error(got[name], expected) for name, expected in want.items()}
        assert not {n: e for n, e in errors.items() if not e <= 1e-5}


def test_gradients_pass_from_chunk_to_chunk() -> None:
    model = sashimi()
    x = torch.randn(2, 45, 6)
    found = []
    for run in (model, lambda x: in_chunks(model, x, [7, 18])[0]):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        weighted_sum([run(leaf)]).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()} | {"x": leaf.grad})
    for name, want in found[0].items():
        assert relative_error(found[1][name], want) <= 1e-4, name


@pytest.mark.parametrize("every", [True, 3])
@pytest.mark.parametrize("topology", ["unet", "sashimi"])
def test_checkpointing_changes_no_gradient(topology: str, every: bool | int) -> None:
    model = sashimi(topology=topology, ff=2, dropout=0.2).train()
    x = torch.randn(2, 33, 6)
    found = []
    for model.gradient_checkpointing in (False, every):
        model.zero_grad()
        torch.manual_seed(3)
        weighted_sum([model(x)]).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    model.gradient_checkpointing = -1
    with pytest.raises(ValueError, match="gradient_checkpointing is -1, expected"):
        model(x)


def test_states_share_nothing_that_a_step_writes_into() -> None:
    model = sashimi()
    x = torch.randn(1, 40, 6)
    with torch.no_grad():
        whole = model(x)
        for cut in (3, 16, 22):
            _, before = model(x[:, :cut], return_state=True)
            # a chunk that completes no window passes the inner levels' states on
            _, after = model(x[:, cut : cut + 1], state=before, return_state=True)
            in_steps(model, torch.randn(1, 20, 6), before)
            assert relative_error(in_steps(model, x[:, cut + 1 :], after), whole[:, cut + 1 :]) <= 1e-4


def test_16_bits() -> None:
    for residual_in_fp32 in (True, False):
        model = sashimi(residual_in_fp32=residual_in_fp32)
        x = torch.randn(2, 40, 6)
        with torch.no_grad():
            want = model(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert relative_error(model(x).float(), want) < 0.1
                assert relative_error(in_steps(model, x).float(), want) < 0.1
            model.bfloat16()
            assert model(x.bfloat16()).dtype == torch.bfloat16
            assert relative_error(in_steps(model, x.bfloat16()).float(), want) < 0.1


def test_what_is_refused() -> None:
    model, other = sashimi(), sashimi(n_layer=1)
    x, mask = torch.randn(2, 8, 6), torch.ones(2, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"cu_seqlens came.*pad the sequences and give a mask"):
        model(x[:1], cu_seqlens=torch.tensor([0, 3, 8], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"state is of stages of \[1, 1, 1, 1, 1\] layers, expected \[2, 2, 2, 2, 2\]"):
        model.step(x[:, 0], other.allocate_state(2))
    with pytest.raises(ValueError, match="state is a list, expected the SaShiMiState"):
        model(x, state=[])
    assert len(model(x, mask, return_state=True)) == 2  # nothing is padding
    mask[1, 5:] = False
    with pytest.raises(ValueError, match=r"mask has padding and a state is given or asked for"):
        model(x, mask, return_state=True)
    with pytest.raises(ValueError, match="mask has type int64, expected bool"):
        model(x, mask.long())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pool", [4, 1], r"pool is \[4, 1\], expected factors of at least 2"),
        ("pool", [4.0], r"pool is \[4\.0\], expected list\[int\]"),
        ("n_layer", [2, 2], r"n_layer is \[2, 2\], expected 3 entries, one a level"),
        ("n_layer", 0, "n_layer is 0, expected at least 1"),
        ("ssm", ["selective"], r"ssm is \['selective'\], expected 3 entries"),
        ("ssm", "s5", "ssm is 's5', expected one of 'selective'"),
        ("block", "s4", "block is 's4' where ssm is 'selective', expected a time-invariant kind"),
        ("block", "rnn", "block is 'rnn', expected 'mamba' or 's4'"),
        ("block", ["mamba"], r"block is \['mamba'\], expected 3 entries"),
        ("topology", "tree", "topology is 'tree', expected 'unet' or 'sashimi'"),
        ("widen", 0, "widen is 0, expected at least 1"),
        ("ff", -1, "ff is -1, expected"),
        ("d_state", 0, "d_state is 0, expected at least 1"),
    ],
)
def test_bad_configs_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaShiMiConfig(**{"d_model": 8, field: value})


@pytest.mark.parametrize("task", MODELS)
def test_every_task_has_it_as_a_backbone(task: str, tmp_path: Any) -> None:
    labels = [] if task == "language-model" else ["a", "b", "c"]
    backbone = SaShiMiConfig(d_model=6, n_layer=1, d_state=3, pool=[2, 2], ssm=["selective", "complex", "selective"])
    torch.manual_seed(0)
    model = MODELS[task](ModelConfig(task=task, backbone=backbone, vocab_size=7, labels=labels)).eval()
    model.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    tokens = torch.randint(0, 7, (2, 23))
    with torch.no_grad():
        whole = model(tokens)
        assert torch.equal(loaded(tokens), whole)
        state = model.allocate_state(2)
        for t in range(23):
            out = model.step(tokens[:, t], state)
            if isinstance(out, tuple):
                out, state = out
        assert relative_error(out, whole if out.shape == whole.shape else whole[:, -1]) <= 1e-4


def test_greedy_tokens_are_the_best() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        task="language-model",
        backbone=SaShiMiConfig(d_model=8, n_layer=1, d_state=4, pool=[2, 3]),
        vocab_size=16,
        tie_embeddings=False,
    )
    model = LanguageModel(config).eval()
    tokens = model.generate(torch.randint(0, 16, (2, 5)), 20, temperature=0)
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, 4:-1].argmax(dim=-1), tokens[:, 5:])


def test_other_packages_have_no_such_model(tmp_path: Any) -> None:
    config = ModelConfig(task="language-model", backbone=SaShiMiConfig(d_model=8, n_layer=1), vocab_size=16)
    with pytest.raises(ModelError, match="the backbone is a sashimi, expected a stack"):
        export_hf(LanguageModel(config), tmp_path / "out")
