"""RMSNorm and LayerNorm in plain torch, forward and backward.

Computed in float32, or float64 where x, the residual or the weight are. `forward` and `backward` are what `function.py`
asks of a backend.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the normalised rows in `dtype`, and what was normalised: residual + x in residual's type, or x."""
    total = x if residual is None else (residual + x).to(residual.dtype)
    computing = torch.promote_types(torch.promote_types(total.dtype, weight.dtype), torch.float32)
    wide, gain, shift = total.to(computing), weight.to(computing), None if bias is None else bias.to(computing)
    y = F.layer_norm(wide, gain.shape, gain, shift, eps) if centred else F.rms_norm(wide, gain.shape, gain, eps)
    return y.to(dtype), total


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Do what `function.py` says."""
    return norm_reference(x, residual, weight, bias, eps, centred, dtype)


def backward(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    again: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Do what `function.py` says."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in (total, weight, bias)]
        row, gain, shift = leaves
        assert row is not None
        assert gain is not None
        y, _ = norm_reference(row, None, gain, shift, eps, centred, dy.dtype)
    dx, dweight, *dbias = torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)
    if dtotal is not None:
        dx = (dx + dtotal).to(total.dtype)
    return dx, dweight, dbias[0] if dbias else None, y.detach() if again else None
