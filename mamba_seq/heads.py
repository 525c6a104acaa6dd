"""Models: the backbone with an embedding in front and a head behind it.

    SequenceClassifier   tokens (B, L) -> logits (B, number of labels), from the masked mean, last or maximal position
    LanguageModel        tokens (B, L) -> logits (B, L, V) of the next token; unless untied, the embedding is the output
                         matrix too

Each has the three forms of the backbone: whole sequence, chunk after chunk with the state carried, and `step`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mamba_seq.backbone import Backbone, BackboneState
from mamba_seq.config import ModelConfig
from mamba_seq.sampling import as_generator, check_sampling, sample
from mamba_seq.saving import SavedModel


class ClassifierState(NamedTuple):
    """What a classifier remembers of a sequence so far."""

    backbone: BackboneState
    pooled: Tensor
    """Sum, last or maximum of the outputs so far (B, d_model), float32."""
    length: Tensor
    """Number of real positions so far (B,), int64."""


class SequenceClassifier(nn.Module, SavedModel):
    """One label for a sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.backbone.d_model)
        self.backbone = Backbone(config.backbone)
        self.head = nn.Linear(config.backbone.d_model, len(config.labels))
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        state: ClassifierState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, ClassifierState]:
        """Classify sequences, or continue `state` with a further chunk of each.

        Args:
            tokens: (B, L) int64; any value where the mask is false.
            mask: bool (B, L), true at real positions; padding left or right of a sequence changes nothing.
            state: what was remembered of the sequences' earlier chunks.
            return_state: also return what to remember.

        Returns:
            Logits (B, number of labels) in float32, of everything read so far; and the state if asked for.

        Raises:
            ValueError: for a mask of another shape or type, or a state of another model.
        """
        if not return_state and state is None:
            return self.classify(self.backbone(self.embedding(tokens), mask), mask)
        carried = None if state is None else state.backbone
        out, backbone_state = self.backbone(self.embedding(tokens), mask, carried, return_state=True)
        pooled, count = self._pool(out.float(), mask, state)
        logits = self._read(pooled, count)
        return (logits, ClassifierState(backbone_state, pooled, count)) if return_state else logits

    def classify(self, out: Tensor, mask: Tensor | None = None) -> Tensor:
        """Turn the backbone's outputs for whole sequences (B, L, d_model) into logits (B, number of labels)."""
        return self._read(*self._pool(out.float(), mask, None))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: ClassifierState) -> tuple[Tensor, ClassifierState]:
        """Read one more token of each sequence (B,); return the logits so far and the next state, no gradient.

        The backbone's part of `state` is changed in place, so that `state` itself is of no use afterwards.
        """
        out = self.backbone.step(self.embedding(tokens), state.backbone)
        pooled, count = self._pool(out.float()[:, None], None, state)
        return self._read(pooled, count), ClassifierState(state.backbone, pooled, count)

    def allocate_state(self, batch: int) -> ClassifierState:
        """Return the state of `batch` sequences before their first token."""
        pooled, length = self._nothing_pooled(batch, self.embedding.weight.device)
        return ClassifierState(self.backbone.allocate_state(batch), pooled, length)

    def _nothing_pooled(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the pooled vector (B, d_model) and the count (B,) before the first position."""
        fill = float("-inf") if self.config.pooling == "max" else 0.0
        pooled = torch.full((batch, self.config.backbone.d_model), fill, device=device)
        return pooled, torch.zeros(batch, dtype=torch.long, device=device)

    def _pool(self, out: Tensor, mask: Tensor | None, state: ClassifierState | None) -> tuple[Tensor, Tensor]:
        """Fold the outputs (B, L, d_model) of a chunk into the pooled vector and the count of real positions."""
        batch, length, _ = out.shape
        if state is None:
            before, count = self._nothing_pooled(batch, out.device)
        else:
            before, count = state.pooled, state.length
        here = torch.full((batch,), length, device=out.device) if mask is None else mask.sum(dim=1)
        if self.config.pooling == "mean":
            kept = out if mask is None else out.masked_fill(~mask[..., None], 0)
            pooled = before + kept.sum(dim=1)
        elif self.config.pooling == "max":
            kept = out if mask is None else out.masked_fill(~mask[..., None], float("-inf"))
            pooled = torch.maximum(before, kept.amax(dim=1)) if length else before
        else:
            real = torch.ones_like(out[..., 0], dtype=torch.bool) if mask is None else mask
            last = (real * torch.arange(length, device=out.device)).amax(dim=1) if length else here
            found = out.gather(1, last[:, None, None].expand(-1, 1, out.shape[2]))[:, 0] if length else before
            pooled = torch.where(here[:, None] > 0, found, before)
        return pooled, count + here

    def _read(self, pooled: Tensor, count: Tensor) -> Tensor:
        """Turn the pooled vector into logits; in float32, as the average of a million positions needs."""
        if self.config.pooling == "mean":
            pooled = pooled / count.clamp(min=1)[:, None]
        elif self.config.pooling == "max":
            pooled = pooled.masked_fill(count[:, None] == 0, 0)  # of nothing; -inf would become NaN
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = nn.functional.linear(pooled, self.head.weight.float(), self.head.bias.float())
        return logits


class LanguageModel(nn.Module, SavedModel):
    """The next token at every position (causal language model)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.backbone.d_model)
        self.backbone = Backbone(config.backbone)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(config.backbone.d_model, config.vocab_size, bias=False)
            nn.init.normal_(self.output.weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        state: BackboneState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, BackboneState]:
        """Return next-token logits (B, L, V) of tokens (B, L), or of a chunk that continues `state`.

        `mask`, `state`, `return_state` and what is raised: as in `Backbone.forward`.
        """
        hidden = self.embedding(tokens)
        if return_state:
            out, new_state = self.backbone(hidden, mask, state, return_state=True)
            return self._read(out), new_state
        return self._read(self.backbone(hidden, mask, state))

    def prefill(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, BackboneState]:
        """Read a prompt (B, L); return the logits of the token after it (B, V) and the state to `step` from.

        With prompts of different lengths, pad on the left: the last position is then the last of each.

        Raises:
            ValueError: for an empty prompt, or padding on the right.
        """
        check_prompt(tokens, mask)
        out, state = self.backbone(self.embedding(tokens), mask, return_state=True)
        return self._read(out[:, -1]), state

    @torch.no_grad()
    def step(self, tokens: Tensor, state: BackboneState) -> Tensor:
        """Read one more token of each sequence (B,), changing `state` in place; return the next logits (B, V).

        There is no gradient.
        """
        return self._read(self.backbone.step(self.embedding(tokens), state))

    def allocate_state(self, batch: int) -> BackboneState:
        """Return the state of `batch` sequences before their first token."""
        return self.backbone.allocate_state(batch)

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
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        logits, state = self.prefill(tokens, mask)
        added: list[Tensor] = []
        while True:
            drawn = sample(logits, temperature, top_k, top_p, random)
            if stop_token is not None:
                drawn = drawn.masked_fill(ended, stop_token)
                ended |= drawn == stop_token
            added.append(drawn)
            if len(added) == max_new_tokens or (stop_token is not None and bool(ended.all())):
                return torch.cat([tokens, torch.stack(added, dim=1)], dim=1)
            logits = self.step(drawn, state)

    def _read(self, out: Tensor) -> Tensor:
        return nn.functional.linear(out, self.embedding.weight if self.output is None else self.output.weight)


def check_prompt(tokens: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless every prompt (B, L) ends in a token of its own at the last position."""
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens is {tuple(tokens.shape)}, expected (B, L) with at least one token to start from")
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError("mask is false at a last position: pad prompts on the left, with at least one token in each")


MODELS: dict[str, type[SequenceClassifier] | type[LanguageModel]] = {
    "sequence-classification": SequenceClassifier,
    "language-model": LanguageModel,
}
"""The model class of each task of `ModelConfig`."""
