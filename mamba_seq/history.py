"""What the convolution remembers between two chunks: the last K - 1 inputs of each sequence, padded or packed.

Shapes: B batch, L length, D channels, K taps, S packed sequences.
"""

import torch
from torch import Tensor

from mamba_seq.padding import end_position, first_position


def continue_at_first(x: Tensor, conv_state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put what came before a padded chunk x (B, L, D) right before its first real position, over the padding there.

    Args:
        x: inputs of the convolution, 0 at masked positions.
        conv_state: the K - 1 inputs before the chunk (B, D, K-1).
        mask: bool (B, L).

    Returns:
        The chunk, and the K - 1 inputs to put before it.
    """
    n_before = conv_state.shape[2]
    history = torch.cat([conv_state.transpose(1, 2), x], dim=1)  # (B, K-1+L, D)
    index = first_position(mask)[:, None] + torch.arange(n_before, device=x.device)  # (B, K-1)
    history = history.scatter(1, index[..., None].expand(-1, -1, x.shape[2]), conv_state.transpose(1, 2))
    return history[:, n_before:], history[:, :n_before].transpose(1, 2)


def last_inputs(x: Tensor, K: int, conv_state: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Return the K - 1 inputs x (B, L, D) before the end of each sequence (B or S, D, K-1), older ones from the state.

    Padding on the right puts a sequence's end before L.
    """
    sequences = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
    before = x.new_zeros((sequences, K - 1, x.shape[2])) if conv_state is None else conv_state.transpose(1, 2)
    back = torch.arange(K - 1, device=x.device)
    if cu_seqlens is not None:
        place = cu_seqlens[1:, None] + (back - (K - 1))  # (S, K-1)
        earlier = place - cu_seqlens[:-1, None]  # negative: before the sequence's start
        recent = x[0].index_select(0, place.clamp(min=0).flatten()).view(sequences, K - 1, -1)
        older = before.gather(1, (earlier + K - 1).clamp(max=K - 2)[..., None].long().expand(-1, -1, x.shape[2]))
        return torch.where(earlier[..., None] < 0, older, recent).transpose(1, 2)
    if mask is None:
        # a copy of the end alone: a slice of the whole would keep the whole in memory
        recent = x[:, max(0, x.shape[1] - K + 1) :]
        return torch.cat([before[:, recent.shape[1] :], recent], dim=1).transpose(1, 2)
    history = torch.cat([before, x], dim=1)  # (B, K-1+L, D)
    index = end_position(mask)[:, None] + back  # (B, K-1)
    return history.gather(1, index[..., None].expand(-1, -1, x.shape[2])).transpose(1, 2)
