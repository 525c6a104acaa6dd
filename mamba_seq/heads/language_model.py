"""The next token at every position: a causal language model, and its continuation of prompts.

A model whose config has labels is conditional: every call says which class each sequence is of (or shall be), and that
class's vector is added to the embedding of each of its tokens.

Shapes: B batch, L length, V vocabulary, S packed sequences.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mamba_seq.backbone import Backbone
from mamba_seq.config import ModelConfig
from mamba_seq.decoding import FEWEST, continue_tokens
from mamba_seq.heads import losses
from mamba_seq.heads.base import PositionModel, State
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
        self.label_embedding: nn.Embedding | None = None
        if config.labels:
            self.label_embedding = nn.Embedding(len(config.labels), config.backbone.d_model)
            nn.init.normal_(self.label_embedding.weight, std=0.02)

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        state: State | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Return the logits (B, L, V) of the token after each position; see `PositionModel.forward`.

        Args:
            inputs: tokens (B, L) int64.
            mask: bool (B, L), true at real positions.
            state: what was remembered of the sequences' earlier chunks.
            return_state: also return what to remember.
            cu_seqlens: boundaries (S+1,) int32 of S sequences packed with B = 1.
            labels: of a conditional model, the class of each sequence (B,) or (S,) int64, its place in the config's
                labels; -1 for none.

        Returns:
            The logits, and the state if asked for.

        Raises:
            ValueError: for inputs, a mask, boundaries, a state or labels that do not fit.
        """
        hidden = self.embed_of_class(inputs, labels, mask, cu_seqlens)
        return self._run(hidden, mask, state, return_state, cu_seqlens)

    @torch.no_grad()
    def step(self, inputs: Tensor, state: State, labels: Tensor | None = None) -> Tensor:
        """Read one more token (B,) of each sequence, of the classes `labels` (B,), changing `state` in place.

        Returns:
            The logits of the next (B, V).
        """
        hidden = self._add_class(self.embed_step(inputs), self.check_labels(labels, len(inputs)))
        return self.read(self.backbone.step(hidden, state))

    def embed_of_class(
        self, tokens: Tensor, labels: Tensor | None, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """Turn tokens (B, L) of sequences of classes (B,) or (S,), -1 for none, into vectors (B, L, d_model)."""
        hidden = self.embed(tokens, mask, cu_seqlens)
        labels = self.check_labels(labels, len(tokens) if cu_seqlens is None else len(cu_seqlens) - 1)
        if labels is None:
            return hidden
        if cu_seqlens is not None:
            each = labels.repeat_interleave(cu_seqlens.diff().long(), output_size=tokens.shape[1])
            return self._add_class(hidden, each[None])
        return self._add_class(hidden, labels[:, None])

    def check_labels(self, labels: Tensor | None, sequences: int) -> Tensor | None:
        """Return the labels as they came.

        Raises:
            ValueError: when they are missing, not for this model, or of another shape or type.
        """
        if self.label_embedding is None:
            if labels is not None:
                raise ValueError("labels came, but the model is not conditional: its config has no labels")
            return None
        if labels is None:
            raise ValueError(
                f"labels is None, expected the classes ({sequences},) of the sequences: the model is conditional "
                f"({', '.join(self.config.labels)}); -1 is none of them"
            )
        if labels.shape != (sequences,) or labels.is_floating_point():
            kind = str(labels.dtype).removeprefix("torch.")
            raise ValueError(f"labels is {kind} {tuple(labels.shape)}, expected int64 ({sequences},)")
        return labels

    def _add_class(self, hidden: Tensor, labels: Tensor | None) -> Tensor:
        """Add to vectors (..., d_model) those of their classes (...), of -1 none."""
        if labels is None or self.label_embedding is None:
            return hidden
        vectors = self.label_embedding(labels.clamp(min=0))
        return hidden + vectors.masked_fill((labels < 0)[..., None], 0)

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
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read prompts; return the logits of the token after each (B, V) and the state to `step` from.

        Args:
            tokens: (B, L), at least one token each. Prompts of different lengths are padded on the left, so that the
                last position is the last of each, or packed.
            mask: bool (B, L), true at real positions.
            cu_seqlens: boundaries (S+1,) int32 of S prompts packed with B = 1; what is returned is then of S sequences.
            labels: of a conditional model, the class of each (B,) or (S,), -1 for none.

        Raises:
            ValueError: for an empty prompt, or padding on the right.
        """
        check_prompt(tokens, mask)
        hidden = self.embed_of_class(tokens, labels, mask, cu_seqlens)
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
        labels: Tensor | None = None,
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
            labels: of a conditional model, the class of each (B,), -1 for none.

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
        logits, state = self.prefill(tokens, mask, labels=labels)
        drawn = sample(logits, temperature, top_k, top_p, random)
        # the levels of a U-Net step at different times: not one graph
        if tokens.is_cuda and max_new_tokens >= FEWEST and isinstance(self.backbone, Backbone) and labels is None:
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
            drawn = sample(self.step(drawn, state, labels), temperature, top_k, top_p, random)

    def plain_matrices(self) -> tuple[Tensor, Tensor] | None:
        """Return the matrices of tokens and of logits (V, d_model); None where there is more to either than its matrix.

        That is an adapter, a hook, autocast, or a class that does something else.
        """
        layers = (self.embedding, self.embedding if self.output is None else self.output)
        known = type(self) is LanguageModel and (type(layers[0]), type(self.output)) in PLAIN
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in (*layers, self.backbone))
        scaled = isinstance(self.embedding, nn.Embedding) and self.embedding.max_norm is not None
        matrices = cast("tuple[Tensor, Tensor]", (layers[0].weight, layers[1].weight))
        if not known or hooked or scaled or torch.is_autocast_enabled(matrices[0].device.type):
            return None
        return matrices

    def read(self, out: Tensor) -> Tensor:
        """Turn the backbone's outputs (..., d_model) into logits (..., V)."""
        matrix = self.embedding if self.output is None else self.output
        return nn.functional.linear(out, cast("Tensor", matrix.weight))


def check_prompt(tokens: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless every prompt (B, L) ends in a token of its own at the last position."""
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens is {tuple(tokens.shape)}, expected (B, L) with at least one token to start from")
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError("mask is false at a last position: pad prompts on the left, with at least one token in each")
