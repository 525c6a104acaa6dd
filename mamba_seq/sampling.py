"""Drawing the next token from logits: temperature, then top-k, then top-p (nucleus sampling, arXiv 1904.09751).

Shapes: B batch, V vocabulary.
"""

import math

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token of each row.

    Args:
        logits: (B, V); -inf rules a token out.
        temperature: divides the logits; 0 takes the most probable token, the first of equals.
        top_k: keep the k most probable tokens.
        top_p: keep the fewest most probable tokens whose probabilities sum to at least p, after `top_k`.
        generator: of the random numbers, on the logits' device; None takes torch's own.

    Returns:
        Tokens (B,), int64.

    Raises:
        ValueError: for an argument out of its range.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    # the maximum goes first: a small temperature must not make infinities
    scaled = (logits.float() - logits.float().amax(dim=-1, keepdim=True)) / temperature
    kept = keep_likely(scaled, top_k, top_p)
    return draw(kept.softmax(dim=-1), generator)


def draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token (B,) of each row of probabilities (B, V), without a look at them from the host.

    The largest of p / e, with e exponential, is token i with probability p_i. torch.multinomial draws in the same way,
    but waits for the GPU to check its argument.
    """
    noise = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / noise).argmax(dim=-1)


def keep_likely(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Set the logits (B, V) of all but the most probable tokens to -inf; among equals, the first in V are kept.

    Args:
        logits: (B, V).
        top_k: how many tokens stay; None, or V and above, keeps all.
        top_p: the fewest stay whose probabilities (after `top_k`) sum to at least p; None or 1 keeps all.

    Returns:
        (B, V).
    """
    if (top_k is None or top_k >= logits.shape[-1]) and (top_p is None or top_p == 1):
        return logits
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -math.inf
    if top_p is not None and top_p < 1:
        probability = ordered.softmax(dim=-1)
        # a token goes when those before it reach p already; the first always stays
        ordered = ordered.masked_fill(probability.cumsum(dim=-1) - probability >= top_p, -math.inf)
    return torch.empty_like(logits).scatter_(-1, tokens, ordered)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse arguments out of their range.

    Raises:
        ValueError: naming the argument.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(
            f"temperature is {temperature}, expected a number of at least 0 (0 takes the most probable token)"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1, or None to keep all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected above 0 and at most 1, or None to keep all tokens")


def as_generator(generator: torch.Generator | int | None, device: torch.device) -> torch.Generator | None:
    """Return a generator for `device`, new when a seed is given; None stands for torch's own."""
    if isinstance(generator, int):
        return torch.Generator(device).manual_seed(generator)
    return generator
