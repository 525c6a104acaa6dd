"""Block and backbone: their start, their types, their states, bad input. Forms and layouts: `test_layouts.py`."""

import copy
import io
import math

import pytest
import torch

from mamba_seq import Backbone, Mamba, MambaConfig
from mamba_seq.block import inverse_softplus


def random_backbone(config: MambaConfig) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(config)
    for layer in backbone.layers:
        torch.nn.init.uniform_(layer.mixer.D, 0.5, 1.5)
    return backbone


def test_padded_chunks_carry_the_right_state(config: MambaConfig) -> None:
    """A batch that ends at different chunks: rows already over are masked and keep their state."""
    backbone = random_backbone(config)
    hidden = torch.randn(2, 30, config.d_model)
    with torch.no_grad():
        _, expected = backbone(hidden[:1, :11], return_state=True)
        state, mask = None, torch.arange(30)[None] < torch.tensor([[11], [30]])
        for start in range(0, 30, 7):
            _, state = backbone(
                hidden[:, start : start + 7], mask[:, start : start + 7], state=state, return_state=True
            )
    for got, want in zip(state, expected, strict=True):
        torch.testing.assert_close(got.ssm[:1], want.ssm, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.conv[:1], want.conv, rtol=1e-5, atol=1e-5)


def test_future_does_not_reach_the_past(config: MambaConfig) -> None:
    backbone = random_backbone(config)
    hidden = torch.randn(1, 20, config.d_model, requires_grad=True)
    backbone(hidden)[0, 11].sum().backward()
    assert hidden.grad[0, 12:].abs().max() == 0
    assert (hidden.grad[0, :12].abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_parameters_stay_float32(config: MambaConfig, dtype: torch.dtype) -> None:
    backbone = random_backbone(config)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    backbone.to(dtype)
    for name, parameter in backbone.named_parameters():
        if name.endswith(("A_log", "mixer.D", "dt_bias")):
            assert parameter.dtype == torch.float32, name
            assert torch.equal(parameter, before[name]), name
        else:
            assert parameter.dtype == dtype, name
    out = backbone(torch.randn(1, 9, config.d_model, dtype=dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


def test_bfloat16_follows_float32(config: MambaConfig) -> None:
    backbone = random_backbone(config)
    hidden = torch.randn(2, 100, config.d_model)
    with torch.no_grad():
        expected = backbone(hidden)
        got = backbone.to(torch.bfloat16)(hidden.bfloat16()).float()
    assert (got - expected).norm() / expected.norm() < 2e-2


def test_autocast_gives_close_outputs_and_float32_gradients(config: MambaConfig) -> None:
    backbone = random_backbone(config)
    hidden = torch.randn(2, 50, config.d_model)
    expected = backbone(hidden).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = backbone(hidden, return_state=True)
        backbone.step(hidden[:, 0], backbone.allocate_state(2))
    out.square().sum().backward()
    assert (out.detach() - expected).norm() / expected.norm() < 2e-2
    assert all(layer.ssm.dtype == torch.float32 for layer in state)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in backbone.parameters())


def test_initialisation_is_the_papers() -> None:
    torch.manual_seed(0)
    block = Mamba(MambaConfig(d_model=64, n_layer=1))
    assert torch.allclose(-torch.exp(block.A_log), -torch.arange(1.0, 17).expand(128, 16))
    steps = torch.nn.functional.softplus(block.dt_bias)
    assert 0.001 <= steps.min() < 0.002
    assert 0.05 < steps.max() <= 0.1001
    assert (block.D == 1).all()
    assert block.dt_proj.weight.abs().max() <= 4**-0.5


def test_inverse_softplus_inverts() -> None:
    x = torch.tensor([1e-4, 1e-3, 0.1, 1.0, 30.0])
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(x)), x, rtol=1e-4, atol=0)


def test_parameter_count_is_that_of_the_papers_dna_models() -> None:
    """12 layers x 128 are 1.4 M parameters, 16 x 256 are 7.0 M (arXiv 2312.00752, appendix E.3)."""
    for n_layer, d_model, millions in ((12, 128, 1.4), (16, 256, 7.0)):
        count = sum(p.numel() for p in Backbone(MambaConfig(d_model=d_model, n_layer=n_layer)).parameters())
        assert math.isclose(count / 1e6, millions, rel_tol=0.03)


def test_layer_norm_is_an_option() -> None:
    backbone = Backbone(MambaConfig(d_model=8, n_layer=1, norm="layer"))
    assert isinstance(backbone.norm, torch.nn.LayerNorm)
    assert backbone(torch.randn(1, 5, 8)).shape == (1, 5, 8)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 2049])
