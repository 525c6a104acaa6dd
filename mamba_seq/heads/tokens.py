"""Models with an output for every position: a class (annotation), or numbers (a track, a forecast).

Shapes: B batch, L length.
"""

from torch import Tensor, nn

from mamba_seq.config import ModelConfig
from mamba_seq.heads import losses
from mamba_seq.heads.base import PositionModel


class TokenModel(PositionModel):
    """A linear map of every position, with one output for each of the config's labels.

    The backbone is causal: the output at a position knows what stands before it, and nothing after.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.backbone.d_model, self.n_outputs)
        self.reset_embedding()
        nn.init.zeros_(self.head.bias)

    @property
    def n_outputs(self) -> int:
        """Number of outputs at every position."""
        return len(self.config.labels)

    def read(self, out: Tensor) -> Tensor:
        """Turn the backbone's outputs (..., d_model) into the model's (..., outputs)."""
        outputs: Tensor = self.head(out)
        return outputs


class TokenClassifier(TokenModel):
    """A class at every position."""

    task = "token-classification"

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = losses.IGNORED,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return the mean cross-entropy over the positions that count, packed or not; 0 if none does.

        Args:
            logits: (B, L, labels).
            targets: index of each position's label (B, L) int64.
            mask: bool (B, L), true where a target counts; that of the input, or a narrower one.
            class_weight: (labels,), what a position of each class weighs in the mean.
            ignore_index: a target that does not count.
            label_smoothing: part of the target that is spread evenly over the labels.

        Raises:
            ValueError: for targets or a mask of another shape or type.
        """
        return losses.cross_entropy(logits, targets, mask, class_weight, ignore_index, label_smoothing)


class TokenRegressor(TokenModel):
    """One number at every position, or several: one for each of the config's labels."""

    task = "token-regression"

    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean squared error over the targets that count, packed or not; 0 if none does.

        Args:
            outputs: (B, L, targets).
            targets: (B, L, targets), floating-point; NaN where it is not known. On a scale of about 1.
            mask: bool, true where a target counts: (B, L), as of the input, or of the outputs' shape.

        Raises:
            ValueError: for targets or a mask of another shape or type.
        """
        return losses.squared_error(outputs, targets, mask)
