"""What all models have: the embedding of tokens or numbers, the backbone, and outputs at every position of a sequence.

Shapes: B batch, L length, F numbers at a position, S packed sequences.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_seq.backbone import Backbone
from mamba_seq.config import BackboneConfig, ModelConfig, SaShiMiConfig
from mamba_seq.heads.embedding import SinusoidalEmbedding
from mamba_seq.heads.pooling import Pooled, gather
from mamba_seq.padding import check_layout
from mamba_seq.sashimi import SaShiMi
from mamba_seq.saving import SavedModel

State = Any
"""What a backbone remembers of a batch of sequences: a `BackboneState`, or a `SaShiMiState` if it is a SaShiMi."""


class SequenceState(NamedTuple):
    """What is remembered of sequences so far whose positions are pooled."""

    backbone: State
    pooled: Pooled


class Model(nn.Module, SavedModel):
    """An embedding and a backbone; the classes below this one add the head.

    Args:
        config: with the task of the class.

    Raises:
        ValueError: when the config is of another task.
    """

    task: str

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.task != self.task:
            raise ValueError(f"the config's task is {config.task!r}, expected {self.task!r} for {type(self).__name__}")
        self.config = config
        d_model = config.backbone.d_model
        self.embedding: nn.Embedding | nn.Linear | SinusoidalEmbedding
        if config.vocab_size is not None and config.embedding == "sinusoidal":
            self.embedding = SinusoidalEmbedding(config.vocab_size, d_model)
        elif config.vocab_size is not None:
            self.embedding = nn.Embedding(config.vocab_size, d_model)
        else:
            assert config.input_features is not None
            self.embedding = nn.Linear(config.input_features, d_model)
        self.backbone = make_backbone(config.backbone)

    def reset_embedding(self) -> None:
        """Initialise a learned embedding of tokens; a linear map is as torch makes it."""
        if isinstance(self.embedding, nn.Embedding):
            nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        state: Any = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Any:
        """Return the outputs for sequences, or for a further chunk of each; see the class of the task."""
        raise NotImplementedError

    def embed(self, inputs: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Turn the input of a sequence into vectors (B, L, d_model).

        Args:
            inputs: tokens (B, L) int64, or numbers (B, L, F) of any floating type.
            mask: bool (B, L), true at real positions; what the input holds elsewhere does not matter.
            cu_seqlens: boundaries (S+1,) of sequences packed with B = 1.

        Raises:
            ValueError: for inputs of another shape, or a mask or boundaries that do not fit them.
        """
        self._check_input(inputs, "B, L")
        check_layout(inputs, mask, cu_seqlens)
        if mask is not None:
            # a token outside the vocabulary would stop the embedding, a NaN would reach the gradients
            inputs = inputs.masked_fill(~(mask if inputs.ndim == 2 else mask[..., None]), 0)
        return self._embed(inputs)

    def embed_step(self, inputs: Tensor) -> Tensor:
        """Turn one position of each sequence, tokens (B,) or numbers (B, F), into vectors (B, d_model)."""
        self._check_input(inputs, "B")
        return self._embed(inputs)

    def backbone_inputs(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Return what the backbone reads for an input, (B, L, d_model); see `embed`.

        Args:
            inputs: as of `embed`.
            mask: as of `embed`.
            cu_seqlens: as of `embed`.
            before: positions of each sequence that earlier chunks held, (B,) or (S,) int64.
        """
        return self.embed(inputs, mask, cu_seqlens)

    def pool(
        self,
        inputs: Tensor,
        how: str,
        mask: Tensor | None = None,
        state: SequenceState | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Pooled, SequenceState | None]:
        """Gather the backbone's outputs over the positions of each sequence, or over those of a further chunk too.

        Every row is read as it is: of a model with a `complement`, the other strand is a row of its own here.

        Args:
            inputs: tokens (B, L) or numbers (B, L, F); any value where the mask is false.
            how: "mean", "last" or "max"; `mamba_seq.heads.pooling.finish` makes the vectors (B or S, d_model).
            mask: bool (B, L), true at real positions.
            state: what was remembered of the sequences' earlier chunks.
            return_state: also return what to remember; else None.
            cu_seqlens: boundaries (S+1,) int32 of S sequences packed with B = 1.

        Raises:
            ValueError: for inputs, a mask, boundaries or a state that do not fit.
        """
        before = None if state is None else state.pooled
        hidden = self.backbone_inputs(inputs, mask, cu_seqlens, None if before is None else before.length)
        if not return_state and state is None:
            return gather(self.backbone(hidden, mask, cu_seqlens=cu_seqlens), how, mask, cu_seqlens), None
        carried = None if state is None else state.backbone
        out, new_state = self.backbone(hidden, mask, carried, return_state=True, cu_seqlens=cu_seqlens)
        pooled = gather(out, how, mask, cu_seqlens, before)
        return pooled, SequenceState(new_state, pooled) if return_state else None

    def _embed(self, inputs: Tensor) -> Tensor:
        # under autocast the linear map chooses its own type
        if isinstance(self.embedding, nn.Linear):
            inputs = inputs.to(self.embedding.weight.dtype)
        embedded: Tensor = self.embedding(inputs)
        return embedded

    def _check_input(self, inputs: Tensor, letters: str) -> None:
        """Raise ValueError unless the input has the axes `letters`, and after them F when it is numbers."""
        axes = letters.count(",") + 1
        features = self.config.input_features
        if features is None:
            if inputs.ndim != axes or inputs.is_floating_point():
                kind = str(inputs.dtype).removeprefix("torch.")
                raise ValueError(
                    f"tokens are {kind} {tuple(inputs.shape)}, expected integers ({letters}{',' * (axes == 1)})"
                )
        elif inputs.ndim != axes + 1 or inputs.shape[-1] != features or not inputs.is_floating_point():
            kind = str(inputs.dtype).removeprefix("torch.")
            raise ValueError(
                f"the input is {kind} {tuple(inputs.shape)}, expected floating-point ({letters}, F) with F = {features}"
            )


class PositionModel(Model):
    """A model with an output at every position, made from the backbone's output there."""

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        state: State | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Return the outputs (B, L, outputs) of sequences, or of a chunk that continues `state`.

        Args:
            inputs: tokens (B, L) or numbers (B, L, F); any value where the mask is false.
            mask: bool (B, L), true at real positions; padding left or right of a sequence changes nothing.
            state: what was remembered of the sequences' earlier chunks.
            return_state: also return what to remember.
            cu_seqlens: boundaries (S+1,) int32 of S sequences packed with B = 1; states are then (S, ...).

        Returns:
            Outputs in the type that the model computes in, without meaning at masked positions; and the state if asked
            for.

        Raises:
            ValueError: for inputs, a mask, boundaries or a state that do not fit.
        """
        return self._run(self.embed(inputs, mask, cu_seqlens), mask, state, return_state, cu_seqlens)

    def _run(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        state: State | None,
        return_state: bool,
        cu_seqlens: Tensor | None,
    ) -> Tensor | tuple[Tensor, State]:
        """Return the outputs for embedded inputs (B, L, d_model), and the state if asked for."""
        if return_state:
            out, new_state = self.backbone(hidden, mask, state, return_state=True, cu_seqlens=cu_seqlens)
            return self.read(out), new_state
        return self.read(self.backbone(hidden, mask, state, cu_seqlens=cu_seqlens))

    @torch.no_grad()
    def step(self, inputs: Tensor, state: State) -> Tensor:
        """Read one more position of each sequence, changing `state` in place; no gradient.

        Args:
            inputs: tokens (B,) or numbers (B, F).
            state: from `allocate_state`, or from a call with `return_state`.

        Returns:
            The outputs there (B, outputs).
        """
        return self.read(self.backbone.step(self.embed_step(inputs), state))

    def allocate_state(self, batch: int) -> State:
        """Return the state of `batch` sequences before their first position."""
        return self.backbone.allocate_state(batch)

    def read(self, out: Tensor) -> Tensor:
        """Turn the backbone's outputs (..., d_model) into the model's."""
        raise NotImplementedError


def make_backbone(config: BackboneConfig) -> Backbone | SaShiMi:
    """Build the backbone that a config describes."""
    return SaShiMi(config) if isinstance(config, SaShiMiConfig) else Backbone(config)
