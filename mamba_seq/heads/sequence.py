"""Models with one output for a whole sequence: a class, several labels, or numbers, from its pooled positions.

Shapes: B batch, L length, F numbers at a position, S packed sequences.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mamba_seq.config import ModelConfig
from mamba_seq.heads import losses
from mamba_seq.heads.base import Model, State
from mamba_seq.heads.pooling import Pooled, finish, gather, nothing
from mamba_seq.padding import at_least_float32


class SequenceState(NamedTuple):
    """What is remembered of sequences so far."""

    backbone: State
    pooled: Pooled


class SequenceModel(Model):
    """Outputs for whole sequences, one for each of the config's labels; the classes below differ in their loss."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.backbone.d_model, len(config.labels))
        self.reset_embedding()
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        state: SequenceState | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, SequenceState]:
        """Return the outputs for sequences, or for them and a further chunk of each.

        Args:
            inputs: tokens (B, L) int64 or numbers (B, L, F); any value where the mask is false.
            mask: bool (B, L), true at real positions; padding left or right of a sequence changes nothing.
            state: what was remembered of the sequences' earlier chunks.
            return_state: also return what to remember.
            cu_seqlens: boundaries (S+1,) int32 of S sequences packed with B = 1; states are then (S, ...).

        Returns:
            Outputs (B, labels), or (S, labels) when packed, in float32, of everything read so far; and the state if
            asked for.

        Raises:
            ValueError: for inputs, a mask, boundaries or a state that do not fit.
        """
        hidden = self.embed(inputs, mask, cu_seqlens)
        if not return_state and state is None:
            return self.read(self.backbone(hidden, mask, cu_seqlens=cu_seqlens), mask, cu_seqlens)
        carried, before = (None, None) if state is None else state
        out, backbone_state = self.backbone(hidden, mask, carried, return_state=True, cu_seqlens=cu_seqlens)
        pooled = gather(out, self.config.pooling, mask, cu_seqlens, before)
        outputs = self._outputs(pooled)
        return (outputs, SequenceState(backbone_state, pooled)) if return_state else outputs

    def read(self, out: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Turn the backbone's outputs for whole sequences (B, L, d_model) into the model's (B or S, labels)."""
        return self._outputs(gather(out, self.config.pooling, mask, cu_seqlens))

    @torch.no_grad()
    def step(self, inputs: Tensor, state: SequenceState) -> tuple[Tensor, SequenceState]:
        """Read one more position of each sequence; no gradient.

        Args:
            inputs: tokens (B,) or numbers (B, F).
            state: from `allocate_state`, a call with `return_state`, or the last step. Its backbone's part is changed
                in place, so that it is of no use afterwards.

        Returns:
            The outputs so far (B, labels), and the next state.
        """
        out = self.backbone.step(self.embed_step(inputs), state.backbone)
        pooled = gather(out[:, None], self.config.pooling, before=state.pooled)
        return self._outputs(pooled), SequenceState(state.backbone, pooled)

    def allocate_state(self, batch: int) -> SequenceState:
        """Return the state of `batch` sequences before their first position."""
        pooled = nothing(batch, self.config.backbone.d_model, self.config.pooling, self.head.weight.detach())
        return SequenceState(self.backbone.allocate_state(batch), pooled)

    def _outputs(self, pooled: Pooled) -> Tensor:
        """Turn pooled vectors into outputs; in float32, as the average of a million positions needs."""
        vector = finish(pooled, self.config.pooling)
        with torch.autocast(vector.device.type, enabled=False):
            weight, bias = at_least_float32(self.head.weight), at_least_float32(self.head.bias)
            outputs: Tensor = nn.functional.linear(vector, weight, bias)
        return outputs


class SequenceClassifier(SequenceModel):
    """One class for a sequence."""

    task = "sequence-classification"

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = losses.IGNORED,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return the mean cross-entropy over the sequences that count; 0 if none does.

        Args:
            logits: (B, labels), or (S, labels) when packed.
            targets: index of each sequence's label, (B,) or (S,) int64.
            mask: bool (B,) or (S,), true where the target counts.
            class_weight: (labels,), what a sequence of each class weighs in the mean.
            ignore_index: a target that does not count.
            label_smoothing: part of the target that is spread evenly over the labels.

        Raises:
            ValueError: for targets or a mask of another shape or type.
        """
        return losses.cross_entropy(logits, targets, mask, class_weight, ignore_index, label_smoothing)


class MultiLabelClassifier(SequenceModel):
    """Any number of labels for a sequence; sigmoid(logit) is a label's probability."""

    task = "multi-label"

    def loss(
        self, logits: Tensor, targets: Tensor, mask: Tensor | None = None, pos_weight: Tensor | None = None
    ) -> Tensor:
        """Return the mean binary cross-entropy over the targets that count; 0 if none does.

        Args:
            logits: (B, labels), or (S, labels) when packed.
            targets: of the logits' shape: bool, or numbers 0 to 1; NaN where it is not known.
            mask: bool, true where a target counts; of the logits' shape, or (B,) or (S,).
            pos_weight: (labels,), what a present label weighs against an absent one.

        Raises:
            ValueError: for targets or a mask of another shape or type.
        """
        return losses.binary_cross_entropy(logits, targets, mask, pos_weight)


class SequenceRegressor(SequenceModel):
    """One number for a sequence, or several: one for each of the config's labels."""

    task = "sequence-regression"

    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean squared error over the targets that count; 0 if none does.

        Args:
            outputs: (B, targets), or (S, targets) when packed.
            targets: of the outputs' shape, floating-point; NaN where it is not known. On a scale of about 1.
            mask: bool, true where a target counts; of the outputs' shape, or (B,) or (S,).

        Raises:
            ValueError: for targets or a mask of another shape or type.
        """
        return losses.squared_error(outputs, targets, mask)
