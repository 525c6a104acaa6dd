"""The continuation of prompts as it is drawn, for who shows it while it grows: the tokens of `LanguageModel.generate`.

Shapes: B batch, L length, n new tokens.
"""

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from mamba_seq.backbone import Backbone
from mamba_seq.decoding import FEWEST, TokenLoop
from mamba_seq.heads.language_model import LanguageModel, check_prompt
from mamba_seq.sampling import as_generator, check_sampling, sample

SHOW_EVERY = 8
"""Tokens that a CUDA graph draws between two looks at them: each look waits for the GPU."""


@torch.no_grad()
def stream_tokens(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | int | None = None,
) -> Generator[Tensor, None, None]:
    """Continue prompts, giving new tokens (B, n) a few at a time; the same in all as `LanguageModel.generate` gives.

    Args:
        model: without classes.
        tokens: prompts (B, L), at least one token each, of one length.
        max_new_tokens: how many tokens to draw, unless the caller stops before.
        temperature: divides the logits; 0 takes the most probable token each time (greedy).
        top_k: draw among the k most probable tokens only.
        top_p: draw among the fewest most probable tokens whose probabilities sum to p only, after `top_k`.
        generator: of the random numbers, on the model's device; an integer seeds a new one, None takes torch's.

    Yields:
        Tokens that follow those before, (B, 1), or on a CUDA device up to `SHOW_EVERY` at once.

    Raises:
        ValueError: for an empty prompt, or a sampling argument out of its range.
    """
    check_sampling(temperature, top_k, top_p)
    check_prompt(tokens, None)
    if max_new_tokens < 1:
        return
    sampling = (temperature, top_k, top_p)
    random = as_generator(generator, tokens.device)
    logits, state = model.prefill(tokens)
    drawn = sample(logits, *sampling, random)
    yield drawn[:, None]
    if tokens.is_cuda and max_new_tokens >= FEWEST and isinstance(model.backbone, Backbone):
        loop = _captured(model, drawn, state, max_new_tokens, sampling, random)
        if loop is not None:
            yield from _looks(loop, max_new_tokens)
            return
    for _ in range(max_new_tokens - 1):
        drawn = sample(model.step(drawn, state), *sampling, random)
        yield drawn[:, None]


def _captured(
    model: LanguageModel,
    drawn: Tensor,
    state: object,
    count: int,
    sampling: tuple[float, int | None, float | None],
    random: torch.Generator | None,
) -> TokenLoop | None:
    """Return the loop as a CUDA graph; None if the step cannot be captured, all being as it was."""
    try:
        return TokenLoop(model, drawn, state, count, sampling, random)  # type: ignore[arg-type]
    except RuntimeError:
        return None


def _looks(loop: TokenLoop, count: int) -> Iterator[Tensor]:
    """Yield what follows the first token, and give memory and random numbers back, also when the caller stops."""
    seen = 1
    try:
        while loop.done < count:
            loop.advance(min(SHOW_EVERY, count - loop.done))
            shown, seen = seen, loop.done
            yield loop.history[:, shown:seen].clone()
    finally:
        loop.finish(seen)
