"""The normalisation in front of a block, alone and with in_proj behind it.

On CUDA it is one kernel each way, which takes the residual stream and gives the product's operand in the types that
they have. `normed_projection` keeps the residual stream alone for its backward pass, and makes the normalised rows
again there, in the same pass over memory that gives the gradient of the stream.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mamba_seq.kernels import layer_norm, rms_norm
from mamba_seq.kernels.norm import choose_norm
from mamba_seq.kernels.norm import function as normalisation
from mamba_seq.precision import computing_type, without_autocast

Norm = nn.RMSNorm | nn.LayerNorm


def normed(residual: Tensor, norm: Norm, dtype: torch.dtype | None = None) -> Tensor:
    """Return norm(residual) (..., d_model) in the weights' type; on CUDA in `dtype`, if given."""
    weight = norm.weight
    if residual.device.type != "cuda" or not is_plain_norm(norm):
        out: Tensor = norm(residual.to(weight.dtype))
        return out
    dtype = weight.dtype if dtype is None else dtype
    if isinstance(norm, nn.LayerNorm):
        return cast("Tensor", layer_norm(residual, weight, norm.bias, eps=norm.eps, dtype=dtype))
    return cast("Tensor", rms_norm(residual, weight, eps=eps_of(norm), dtype=dtype))


def is_plain_norm(norm: nn.Module) -> bool:
    """Tell whether a layer is a normalisation with weights and nothing else, which may be used without calling it."""
    known = type(norm) is nn.RMSNorm or type(norm) is nn.LayerNorm
    return known and norm.weight is not None and not norm._forward_hooks and not norm._forward_pre_hooks


def eps_of(norm: Norm) -> float:
    """Return what is added to the mean of squares; torch's RMSNorm may leave it to the type."""
    return torch.finfo(torch.float32).eps if norm.eps is None else norm.eps


def normed_projection(residual: Tensor, norm: Norm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return layer(norm(residual)) (..., features), and the residual stream (..., d_model) to go on with.

    The product is computed in autocast's type, or in its weight's. Whoever adds to the residual stream adds to the one
    returned: its gradient then comes by here, and is added where that of the normalisation is written.
    """
    dtype = computing_type(residual.device.type, layer.weight)
    how = (eps_of(norm), isinstance(norm, nn.LayerNorm), dtype, choose_norm(residual))
    bias = getattr(norm, "bias", None)
    out, passed = NormedProjection.apply(residual, norm.weight, bias, layer.weight, layer.bias, *how)
    return out, passed


class NormedProjection(torch.autograd.Function):
    """`normed_projection` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        gain: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centred: bool,
        dtype: torch.dtype,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        """Return what `normed_projection` does."""
        ctx.types = (weight.dtype, None if bias is None else bias.dtype)
        with without_autocast(residual):
            hidden, _ = normalisation.run(residual, None, gain, shift, eps, centred, dtype, backend)
            weight = weight.to(dtype)
            out = hidden.view(-1, hidden.shape[-1])
            out = out.mm(weight.t()) if bias is None else torch.addmm(bias.to(dtype), out, weight.t())
        ctx.save_for_backward(residual, gain, shift, weight)
        ctx.how = (eps, centred, backend)
        ctx.set_materialize_grads(False)
        return out.view(*residual.shape[:-1], len(weight)), residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, passing: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument."""
        residual, gain, shift, weight = ctx.saved_tensors
        if dout is None:
            return passing, *[None] * 8
        weight_type, bias_type = ctx.types
        eps, centred, backend = ctx.how
        learns = ctx.needs_input_grad[3]
        with without_autocast(residual):
            dout = dout.reshape(-1, dout.shape[-1]).to(weight.dtype)
            dhidden = dout.mm(weight).view(residual.shape)
            dresidual, dgain, dshift, hidden = normalisation.run_backward(
                dhidden, passing, residual, gain, shift, eps, centred, backend, learns
            )
            del dhidden
            dweight = None if hidden is None else dout.t().mm(hidden.view(-1, hidden.shape[-1])).to(weight_type)
            dbias = None if bias_type is None else dout.sum(0).to(bias_type)
        return dresidual, dgain, dshift, dweight, dbias, *[None] * 4
