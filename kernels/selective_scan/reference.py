"""The selective scan, written to be read: one step of the recurrence after another, in plain torch.

    h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t        zero-order hold for A, Euler for B (Mamba, eq. 2, section 3.6)
    y_t = C_t h_t + D u_t                                 2 Re(C_t h_t) + D u_t when A is complex
    y_t = y_t * silu(z_t)                                 when there is a gate

Shapes: B batch, L length, D channels, N state size, G groups, S packed sequences. It runs every case of the contract on
any device, autograd gives its gradients, and float64 inputs are computed in float64: the other backends are held to it.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels._checks import parameter_dtypes


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence step by step.

    Args: as `mamba_seq.kernels.selective_scan`, already checked.

    Returns:
        y (B, L, D) in u's type, and the final state (B, D, N), or (S, D, N) when packed.
    """
    real = parameter_dtypes(u)[0]
    batch, length, channels = u.shape
    x = u.to(real)
    dt = discretisation_step(delta, delta_bias, delta_softplus)
    B_, C_ = (
        p if p.dim() == 2 else over_channels(p if p.dim() == 4 else p[:, :, None], channels, real) for p in (B, C)
    )

    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    sequences = batch if cu_seqlens is None else len(bounds) - 1
    if initial_state is None:
        initial_state = A.new_zeros((sequences, channels, A.shape[1]))

    # cut into steps once: the gradient of an index per step would be a tensor of the whole length, L times
    dts, xs, Bs, Cs = dt.unbind(1), x.unbind(1), over_time(B_, length), over_time(C_, length)
    outputs: list[Tensor] = []
    final_states: list[Tensor] = []
    for s, (start, end) in enumerate(itertools.pairwise(bounds)):
        h = initial_state if cu_seqlens is None else initial_state[s : s + 1]
        for t in range(start, end):
            h = torch.exp(dts[t][..., None] * A) * h + (dts[t] * xs[t])[..., None] * Bs[t]  # (B, D, N)
            outputs.append(read_out(h, Cs[t]))
        final_states.append(h)

    y = torch.stack(outputs, dim=1) if outputs else x.clone()  # empty, and in the graph
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype), torch.cat(final_states)


def selective_state_update_reference(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Advance `state` (B, D, N) in place by one step and return y (B, D): the recurrence above, once."""
    real = parameter_dtypes(u)[0]
    channels = u.shape[-1]
    x = u.to(real)
    dt = discretisation_step(delta, delta_bias, delta_softplus)
    B_, C_ = (
        p if is_constant(p, u) else over_channels(p if p.dim() == 3 else p[:, None], channels, real) for p in (B, C)
    )
    state.copy_(torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B_)
    y = read_out(state, C_)
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype)


def discretisation_step(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """Return the step size delta in the computing type, after bias and softplus."""
    dt = delta.to(parameter_dtypes(delta)[0])
    if delta_bias is not None:
        dt = dt + delta_bias
    return F.softplus(dt) if delta_softplus else dt


def over_channels(parameter: Tensor, channels: int, real: torch.dtype) -> Tensor:
    """Bring an input-dependent B or C (..., G, N) to the computing type, each group repeated for its D / G channels.

    Returns (..., D, N), or (..., 1, N) with a single group, which broadcasts over the channels.
    """
    parameter = parameter if parameter.is_complex() else parameter.to(real)
    groups = parameter.shape[-2]
    return parameter if groups == 1 else parameter.repeat_interleave(channels // groups, dim=-2)


def is_constant(parameter: Tensor, u: Tensor) -> bool:
    """Tell whether a B or C of the step form is (D, N): constant over time, not one row an item of the batch.

    Where the batch happens to equal D, a matrix is read as (B, N): input-dependent is what selective models have.
    """
    return parameter.dim() == 2 and parameter.shape[0] != u.shape[0]


def over_time(parameter: Tensor, length: int) -> tuple[Tensor, ...]:
    """Return B or C of every step; a constant one is the same at each."""
    return (parameter,) * length if parameter.dim() == 2 else parameter.unbind(1)


def read_out(h: Tensor, C: Tensor) -> Tensor:
    """Contract the state with C over N; a complex state stands for itself and its conjugate, hence 2 Re."""
    y = (h * C).sum(-1)
    return 2 * y.real if h.is_complex() else y
