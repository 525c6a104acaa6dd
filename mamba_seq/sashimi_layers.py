"""What a SaShiMi is put together from: stages of residual layers, and the pools between two rates.

Shapes: B batch, L length at the rate of a level.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mamba_seq.backbone import ResidualBlock, make_norm
from mamba_seq.block import MambaState
from mamba_seq.config import MambaConfig
from mamba_seq.s4 import S4Layer

LayerState = MambaState | None
"""What a layer remembers: a feed-forward layer nothing."""
StageState = list[LayerState]
"""One state a layer, first layer first."""


class Stage(nn.Module):
    """The residual layers of one level that run one after the other: blocks, each with a feed-forward layer if asked.

    Args:
        config: of the level's blocks; `n_layer` of them.
        s4: put S4 layers in the place of Mamba blocks.
        ff: how many times as wide a feed-forward layer is inside; 0 for none.
        depth: number of residual layers of the whole model, whose sum keeps its variance at initialisation.
    """

    def __init__(self, config: MambaConfig, s4: bool, ff: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(config.n_layer):
            block = ResidualBlock(config, S4Layer(config) if s4 else None)
            self.layers.append(block)
            with torch.no_grad():
                block.mixer.out_proj.weight /= math.sqrt(depth)
            if ff:
                layer = FeedForward(config, ff)
                self.layers.append(layer)
                with torch.no_grad():
                    layer.narrow.weight /= math.sqrt(depth)

    def forward(
        self,
        x: Tensor,
        added: list[Tensor] | None = None,
        state: StageState | None = None,
        return_state: bool = False,
        segment: int = 0,
    ) -> tuple[list[Tensor], StageState]:
        """Run the layers over x (B, L, width).

        Args:
            x: the residual stream.
            added: to add after each layer, as many as there are layers.
            state: what the layers remember; None starts them.
            return_state: also return what to remember.
            segment: how many layers are computed again at a time in the backward pass; 0 computes none again.

        Returns:
            The stream after each layer, and the states, empty if not asked for.
        """
        outputs: list[Tensor] = []
        new_state: StageState = []
        size = segment or max(1, len(self.layers))
        for first in range(0, len(self.layers), size):
            here = slice(first, first + size)
            arguments = (
                here,
                outputs[-1] if outputs else x,
                None if added is None else added[here],
                None if state is None else state[here],
                return_state,
            )
            if segment:
                found, after = checkpoint(self._run, *arguments, use_reentrant=False)
            else:
                found, after = self._run(*arguments)
            outputs += found
            new_state += after
        return outputs, new_state

    def _run(
        self, here: slice, x: Tensor, added: list[Tensor] | None, state: StageState | None, return_state: bool
    ) -> tuple[list[Tensor], StageState]:
        outputs: list[Tensor] = []
        new_state: StageState = []
        for i, layer in enumerate(cast("list[Layer]", list(self.layers)[here])):
            if isinstance(layer, FeedForward):
                x = layer(x)
                new_state.append(None)
            elif return_state:
                x, after = layer(x, None, None if state is None else state[i], True)
                new_state.append(after)
            else:
                x = layer(x, None, None if state is None else state[i], False)
            if added is not None:
                x = x + added[i]
            outputs.append(x)
        return outputs, new_state

    def step(self, x: Tensor, added: list[Tensor] | None, state: StageState) -> list[Tensor]:
        """Advance the layers one position of their level, (B, width), changing `state`; the stream after each."""
        outputs: list[Tensor] = []
        for i, layer in enumerate(cast("list[Layer]", list(self.layers))):
            x = layer(x) if isinstance(layer, FeedForward) else layer.step(x, cast("MambaState", state[i]))
            if added is not None:
                x = x + added[i]
            outputs.append(x)
        return outputs

    def allocate_state(self, batch: int) -> StageState:
        """Return the state of `batch` sequences before their first position."""
        return [
            layer.mixer.allocate_state(batch) if isinstance(layer, ResidualBlock) else None for layer in self.layers
        ]


class FeedForward(nn.Module):
    """x + dropout(narrow(gelu(widen(norm(x))))), at each position by itself (SaShiMi, section 3.2)."""

    def __init__(self, config: MambaConfig, ff: int) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.widen = nn.Linear(config.d_model, ff * config.d_model)
        self.narrow = nn.Linear(ff * config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return the residual stream (..., width)."""
        hidden = nn.functional.gelu(self.widen(self.norm(x.to(self.norm.weight.dtype))))
        return x + self.dropout(self.narrow(hidden))


Layer = ResidualBlock | FeedForward


class DownPool(nn.Module):
    """`factor` positions of a level side by side, and a linear map of them to one position of the next."""

    def __init__(self, width: int, wider: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(factor * width, wider)

    def forward(self, windows: Tensor) -> Tensor:
        """Turn (..., n * factor, width) into (..., n, wider), in the same type."""
        pooled: Tensor = self.linear(windows.unflatten(-2, (-1, self.factor)).flatten(-2).to(self.linear.weight.dtype))
        return pooled.to(windows.dtype)


class UpPool(nn.Module):
    """A linear map of one position of a level to `factor` positions of the level outside it.

    Who calls it must put them one coarse position later: what a coarse position says was made from all the fine ones
    below it, which must not hear of each other.
    """

    def __init__(self, wider: int, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(wider, factor * width)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (..., n, wider) into (..., n * factor, width), in the same type."""
        raised: Tensor = self.linear(x.to(self.linear.weight.dtype)).unflatten(-1, (self.factor, -1))
        return raised.flatten(-3, -2).to(x.dtype)


def copied(state: StageState) -> StageState:
    """Return copies of a stage's states: two states must not share what a step writes into."""
    return [None if s is None else s._replace(conv=s.conv.clone(), ssm=s.ssm.clone()) for s in state]
