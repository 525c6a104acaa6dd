"""A step of residual blocks in plain torch: the definition, block after block and operation after operation.

    u, z = in_proj(norm(x)),  u = silu(causal_conv1d_update(u))
    low, B, C = x_proj(u),    delta = dt_proj(low)
    y = selective_state_update(u, softplus(delta + dt_bias), -exp(A_log), B, C, D) * silu(z)
    x = x + out_proj(y)

Shapes: B batch, D channels of the scan, N state size, K taps; this folder's own letters: M width of the residual
stream, R rank of delta. All is computed in float32, or in float64 where the weights are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels._checks import parameter_dtypes
from mamba_seq.kernels.causal_conv1d.reference import causal_conv1d_reference
from mamba_seq.kernels.selective_scan.reference import selective_state_update_reference


class BlockWeights(NamedTuple):
    """What a step of one residual block reads, as `Backbone` has it; the matrices are those of nn.Linear."""

    norm_weight: Tensor
    """(M,)"""
    norm_bias: Tensor | None
    """(M,), of a layer norm."""
    in_weight: Tensor
    """(2 D, M)"""
    in_bias: Tensor | None
    """(2 D,)"""
    conv_weight: Tensor
    """(D, K)"""
    conv_bias: Tensor | None
    """(D,)"""
    x_weight: Tensor
    """(R + 2 N, D)"""
    dt_weight: Tensor
    """(D, R)"""
    dt_bias: Tensor
    """(D,) float32"""
    A_log: Tensor
    """(D, N) float32; A is -exp of it."""
    D: Tensor
    """(D,) float32"""
    out_weight: Tensor
    """(M, D)"""
    out_bias: Tensor | None
    """(M,)"""


class FinalNorm(NamedTuple):
    """The normalisation behind the last block, of the blocks' kind."""

    weight: Tensor
    """(M,)"""
    bias: Tensor | None
    eps: float


def block_step_reference(
    residual: Tensor,
    states: Sequence[tuple[Tensor, Tensor]],
    blocks: Sequence[BlockWeights],
    norm: str = "rms",
    eps: float = 1e-5,
    final_norm: FinalNorm | None = None,
) -> Tensor:
    """Advance the blocks; arguments as `mamba_seq.kernels.block_step`, already checked. Returns (B, M)."""
    x = residual
    for block, (conv_state, ssm_state) in zip(blocks, states, strict=True):
        real = parameter_dtypes(block.in_weight)[0]
        wide = widened(block, real)
        normed = normalised(x.to(real), norm, wide.norm_weight, wide.norm_bias, eps)
        u, z = F.linear(normed, wide.in_weight, wide.in_bias).chunk(2, dim=-1)
        u = u.to(conv_state.dtype)
        following = torch.cat([conv_state, u[..., None]], dim=2)[..., 1:]
        past = conv_state.to(real)
        u = causal_conv1d_reference(u.to(real)[:, None], wide.conv_weight, wide.conv_bias, "silu", past)[:, 0]
        conv_state.copy_(following)
        projected = F.linear(u, wide.x_weight)
        R, N = wide.dt_weight.shape[1], wide.A_log.shape[1]
        low, B, C = projected.split((R, N, N), dim=-1)
        delta = F.linear(low, wide.dt_weight)
        A = -torch.exp(wide.A_log)
        y = selective_state_update_reference(ssm_state, u, delta, A, B, C, wide.D, z, wide.dt_bias, True)
        x = (x + F.linear(y, wide.out_weight, wide.out_bias)).to(residual.dtype)
    if final_norm is None:
        return x
    weight, bias, final_eps = final_norm
    real = parameter_dtypes(weight)[0]
    out = normalised(x.to(real), norm, weight.to(real), None if bias is None else bias.to(real), final_eps)
    return out.to(weight.dtype)


def widened(block: BlockWeights, real: torch.dtype) -> BlockWeights:
    """Return the weights in the computing type."""
    given = {name: t for name, t in block._asdict().items() if t is not None}
    return block._replace(**{name: t.to(real) for name, t in given.items()})


def normalised(x: Tensor, norm: str, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise (B, M) as nn.RMSNorm or nn.LayerNorm does."""
    if norm == "rms":
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
