"""Vectors of tokens that are levels of a quantity, such as sound: near levels get near vectors from the start.

Shapes: V vocabulary.
"""

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """A linear map of fixed waves over the range of the levels, from half a wave, the highest, to one a pair of levels.

    Args:
        vocab_size: number of levels V.
        d_model: width of the vectors.
    """

    features: Tensor

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        place = (2 * torch.arange(vocab_size) + 1) / vocab_size - 1  # -1 to 1, both left out
        waves = 2 ** torch.arange(max(1, math.ceil(math.log2(vocab_size)))) * (math.pi / 2)
        angles = place[:, None] * waves
        height = (waves[0] / waves).sqrt()
        features = torch.cat([place[:, None], height * angles.sin(), height * angles.cos()], dim=1)
        self.register_buffer("features", features, persistent=False)
        self.linear = nn.Linear(features.shape[1], d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (...) int64 into vectors (..., d_model)."""
        # the table first: it is shorter than a sequence
        return nn.functional.embedding(tokens, self.linear(self.features))
