"""The causal convolution as torch's own convolution over the state and the input laid end to end.

Shapes: B batch, L length, D channels, K taps, S packed sequences. The state is the K - 1 inputs before the first step,
oldest first, (B, D, K-1). Autograd gives the gradients; float64 inputs are computed in float64.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels._checks import parameter_dtypes


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Convolve (B, L, D); arguments as `mamba_seq.kernels.causal_conv1d`, already checked. Returns y (B, L, D)."""
    if x.shape[1] == 0:
        return x.clone()  # empty, and in the graph; torch's convolution refuses it
    real = parameter_dtypes(x)[0]
    pieces = []
    for piece, state in _sequences(x, weight.shape[1], initial_state, cu_seqlens):
        history = torch.cat([state, piece.transpose(1, 2)], dim=2).to(real)  # (B, D, K-1+L)
        taps = weight.to(real)[:, None]
        out = F.conv1d(history, taps, None if bias is None else bias.to(real), groups=taps.shape[0])
        pieces.append(out.transpose(1, 2))
    y = torch.cat(pieces, dim=1)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def causal_conv1d_update_reference(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Convolve one step x (B, D), shifting it into `state` (B, D, K-1) in place. Returns y (B, D)."""
    y = causal_conv1d_reference(x[:, None], weight, bias, activation, state)[:, 0]
    state.copy_(torch.cat([state, x[..., None]], dim=2)[..., 1:])
    return y


def last_inputs(x: Tensor, K: int, initial_state: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Return the last K - 1 inputs of each sequence, reaching back into the initial state where it is shorter."""
    if cu_seqlens is None:
        [(piece, state)] = _sequences(x, K, initial_state, None)
        recent = piece[:, max(0, piece.shape[1] - K + 1) :].transpose(1, 2)
        return torch.cat([state, recent], dim=2)[..., -(K - 1) :].contiguous()
    # without a look at the boundaries from here: on a GPU that would wait for everything before
    starts, ends = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    at = ends + torch.arange(1 - K, 0, device=x.device)  # (S, K-1)
    recent = x[0, at.clamp(min=0)].transpose(1, 2)  # (S, D, K-1)
    if initial_state is None:
        return torch.where((at >= starts)[:, None], recent, 0)
    back = (at - starts + (K - 1)).clamp(max=K - 2)[:, None].expand_as(recent)
    return torch.where((at >= starts)[:, None], recent, initial_state.gather(2, back))


def _sequences(
    x: Tensor, K: int, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Cut x into its sequences (B or 1, L_s, D), each with the state (B or 1, D, K-1) that precedes it."""
    if cu_seqlens is None:
        state = x.new_zeros((x.shape[0], x.shape[2], K - 1)) if initial_state is None else initial_state
        return [(x, state)]
    bounds = cu_seqlens.tolist()
    if initial_state is None:
        initial_state = x.new_zeros((len(bounds) - 1, x.shape[2], K - 1))
    return [(x[:, start:end], initial_state[s : s + 1]) for s, (start, end) in enumerate(itertools.pairwise(bounds))]
