"""Residual blocks with random weights for the tests of their step."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_seq.kernels.block_step import BlockWeights, FinalNorm

State = tuple[Tensor, Tensor]


class Stack(NamedTuple):
    """Arguments of `block_step`."""

    residual: Tensor
    states: list[State]
    blocks: list[BlockWeights]
    norm: str
    final_norm: FinalNorm | None

    def moved(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> "Stack":
        """Return a copy elsewhere, and everything in another type if one is given."""

        def move(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device, dtype, copy=True)

        final = self.final_norm
        return Stack(
            move(self.residual),
            [(move(conv), move(ssm)) for conv, ssm in self.states],
            [BlockWeights(*map(move, block)) for block in self.blocks],
            self.norm,
            None if final is None else FinalNorm(move(final.weight), move(final.bias), final.eps),
        )


def draw(
    M: int = 24,
    N: int = 16,
    K: int = 4,
    R: int | None = None,
    batch: int = 1,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    stream: torch.dtype = torch.float32,
    norm: str = "rms",
    bias: bool = False,
    conv_bias: bool = True,
    final: bool = True,
    expand: int = 2,
) -> Stack:
    """Draw a stack whose every part matters to its output."""
    generator = torch.Generator().manual_seed(1000 * M + 100 * N + 10 * K + batch)
    D, R = expand * M, R or -(-M // 16)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    def block() -> BlockWeights:
        return BlockWeights(
            norm_weight=1 + randn(M, scale=0.2),
            norm_bias=randn(M, scale=0.2) if norm == "layer" else None,
            in_weight=randn(2 * D, M, scale=M**-0.5),
            in_bias=randn(2 * D, scale=0.3) if bias else None,
            conv_weight=randn(D, K, scale=K**-0.5),
            conv_bias=randn(D, scale=0.3) if conv_bias else None,
            x_weight=randn(R + 2 * N, D, scale=2 * D**-0.5),
            dt_weight=randn(D, R, scale=R**-0.5),
            dt_bias=torch.randn(D, generator=generator) - 1,
            A_log=torch.rand((D, N), generator=generator),
            D=torch.randn(D, generator=generator),
            out_weight=randn(M, D, scale=D**-0.5),
            out_bias=randn(M, scale=0.3) if bias else None,
        )

    states = [(randn(batch, D, K - 1), torch.randn((batch, D, N), generator=generator)) for _ in range(layers)]
    last = FinalNorm(1 + randn(M, scale=0.2), randn(M, scale=0.2) if norm == "layer" else None, 1e-5)
    residual = torch.randn((batch, M), generator=generator).to(stream)
    return Stack(residual, states, [block() for _ in range(layers)], norm, last if final else None)
