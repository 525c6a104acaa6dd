"""The block's recurrences: each against a loop over its parameters, their initialisation, their types."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq import Mamba, MambaConfig
from tests.kernels.compare import relative_error
from tests.mamba_seq.layouts import KINDS, random_backbone


def random_block(kind: str, **fields: object) -> Mamba:
    torch.manual_seed(3)
    block = Mamba(MambaConfig(**{"d_model": 6, "n_layer": 1, "d_state": 4, "d_conv": 3, "ssm": kind, **fields}))
    torch.nn.init.normal_(block.D)
    if not block.config.is_selective:
        torch.nn.init.normal_(block.B)
    return block


def serial(block: Mamba, hidden: Tensor) -> Tensor:
    """Compute the block for one sequence (L, d_model), one position and one channel after the other."""
    config = block.config
    n, rank = config.d_state, config.rank
    x, z = (hidden @ block.in_proj.weight.T).chunk(2, dim=-1)
    length, channels = x.shape
    out = torch.zeros(length, channels, dtype=hidden.dtype)
    convolved = torch.zeros_like(out)
    for t in range(length):
        for k in range(config.d_conv):
            if t - config.d_conv + 1 + k >= 0:
                convolved[t] += block.conv_weight[:, k] * x[t - config.d_conv + 1 + k]
        convolved[t] = F.silu(convolved[t] + block.conv_bias)
    for d in range(channels):
        A = -block.A_log[d].exp()
        A = A + 1j * block.A_imag[d] if config.has_complex_states else A
        h = torch.zeros(n, dtype=A.dtype)
        for t in range(length):
            u = convolved[t, d]
            if config.is_selective:
                projected = block.x_proj.weight @ convolved[t]
                delta = F.softplus(block.dt_proj.weight[d] @ projected[:rank] + block.dt_bias[d])
                B, C = projected[rank:].chunk(2)
                if config.has_complex_states:
                    B, C = B[0::2] + 1j * B[1::2], C[0::2] + 1j * C[1::2]
                weight = delta * B
            else:
                delta, B, C = F.softplus(block.dt_bias[d]), block.B[d], block.C[d]
                if config.has_complex_states:
                    B, C = B[:, 0] + 1j * B[:, 1], C[:, 0] + 1j * C[:, 1]
                weight = (torch.exp(delta * A) - 1) / A * B
            h = torch.exp(delta * A) * h + weight * u
            y = (C * h).sum()
            y = 2 * y.real if config.has_complex_states else y
            out[t, d] = (y + block.D[d] * u) * F.silu(z[t, d])
    return out @ block.out_proj.weight.T


@pytest.mark.parametrize("kind", KINDS)
def test_the_block_is_its_definition(kind: str) -> None:
    block = random_block(kind)
    hidden = torch.randn(11, 6)
    with torch.no_grad():
        assert relative_error(block(hidden[None])[0], serial(block, hidden)) <= 1e-5
        block.double()
        assert relative_error(block(hidden.double()[None])[0], serial(block, hidden.double())) <= 1e-9


@pytest.mark.parametrize("kind", ["complex", "time-invariant"])
def test_complex_states_start_as_s4d_lin(kind: str) -> None:
    block = Mamba(MambaConfig(d_model=8, n_layer=1, d_state=6, ssm=kind))
    torch.testing.assert_close(block.A_log, torch.full((16, 6), math.log(0.5)))
    torch.testing.assert_close(block.A_imag, math.pi * torch.arange(6.0).expand(16, 6))


@pytest.mark.parametrize("kind", ["selective", "time-invariant-real"])
def test_real_states_start_as_s4d_real(kind: str) -> None:
    block = Mamba(MambaConfig(d_model=8, n_layer=1, d_state=6, ssm=kind))
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 7).expand(16, 6))
    assert not hasattr(block, "A_imag")


@pytest.mark.parametrize("kind", ["time-invariant", "time-invariant-real"])
def test_constant_projections_start_as_in_s4d(kind: str) -> None:
    torch.manual_seed(0)
    block = Mamba(MambaConfig(d_model=32, n_layer=1, d_state=64, ssm=kind))
    parts = 2 if kind == "time-invariant" else 1
    ones, C = block.B.reshape(-1, parts), block.C.reshape(-1, parts)
    assert (ones[:, 0] == 1).all()
    assert (ones[:, 1:] == 0).all()
    assert math.isclose(C.square().sum(dim=1).mean().item(), 1, rel_tol=0.05)
    assert math.isclose(C.mean().item(), 0, abs_tol=0.05)
    steps = F.softplus(block.dt_bias)
    assert 0.00099 < steps.min() < 0.003
    assert 0.03 < steps.max() <= 0.1001


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_real_and_learns(kind: str) -> None:
    block = random_block(kind)
    block(torch.randn(2, 30, 6)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        # of A the first imaginary part may do nothing to a real output; everything else must
        assert (parameter.grad != 0).float().mean() > 0.5, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_scan_takes_in_float32_stays_so(kind: str, dtype: torch.dtype) -> None:
    backbone = random_backbone(kind)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    hidden = torch.randn(2, 50, 12)
    with torch.no_grad():
        expected, _ = backbone(hidden, return_state=True)
        got, state = backbone.to(dtype)(hidden.to(dtype), return_state=True)
        packed = backbone(hidden[:1].to(dtype), cu_seqlens=torch.tensor([0, 20, 50], dtype=torch.int32))
        stepped = backbone.step(hidden[:, 0].to(dtype), backbone.allocate_state(2))
    for name, parameter in backbone.named_parameters():
        kept = name.rpartition(".")[2] in ("A_log", "A_imag", "B", "C", "D", "dt_bias")
        assert parameter.dtype == (torch.float32 if kept else dtype), name
        assert not kept or torch.equal(parameter, before[name]), name
    assert got.dtype == packed.dtype == stepped.dtype == dtype
    assert state[0].ssm.dtype == (torch.complex64 if backbone.config.has_complex_states else torch.float32)
    assert (got.float() - expected).norm() / expected.norm() < 2e-2
    assert (stepped.float() - expected[:, 0]).norm() / expected[:, 0].norm() < 2e-2
    assert (packed[:, :20].float() - expected[:1, :20]).norm() / expected[:1, :20].norm() < 2e-2


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_of_every_kind(kind: str) -> None:
    backbone = random_backbone(kind)
    hidden = torch.randn(2, 50, 12)
    expected = backbone(hidden).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = backbone(hidden, return_state=True)
        backbone.step(hidden[:, 0], state)
    weights = torch.randn(12)
    (out.float() * weights).sum().backward()
    assert (out.detach().float() - expected).norm() / expected.norm() < 2e-2
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_state_follows_the_weights_it_was_made_with() -> None:
    """Steps use discrete parameters computed with the state; new weights need a new state, and get one."""
    block = random_block("time-invariant")
    hidden = torch.randn(1, 6)
    with torch.no_grad():
        block.step(hidden, block.allocate_state(1))
        block.A_imag += 1
        block.dt_bias += 1
        stepped = block.step(hidden, block.allocate_state(1))
        assert relative_error(stepped, block(hidden[:, None])[:, 0]) <= 1e-5


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="ssm is 's5', expected one of 'selective', 'complex', 'time-invariant'"):
        MambaConfig(d_model=8, n_layer=1, ssm="s5")


def test_the_selective_block_keeps_its_start() -> None:
    """The kinds share code; the numbers that a seed gives Mamba's block are part of what is reproducible."""
    torch.manual_seed(0)
    block = Mamba(MambaConfig(d_model=4, n_layer=1, d_state=2))
    names = [name for name, _ in block.named_parameters()]
    wanted = "conv_weight conv_bias dt_bias A_log D in_proj.weight x_proj.weight dt_proj.weight out_proj.weight"
    assert names == wanted.split()