def test_the_state_does_not_hold_the_sequence_in_memory(config: MambaConfig, length: int) -> None:
    """A slice of all inputs is right too, but it keeps as much memory as the sequence needed."""
    _, state = random_backbone(config)(torch.randn(1, length, config.d_model), return_state=True)
    for layer in state:
        assert layer.conv.shape == (1, config.d_inner, 3)
        assert layer.conv.untyped_storage().nbytes() <= 2 * layer.conv.numel() * 4
        assert layer.ssm.untyped_storage().nbytes() <= 2 * layer.ssm.numel() * 4


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 9, dtype=torch.long), "mask has type int64, expected bool"),
        (torch.ones(2, 1, dtype=torch.bool), r"mask has shape \(2, 1\), expected \(B, L\) = \(2, 9\)"),
        (torch.ones(9, dtype=torch.bool), r"mask has shape \(9,\), expected"),
    ],
)
def test_masks_that_would_broadcast_are_refused(config: MambaConfig, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_backbone(config)(torch.randn(2, 9, config.d_model), mask)


def test_a_state_of_another_stack_is_refused(config: MambaConfig) -> None:
    backbone, hidden = random_backbone(config), torch.randn(1, 4, config.d_model)
    longer = 2 * backbone.allocate_state(1)
    with pytest.raises(ValueError, match="state is of 4 blocks, expected 2"):
        backbone(hidden, state=longer)
    with pytest.raises(ValueError, match="state is of 1 blocks, expected 2"):
        backbone.step(hidden[:, 0], longer[:1])


def test_step_builds_no_graph(config: MambaConfig) -> None:
    """Its gradient would be that of the last projection alone, and wrong without a word."""
    backbone = random_backbone(config)
    assert not backbone.step(torch.randn(1, config.d_model), backbone.allocate_state(1)).requires_grad
    mixer = backbone.blocks[0].mixer
    assert not mixer.step(torch.randn(1, config.d_model), mixer.allocate_state(1)).requires_grad


def test_a_state_made_under_autocast_goes_on_without_it(config: MambaConfig) -> None:
    backbone = random_backbone(config)
    hidden = torch.randn(2, 20, config.d_model)
    with torch.no_grad():
        expected = backbone(hidden)[:, -1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, state = backbone(hidden[:, :-1], return_state=True)
        got = backbone.step(hidden[:, -1], state)
    assert got.dtype == torch.float32
    assert (got - expected).norm() / expected.norm() < 2e-2


def test_scan_parameters_come_back_from_float64_in_float32(config: MambaConfig) -> None:
    backbone = random_backbone(config).double().bfloat16()
    assert backbone.blocks[0].mixer.A_log.dtype == torch.float32
    assert torch.isfinite(backbone(torch.randn(1, 9, config.d_model, dtype=torch.bfloat16))).all()


def test_a_copied_or_pickled_model_is_the_same(config: MambaConfig) -> None:
    backbone, hidden = random_backbone(config), torch.randn(1, 9, config.d_model)
    expected = backbone(hidden)
    buffer = io.BytesIO()
    torch.save(backbone, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(backbone), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(hidden), expected)
        assert other.bfloat16().blocks[0].mixer.A_log.dtype == torch.float32
    assert backbone.blocks[0].mixer.in_proj.weight.dtype == torch.float32


def test_names_of_parameters_are_those_of_saved_models() -> None:
    """A renamed parameter would make every saved model unreadable."""
    names = sorted(Backbone(MambaConfig(d_model=8, n_layer=1, bias=True)).state_dict())
    block = ["A_log", "D", "conv_bias", "conv_weight", "dt_bias", "dt_proj.weight", "in_proj.bias", "in_proj.weight"]
    block += ["out_proj.bias", "out_proj.weight", "x_proj.weight"]
    assert names == [*(f"layers.0.mixer.{name}" for name in block), "layers.0.norm.weight", "norm.weight"]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_nothing_goes_through(config: MambaConfig, shape: tuple[int, int]) -> None:
    backbone = random_backbone(config)
    hidden = torch.zeros(*shape, config.d_model, requires_grad=True)
    mask = torch.ones(shape, dtype=torch.bool)
    for out, state in (backbone(hidden, return_state=True), backbone(hidden, mask, return_state=True)):
        assert out.shape == hidden.shape
        assert state[0].conv.shape == (shape[0], config.d_inner, 3)
        out.sum().backward()
    assert hidden.grad.shape == hidden.shape
