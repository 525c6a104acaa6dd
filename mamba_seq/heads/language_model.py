"""The next token at every position: a causal language model, and its continuation of prompts.

Shapes: B batch, L length, V vocabulary, S packed sequences.
"""

import torch
from torch import Tensor, nn

from mamba_seq.backbone import BackboneState
from mamba_seq.config import ModelConfig
from mamba_seq.decoding import FEWEST, continue_tokens
from mamba_seq.heads import losses
from mamba_seq.heads.base import PositionModel
from mamba_seq.padding import check_layout
from mamba_seq.sampling import as_generator, check_sampling, sample

PLAIN = ((nn.Embedding, type(None)), (nn.Embedding, nn.Linear))


class LanguageModel(PositionModel):
    """Logits (B, L, V) of the next token; unless untied, the embedding is the output matrix too."""

    task = "language-model"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.reset_embedding()
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            assert config.vocab_size is not None
            self.output = nn.Linear(config.backbone.d_model, config.vocab_size, bias=False)
            nn.init.normal_(self.output.weight, std=0.02)

    def loss(
        self,
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        ignore_index: int = losses.IGNORED,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return the mean cross-entropy of each token after the first of its sequence, given those before it.

        Args:
            logits: (B, L, V).
            tokens: what was read (B, L) int64; each is the target of the position before it.
            mask: bool (B, L), true at real positions.
            cu_seqlens: boundaries (S+1,) that the tokens were packed with; the first token of a sequence is no target.
            ignore_index: a token that is no target.
            label_smoothing: part of the target that is spread evenly over the vocabulary.

        Raises:
            ValueError: for tokens, a mask or boundaries that do not fit.
        """
        losses.check_targets("tokens", tokens, logits.shape[:-1], floating=False)
        check_layout(tokens, mask, cu_seqlens)
        # the targets move, not the logits: a slice of those would be copied
        targets = torch.full_like(tokens, ignore_index)
        targets[:, :-1] = tokens[:, 1:]
        if mask is not None:
            targets[:, :-1].masked_fill_(~(mask[:, 1:] & mask[:, :-1]), ignore_index)
        if cu_seqlens is not None:
            targets.index_fill_(1, cu_seqlens[1:].long() - 1, ignore_index)
        return losses.cross_entropy(logits, targets, None, None, ignore_index, label_smoothing)

    def prefill(
        self, tokens: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, BackboneState]:
        """Read prompts; return the logits of the token after each (B, V) and the state to `step` from.

        Args:
            tokens: (B, L), at least one token each. Prompts of different lengths are padded on the left, so that the
                last position is the last of each, or packed.
            mask: bool (B, L), true at real positions.
            cu_seqlens: boundaries (S+1,) int32 of S prompts packed with B = 1; what is returned is then of S sequences.

        Raises:
            ValueError: for an empty prompt, or padding on the right.
        """
        check_prompt(tokens, mask)
        hidden = self.embed(tokens, mask, cu_seqlens)
        out, state = self.backbone(hidden, mask, return_state=True, cu_seqlens=cu_seqlens)
        last = out[:, -1] if cu_seqlens is None else out[0].index_select(0, cu_seqlens[1:] - 1)
        return self.read(last), state

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | int | None = None,
        stop_token: int | None = None,
    ) -> Tensor:
        """Continue prompts: read them at once, then go on token by token with a state of constant size.

        On a CUDA device, 16 tokens or more go on as a CUDA graph of a step and its draw (`mamba_seq.decoding`).

        Args:
            tokens: prompts (B, L), at least one token each.
            max_new_tokens: how many tokens to add at most.
            mask: (B, L), true at real positions. Pad prompts of different lengths on the left; it changes nothing.
            temperature: divides the logits; 0 takes the most probable token each time (greedy).
            top_k: draw among the k most probable tokens only.
            top_p: draw among the fewest most probable tokens whose probabilities sum to p only, after `top_k`.
            generator: of the random numbers, on the model's device; an integer seeds a new one, None takes torch's.
            stop_token: ends a sequence; positions after it hold it too. The call ends when every sequence has ended.

        Returns:
            Prompts and what follows them (B, L + n), n at most `max_new_tokens`.

        Raises:
            ValueError: for an empty prompt, padding on the right, or a sampling argument out of its range.
        """
        check_sampling(temperature, top_k, top_p)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 0")
        check_prompt(tokens, mask)
        if max_new_tokens == 0:
            return tokens
        random = as_generator(generator, tokens.device)
        logits, state = self.prefill(tokens, mask)
        drawn = sample(logits, temperature, top_k, top_p, random)
        if tokens.is_cuda and max_new_tokens >= FEWEST:
            sampling = (temperature, top_k, top_p)
            following = continue_tokens(self, drawn, state, max_new_tokens, sampling, random, stop_token)
            if following is not None:
                return torch.cat([tokens, following], dim=1)
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        added: list[Tensor] = []
        while True:
            if stop_token is not None:
                drawn = drawn.masked_fill(ended, stop_token)
                ended |= drawn == stop_token
            added.append(drawn)
            if len(added) == max_new_tokens or (stop_token is not None and bool(ended.all())):
                return torch.cat([tokens, torch.stack(added, dim=1)], dim=1)
            drawn = sample(self.step(drawn, state), temperature, top_k, top_p, random)

    def plain_matrices(self) -> tuple[Tensor, Tensor] | None:
        """Return the matrices of tokens and of logits (V, d_model); None where there is more to either than its matrix.

        That is an adapter, a hook, autocast, or a class that does something else.
        """
        layers = (self.embedding, self.embedding if self.output is None else self.output)
        known = type(self) is LanguageModel and (type(layers[0]), type(self.output)) in PLAIN
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in (*layers, self.backbone))
        scaled = isinstance(self.embedding, nn.Embedding) and self.embedding.max_norm is not None
        if not known or hooked or scaled or torch.is_autocast_enabled(self.embedding.weight.device.type):
            return None
        return layers[0].weight, layers[1].weight

    def read(self, out: Tensor) -> Tensor:
        """Turn the backbone's outputs (..., d_model) into logits (..., V)."""
        return nn.functional.linear(out, self.embedding.weight if self.output is None else self.output.weight)


def check_prompt(tokens: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless every prompt (B, L) ends in a token of its own at the last position."""
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens is {tuple(tokens.shape)}, expected (B, L) with at least one token to start from")
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError("mask is false at a last position: pad prompts on the left, with at least one token in each")
