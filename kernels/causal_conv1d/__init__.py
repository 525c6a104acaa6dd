"""The short causal convolution in front of the scan: depthwise, looking back K - 1 steps.

Read `reference.py` first. `cpu.py` (Numba) and `triton.py` compute the same; `function.py` binds them to autograd,
`library.py` to torch.library.
"""

import torch
from torch import Tensor

from mamba_seq.kernels._checks import (
    check_boundaries,
    check_causal_conv1d,
    check_devices,
    check_dtype,
    check_shape,
    check_taps,
)
from mamba_seq.kernels._dispatch import choose
from mamba_seq.kernels._library import exports, is_traced, wants_gradient
from mamba_seq.kernels.causal_conv1d.function import CausalConv1d, run
from mamba_seq.kernels.causal_conv1d.library import CONV, UPDATE, update
from mamba_seq.kernels.causal_conv1d.reference import causal_conv1d_reference, last_inputs

__all__ = ["causal_conv1d", "causal_conv1d_update"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own short causal filter: y_t = act(bias + sum_k weight_k x_(t-K+1+k)).

    Args:
        x: input (B, L, D); float32, float16 or bfloat16 (float64 on the reference). 16-bit inputs add up in float32.
        weight: filter taps (D, K), the last one for the present step; float32 or x's type. K is at least 2.
        bias: (D,) in weight's type.
        activation: None or "silu".
        initial_state: the K - 1 inputs before x, oldest first (B, D, K-1), or (S, D, K-1) when packed; zero when None.
        cu_seqlens: boundaries (S+1,) int32 of S sequences packed along L with batch 1.
        return_final_state: also return the last K - 1 inputs.
        backend: "reference", "cpu" or "triton"; None chooses by device and case.

    Returns:
        y (B, L, D) in x's type; with `return_final_state` also the state (B, D, K-1), or (S, D, K-1) when packed.
        Differentiable in every float input.

    Raises:
        ValueError: for shapes, types or devices outside the contract, naming the argument.
        RuntimeError: when a named backend cannot run the case.
    """
    check_causal_conv1d(x, weight, bias, activation, initial_state, cu_seqlens)
    arguments = (x, weight, bias, activation, initial_state, cu_seqlens)
    if exports():
        y = causal_conv1d_reference(*arguments)
    elif is_traced():
        y = CONV(*arguments, backend)
    else:
        if cu_seqlens is not None:
            check_boundaries(cu_seqlens, x.shape[1])
        chosen = choose("causal_conv1d", backend, x)
        if chosen == "reference" or x.shape[1] == 0:
            y = causal_conv1d_reference(*arguments)
        else:
            convolve = CausalConv1d.apply if wants_gradient(x, weight, bias, initial_state) else run
            y = convolve(*arguments, chosen)
    return (y, last_inputs(x, weight.shape[1], initial_state, cu_seqlens)) if return_final_state else y


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve one more step, changing `state` in place; no gradient.

    Args:
        x: input of this step (B, D).
        state: the K - 1 inputs before it, oldest first (B, D, K-1), in x's type; overwritten.
        weight: (D, K).
        bias: (D,).
        activation: None or "silu".
        backend: as in `causal_conv1d`.

    Returns:
        y (B, D) in x's type.

    Raises:
        ValueError: for shapes or types outside the contract, naming the argument.
        RuntimeError: when a named backend cannot run the case.
    """
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, D)")
    check_taps(x, weight, bias, activation)
    check_dtype("state", state, (x.dtype,))
    check_shape("state", state, (*x.shape, weight.shape[1] - 1), "(B, D, K-1)")
    check_devices("x", x.device, state=state, weight=weight, bias=bias)
    step = UPDATE if is_traced() else update
    return step(x, state, weight, bias, activation, backend)
