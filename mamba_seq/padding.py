"""Sequences of different lengths in one tensor: padded, with a mask, or packed end to end, with their boundaries.

Shapes: B batch, L length, S packed sequences. Nothing here waits for the device but `lengths_of`.
"""

import itertools

import torch
from torch import Tensor


def check_mask(mask: Tensor, x: Tensor) -> None:
    """Raise ValueError unless `mask` is bool (B, L) for `x` (B, L, ...): another one might broadcast."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has type {str(mask.dtype).removeprefix('torch.')}, expected bool; pass mask != 0")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected (B, L) = {tuple(x.shape[:2])}")


def check_layout(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Raise ValueError unless x (B, L, ...) is padded with a proper mask, or packed with batch 1, or neither.

    What the boundaries hold is checked by the operators that use them, which must read them anyway.
    """
    if mask is not None and cu_seqlens is not None:
        raise ValueError(
            "mask and cu_seqlens are both given, expected one of them: packed sequences have no padding between them"
        )
    if mask is not None:
        check_mask(mask, x)
    if cu_seqlens is not None and x.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs batch 1, but got batch {x.shape[0]}: lay the sequences end to end along L")


def lengths_of(cu_seqlens: Tensor) -> list[int]:
    """Return the lengths of packed sequences, as numbers: this waits for the device."""
    return [end - start for start, end in itertools.pairwise(cu_seqlens.tolist())]


def first_position(mask: Tensor) -> Tensor:
    """Return where each row of `mask` (B, L) becomes true, (B,) int64; 0 for a row that does not."""
    if mask.shape[1] == 0:
        return mask.new_zeros(len(mask), dtype=torch.long)
    return mask.to(torch.uint8).argmax(dim=1)


def end_position(mask: Tensor) -> Tensor:
    """Return the position after the last true one of each row of `mask` (B, L), (B,) int64; 0 for a row without."""
    if mask.shape[1] == 0:
        return mask.new_zeros(len(mask), dtype=torch.long)
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


def shift_left(x: Tensor, by: Tensor) -> Tensor:
    """Move row b of x (B, L, D) by `by[b]` positions towards the start (B,); what leaves there comes in at the end."""
    batch, length, channels = x.shape
    if length == 0:
        return x
    index = (torch.arange(length, device=x.device) + by[:, None]) % length
    return x.gather(1, index[..., None].expand(batch, length, channels))


def at_least_float32(x: Tensor) -> Tensor:
    """Return 16-bit numbers in float32, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
