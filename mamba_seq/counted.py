"""Drawing tokens with random numbers that are counted: each is a function of a seed, a sequence's index and a position.

So a sequence is the same whatever others are drawn beside it, in whatever order. The numbers are those of
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the seed is the key, position
and index are the counter, 64 bits each; the upper 23 bits of the first word make a number in (0, 1). A token is drawn
by where that number falls in the cumulated probabilities.

Drawing may be guided (classifier-free guidance: Ho and Salimans, arXiv 2207.12598; of autoregressive sound: AudioGen,
arXiv 2209.15352, section 3): a sequence then has two rows of logits, one behind the other, with its class and without.

Shapes: B batch, V vocabulary.
"""

import math
from typing import cast

import torch
from torch import Tensor

from mamba_seq.kernels._drawing import Drawing
from mamba_seq.sampling import check_sampling, keep_likely

__all__ = ["Drawing", "check_drawing", "counted_uniform", "draw_counted"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def counted_uniform(seed: int, indices: Tensor, positions: Tensor | int) -> Tensor:
    """Return one number in (0, 1) for each index, float32, a function of seed, index and position alone.

    Args:
        seed: 0 to 2^63 - 1.
        indices: of the sequences (B,) int64, 0 or more.
        positions: one for all, or (B,) int64.
    """
    positions = torch.as_tensor(positions, device=indices.device).expand_as(indices)
    k0, k1 = seed & _LOW, seed >> 32
    c0, c1, c2, c3 = positions & _LOW, positions >> 32, indices & _LOW, indices >> 32
    for _ in range(10):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return (2 * (c0 >> 9) + 1).float() * 2.0**-24


def draw_counted(logits: Tensor, drawing: Drawing, indices: Tensor, positions: Tensor | int) -> tuple[Tensor, Tensor]:
    """Draw one token of each row.

    Args:
        logits: (B, V); of guided drawings (2 B, V), each sequence with its class and, in the next row, without.
        drawing: temperature, filters, seed and guidance.
        indices: of the sequences (B,) int64.
        positions: of the tokens, one for all or (B,).

    Returns:
        Tokens (B,) int64, and the log-probability of each, in nats (B,) float32: that which the model gives it, without
        temperature, filters and guidance.
    """
    logits = logits.float()
    steered = logits
    if drawing.rows == 2:
        logits, without = logits.unflatten(0, (-1, 2)).unbind(1)
        steered = without + cast("float", drawing.guidance) * (logits - without)
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    if drawing.temperature == 0:
        tokens = steered.argmax(dim=-1)
    else:
        kept = steered - steered.amax(dim=-1, keepdim=True)
        kept = keep_likely(kept / drawing.temperature, drawing.top_k, drawing.top_p)
        mass = kept.double().exp().cumsum(dim=-1)
        threshold = counted_uniform(drawing.seed, indices, positions).double() * mass[:, -1]
        # of logits that are not numbers, any token, but one
        tokens = (mass <= threshold[:, None]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    return tokens, shifted.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


def check_drawing(drawing: Drawing) -> None:
    """Refuse values out of their range.

    Raises:
        ValueError: naming the argument.
    """
    check_sampling(drawing.temperature, drawing.top_k, drawing.top_p)
    if drawing.temperature and not math.isfinite(1 / drawing.temperature):
        raise ValueError(f"temperature is {drawing.temperature}, expected 0, or enough to divide by")
    if not 0 <= drawing.seed < 2**63:
        raise ValueError(f"seed is {drawing.seed}, expected 0 to 2^63 - 1")
    if drawing.guidance is not None and not (math.isfinite(drawing.guidance) and drawing.guidance >= 0):
        raise ValueError(f"guidance is {drawing.guidance}, expected a number of at least 0 (1 is none)")


def _product(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 32 bits of a product of 32-bit numbers; int64 would overflow at once."""
    low = (a & 0xFFFF) * multiplier  # below 2^48
    high = (a >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
