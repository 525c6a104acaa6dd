"""RMSNorm and LayerNorm over the last axis, with the addition to the residual stream in front of them.

Read `reference.py` first, plain torch. `triton.py` computes the same in one pass over memory each way, whatever the
types of what comes and goes; on other devices than GPUs torch's own kernels do well. `function.py` binds both to
autograd.
"""

import torch
from torch import Tensor

from mamba_seq.kernels._checks import FLOATS, check_devices, check_dtype, check_shape
from mamba_seq.kernels._dispatch import choose_backend
from mamba_seq.kernels._library import is_traced
from mamba_seq.kernels.norm.function import Norm
from mamba_seq.kernels.norm.reference import norm_reference

__all__ = ["choose_norm", "layer_norm", "rms_norm"]

MOST_FEATURES = 8192
"""In Triton a row is held in registers."""


def rms_norm(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide every row by its root mean square: x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467, eq. 4).

    Args:
        x: (..., features); float32, float16 or bfloat16 (float64 on the reference). Computed in float32.
        weight: (features,), in float32 or 16 bits; float64 beside such an x.
        residual: like x, in a type of its own; residual + x is what is normalised then, rounded to residual's type.
        eps: added to the mean.
        dtype: type of the result; None is x's.
        backend: "reference" or "triton"; None takes Triton on CUDA devices.

    Returns:
        y (..., features), and with a residual also residual + x in residual's type. Differentiable in every tensor, on
        Triton once.

    Raises:
        ValueError: for shapes, types or devices that do not fit, naming the argument.
        RuntimeError: when a named backend cannot run the case.
    """
    return _norm(x, weight, None, residual, eps, dtype, backend, centred=False)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Give every row mean 0 and variance 1, then scale and shift it (arXiv 1607.06450, eq. 4).

    (x - mean(x)) / sqrt(var(x) + eps) * weight + bias. Arguments, results and errors are those of `rms_norm`, and:

    Args:
        x: (..., features).
        weight: (features,).
        bias: (features,), as weight.
        residual: like x.
        eps: added to the variance.
        dtype: type of the result.
        backend: "reference" or "triton".

    Returns:
        y (..., features), and with a residual also residual + x.

    Raises:
        ValueError, RuntimeError: as `rms_norm`.
    """
    return _norm(x, weight, bias, residual, eps, dtype, backend, centred=True)


def choose_norm(x: Tensor, asked: str | None = None) -> str:
    """Return the backend that normalises rows such as those of x, "reference" or "triton".

    Raises: as `choose_backend`.
    """
    if asked is None and (x.device.type != "cuda" or is_traced() or x.numel() == 0):
        return "reference"  # in a traced program the compiler fuses it
    reasons = {"cpu": "there is none: on a CPU the reference is torch's own normalisation", "triton": None}
    if x.dtype == torch.float64:
        reasons["triton"] = "float64 runs on the reference only"
    elif x.shape[-1] > MOST_FEATURES:
        reasons["triton"] = f"rows of {x.shape[-1]} features are more than {MOST_FEATURES}"
    return choose_backend("norm", asked, x.device, reasons)


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    backend: str | None,
    centred: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    _check(x, weight, bias, residual, dtype)
    dtype = dtype or x.dtype
    backend = choose_norm(x, backend)
    if backend == "reference" or x.numel() == 0:
        y, total = norm_reference(x, residual, weight, bias, eps, centred, dtype)
    else:
        y, total = Norm.apply(x, residual, weight, bias, eps, centred, dtype, backend)
    return y if residual is None else (y, total)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, dtype: torch.dtype | None) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., features) with at least one feature")
    check_dtype("x", x, FLOATS)
    if residual is not None:
        check_shape("residual", residual, tuple(x.shape), "that of x")
        check_dtype("residual", residual, FLOATS)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_shape(name, tensor, (x.shape[-1],), "(features,)")
            check_dtype(name, tensor, FLOATS if x.dtype == torch.float64 else FLOATS[:3])
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}, expected a float type")
    check_devices("x", x.device, weight=weight, bias=bias, residual=residual)
