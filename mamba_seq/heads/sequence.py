"""Models with one output for a whole sequence: a class, several labels, or numbers, from its pooled positions.

Shapes: B batch, L length, F numbers at a position, S packed sequences.

With a `complement` in the config, a model reads both strands: a batch is followed by its reverse complements, and the
pooled vectors of the two strands of a sequence are put together, so that it does not matter which one was given. What
a reverse strand begins with is known at a sequence's end only: such a model reads whole sequences, not chunks.
"""

import torch
from torch import Tensor, nn

from mamba_seq.config import ModelConfig
from mamba_seq.heads import losses
from mamba_seq.heads.base import Model, SequenceState
from mamba_seq.heads.pooling import Pooled, finish, gather, nothing
from mamba_seq.padding import at_least_float32, check_layout


class SequenceModel(Model):
    """Outputs for whole sequences, one for each of the config's labels; the classes below differ in their loss."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.backbone.d_model, len(config.labels))
        self.reset_embedding()
        nn.init.zeros_(self.head.bias)
        self.position: nn.Embedding | None = None
        if config.positions is not None:
            self.position = nn.Embedding(config.positions, config.backbone.d_model)
            nn.init.normal_(self.position.weight, std=0.02)

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
            ValueError: for inputs, a mask, boundaries or a state that do not fit; for a chunk of sequences whose other
                strand is read too.
        """
        if self.config.complement and (return_state or state is not None):
            raise self._needs_whole_sequences()
        inputs, mask, cu_seqlens = self.strands(inputs, mask, cu_seqlens)
        pooled, new_state = self.pool(inputs, self.config.pooling, mask, state, return_state, cu_seqlens)
        outputs = self.outputs(pooled)
        return outputs if new_state is None else (outputs, new_state)

    def backbone_inputs(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Return embedded inputs (B, L, d_model), the vectors of their positions added if the model has any."""
        hidden = self.embed(inputs, mask, cu_seqlens)
        return hidden if self.position is None else hidden + self._positions(inputs, mask, cu_seqlens, before)

    def strands(
        self, inputs: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what the backbone reads: the input as it is, or followed by its other strand, (2 B, L) or packed (1,
        2 L).

        The second half of the rows, or of the packed sequences, are the reverse complements of the first, in their
        order.
        """
        if not self.config.complement:
            return inputs, mask, cu_seqlens
        self._check_input(inputs, "B, L")
        table = torch.tensor(self.config.complement, device=inputs.device, dtype=inputs.dtype)
        if cu_seqlens is not None:
            check_layout(inputs, mask, cu_seqlens)
            starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
            here = torch.arange(inputs.shape[1], device=inputs.device)
            sums = torch.repeat_interleave(starts + ends - 1, ends - starts, output_size=inputs.shape[1])
            other = table[inputs[:, sums - here]]
            boundaries = torch.cat([cu_seqlens, cu_seqlens[1:] + cu_seqlens[-1]])
            return torch.cat([inputs, other], dim=1), mask, boundaries
        if mask is None:
            return torch.cat([inputs, table[inputs.flip(1)]]), None, None
        check_layout(inputs, mask, None)
        known = inputs.masked_fill(~mask, 0)
        return torch.cat([known, table[known.flip(1)]]), torch.cat([mask, mask.flip(1)]), None

    def _needs_whole_sequences(self) -> ValueError:
        return ValueError(
            "a chunk came, expected whole sequences: the config has a complement, so the model reads the other strand "
            "too, which begins at the sequence's end"
        )

    def read(self, out: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Turn the backbone's outputs for whole sequences (B, L, d_model) into the model's (B or S, labels).

        With a complement they are those of `strands`, (2 B, L, d_model) or packed, and so are mask and boundaries.
        """
        return self.outputs(gather(out, self.config.pooling, mask, cu_seqlens))

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
        if self.config.complement:
            raise self._needs_whole_sequences()
        hidden = self.embed_step(inputs)
        if self.position is not None:
            hidden = hidden + self._position_vectors(state.pooled.length)
        out = self.backbone.step(hidden, state.backbone)
        pooled = gather(out[:, None], self.config.pooling, before=state.pooled)
        return self.outputs(pooled), SequenceState(state.backbone, pooled)

    def allocate_state(self, batch: int) -> SequenceState:
        """Return the state of `batch` sequences before their first position."""
        pooled = nothing(batch, self.config.backbone.d_model, self.config.pooling, self.head.weight.detach())
        return SequenceState(self.backbone.allocate_state(batch), pooled)

    def _positions(
        self, inputs: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, before: Tensor | None
    ) -> Tensor:
        """Return the vector of each position (B, L, d_model), counted from the first real one of its sequence."""
        batch, length = inputs.shape[:2]
        at = torch.arange(length, device=inputs.device)[None].expand(batch, length)
        if cu_seqlens is not None:
            row = torch.searchsorted(cu_seqlens[1:].contiguous(), at[0].to(cu_seqlens.dtype), right=True)
            at = at - cu_seqlens[row].long()
            return self._position_vectors(at if before is None else at + before[row])
        if mask is not None:
            at = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return self._position_vectors(at if before is None else at + before[:, None])

    def _position_vectors(self, at: Tensor) -> Tensor:
        assert self.position is not None
        known = self.position.num_embeddings
        if at.numel() and not torch.compiler.is_compiling() and int(at.max()) >= known:
            raise ValueError(
                f"a sequence of {int(at.max()) + 1} positions came, expected at most {known}: the model knows so many"
            )
        vectors: Tensor = self.position(at)
        return vectors

    def outputs(self, pooled: Pooled) -> Tensor:
        """Turn pooled positions, with a complement those of `strands`, into outputs (B or S, labels).

        In float32, as the average of a million positions needs.
        """
        vector = finish(pooled, self.config.pooling)
        if self.config.complement:
            both = vector.unflatten(0, (2, -1))
            vector = both.amax(dim=0) if self.config.pooling == "max" else both.mean(dim=0)
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
