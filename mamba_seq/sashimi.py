"""SaShiMi: a U-Net of Mamba blocks at several rates (arXiv 2202.09729, section 3.2; 2312.00752, section 4.4).

    level 0   x --[down 0]---- skips ------------------------(+)--[up 0]--> norm --> out
                     | pool: p positions become one            ^ raise: one becomes p, put ONE WINDOW LATER
    level 1          +--[down 1]---- skips -----------(+)--[up 1]
                             | pool                     ^ raise
    level 2                  +--------[centre]----------+

A coarse position k stands for the window of fine positions k p .. k p + p - 1, and is known when the last of them is.
So what comes up from it goes to window k + 1, and window 0 gets zeros: that shift is all that keeps the future out, and
it lets `step` run a level only when its window is full. It also means that an incomplete last window needs no padding:
no position hears of it.

Whole sequence, chunks of any length (`state`, `return_state`) and `step` agree to rounding.

Shapes: B batch, L length, p pooling factor, n complete windows.
"""

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from mamba_seq.backbone import make_norm
from mamba_seq.cache_chunks import sashimi_chunk_length
from mamba_seq.config import MambaConfig, SaShiMiConfig
from mamba_seq.normed import normed
from mamba_seq.padding import at_least_float32, check_layout, first_position, shift_left
from mamba_seq.sashimi_layers import DownPool, Stage, StageState, UpPool, copied


@dataclasses.dataclass
class SaShiMiState:
    """What a SaShiMi remembers of a batch of sequences, all at the same position; `step` changes it in place."""

    position: int
    """Positions read so far: which levels run next, and where in its window each stands, follow from it alone."""
    down: list[StageState]
    """States of the stages on the way down, outermost first; no layers, no states, with `topology="sashimi"`."""
    centre: StageState
    """States of the centre."""
    up: list[StageState]
    """States of the stages on the way up, outermost first."""
    windows: list[Tensor]
    """Of each pool, the inputs of the window that is not complete yet (B, p, width); places not read yet hold anything.
    """
    raised: list[Tensor]
    """Of each pool, what came up from the last coarse position for the positions of this window (B, p, width)."""


class SaShiMi(nn.Module):
    """A U-Net of stages of Mamba blocks; vectors (B, L, d_model) to vectors (B, L, d_model).

    Attributes:
        gradient_checkpointing: keep only every k-th layer's output of a stage for the backward pass, and compute the
            layers again from it: the same gradients for less memory and one more forward pass. True is every layer, an
            integer every k-th, False (as it starts) none. Not part of a saved model.
    """

    def __init__(self, config: SaShiMiConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing: bool | int = False
        levels = [level_config(config, level) for level in range(config.levels)]
        dense = config.topology == "unet"
        blocks = levels[-1].n_layer + sum((2 if dense else 1) * level.n_layer for level in levels[:-1])
        depth = blocks * (2 if config.ff else 1)
        s4 = [kind == "s4" for kind in config.blocks_of_levels]
        outer = list(zip(levels, s4, strict=True))[:-1]
        self.down = nn.ModuleList(Stage(*level, config.ff, depth) for level in outer if dense)
        self.pools = nn.ModuleList()
        self.centre = Stage(levels[-1], s4[-1], config.ff, depth)
        self.raises = nn.ModuleList()
        self.up = nn.ModuleList(Stage(*level, config.ff, depth) for level in outer)
        for factor, fine, coarse in zip(config.pool, config.widths[:-1], config.widths[1:], strict=True):
            self.pools.append(DownPool(fine, coarse, factor))
            self.raises.append(UpPool(coarse, fine, factor))
        self.norm = make_norm(levels[0])

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        state: SaShiMiState | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, SaShiMiState]:
        """Run the U-Net over sequences of any length, or over a chunk that continues `state`.

        Args:
            hidden: (B, L, d_model).
            mask: bool (B, L), true at real positions; padding left or right of a sequence changes nothing. Only for
                whole sequences: the windows of a batch are in lock-step, so a state is of sequences of one length.
            state: what is remembered of the sequences so far; None starts them.
            return_state: also return what to remember.
            cu_seqlens: refused, for the same reason.

        Returns:
            (B, L, d_model) in the weights' type, and the state if asked for.

        Raises:
            ValueError: for boundaries, for a mask with padding together with a state, for a mask of another shape or
                type, and for a state of another model.
        """
        if cu_seqlens is not None:
            raise ValueError(
                "cu_seqlens came, but the windows of a SaShiMi begin at the same positions in all sequences of a "
                "batch: pad the sequences and give a mask"
            )
        check_layout(hidden, mask, None)
        self._check_state(state)
        if mask is not None and (state is not None or return_state):
            if not bool(mask.all()):
                raise ValueError(
                    "mask has padding and a state is given or asked for, but the sequences of a SaShiMi's state are "
                    "all at one position: run sequences of one length together, without padding"
                )
            mask = None
        chunk = sashimi_chunk_length(hidden, self.config)
        if mask is None and chunk < hidden.shape[1] and not self.training:  # dropout would draw other numbers
            return self._in_chunks(chunk, hidden, state, return_state)
        start = None if mask is None else first_position(mask)
        if start is not None:
            hidden = shift_left(hidden, start)
        if state is None and return_state:
            state = self.allocate_state(len(hidden))
        after = SaShiMiState(0, [], [], [], [], []) if return_state else None
        x = self._level(0, self._residual(hidden), state, after)
        if after is not None:
            assert state is not None
            after.position = state.position + hidden.shape[1]
            for side in (after.down, after.up, after.windows, after.raised):
                cast("list[object]", side).reverse()  # the innermost came first
        out = normed(x, self.norm)
        if start is not None:
            out = shift_left(out, -start)
        return out if after is None else (out, after)

    def _in_chunks(
        self, chunk: int, hidden: Tensor, state: SaShiMiState | None, return_state: bool
    ) -> Tensor | tuple[Tensor, SaShiMiState]:
        """Do what `forward` does, `chunk` positions at a time through all levels."""
        outputs = []
        for part in hidden.split(chunk, dim=1):
            out, state = self.forward(part, None, state, return_state=True)
            outputs.append(out)
        whole = torch.cat(outputs, dim=1)
        return (whole, cast("SaShiMiState", state)) if return_state else whole

    def _level(self, level: int, x: Tensor, state: SaShiMiState | None, after: SaShiMiState | None) -> Tensor:
        """Run a level and all inside it over x (B, L, width); put what to remember into `after`, innermost first."""
        keep, segment = after is not None, self._segment()
        if level == len(self.config.pool):
            outputs, states = self.centre(x, None, None if state is None else state.centre, keep, segment)
            if after is not None:
                after.centre = states
            return outputs[-1] + x
        inputs = [x]  # of every layer on the way down, and of the pool
        down_states: StageState = []
        if len(self.down):
            outputs, down_states = self.down[level](
                x, None, None if state is None else state.down[level], keep, segment
            )
            inputs += outputs
        raised = self._inner(level, inputs[-1], state, after)
        x = raised + inputs.pop()
        # with blocks on the way down every layer adds the input of its mirror image; without, the last adds the stage's
        added = inputs[::-1] if len(self.down) else None
        outputs, up_states = self.up[level](x, added, None if state is None else state.up[level], keep, segment)
        if after is not None:
            after.up.append(up_states)
            if len(self.down):
                after.down.append(down_states)
        out: Tensor = outputs[-1] if len(self.down) else outputs[-1] + x
        return out

    def _inner(self, level: int, x: Tensor, state: SaShiMiState | None, after: SaShiMiState | None) -> Tensor:
        """Pool x (B, L, width), run the levels inside, and return what comes up at these positions (B, L, width)."""
        factor, length = self.config.pool[level], x.shape[1]
        phase = 0 if state is None else self._phase(level, state.position)
        if state is not None and phase:
            x = torch.cat([state.windows[level][:, :phase].to(x.dtype), x], dim=1)
        n, rest = divmod(phase + length, factor)
        if state is None:
            raised = x.new_zeros((x.shape[0], factor, x.shape[2]))
        else:
            raised = state.raised[level].to(x.dtype)
        if n:
            coarse = self.pools[level](x[:, : n * factor])
            raised = torch.cat([raised, self.raises[level](self._level(level + 1, coarse, state, after))], dim=1)
        elif after is not None:
            assert state is not None
            self._pass_on(level + 1, state, after)
        if after is not None:
            # clones: a step writes into them, and a slice would keep the whole sequence in memory
            window = nn.functional.pad(x[:, n * factor :], (0, 0, 0, factor - rest))
            after.windows.append(window.clone())
            after.raised.append(raised[:, n * factor :].clone())
        return raised[:, phase : phase + length]

    def _pass_on(self, level: int, state: SaShiMiState, after: SaShiMiState) -> None:
        """Remember what a level and those inside it did, for no window of theirs was completed."""
        after.centre = copied(state.centre)
        for inner in range(len(self.config.pool) - 1, level - 1, -1):
            if len(self.down):
                after.down.append(copied(state.down[inner]))
            after.up.append(copied(state.up[inner]))
            after.windows.append(state.windows[inner].clone())
            after.raised.append(state.raised[inner].clone())

    @torch.no_grad()
    def step(self, hidden: Tensor, state: SaShiMiState) -> Tensor:
        """Advance one position, changing `state` in place; (B, d_model) to (B, d_model), no gradient.

        A level inside runs at the positions that complete its window alone: which they are depends on
        `state.position % config.period` only.
        """
        self._check_state(state)
        x = self._step_level(0, self._residual(hidden), state)
        state.position += 1
        out: Tensor = self.norm(x.to(self.norm.weight.dtype))
        return out

    def _step_level(self, level: int, x: Tensor, state: SaShiMiState) -> Tensor:
        if level == len(self.config.pool):
            return self.centre.step(x, None, state.centre)[-1] + x
        inputs = [x]
        if len(self.down):
            inputs += cast("Stage", self.down[level]).step(x, None, state.down[level])
        phase = self._phase(level, state.position)
        state.windows[level][:, phase] = inputs[-1]
        # before the level inside runs, which overwrites it
        y = state.raised[level][:, phase].to(x.dtype) + inputs.pop()
        added = inputs[::-1] if len(self.down) else None
        out = cast("Stage", self.up[level]).step(y, added, state.up[level])[-1]
        if phase == self.config.pool[level] - 1:
            coarse = self.pools[level](state.windows[level].to(x.dtype))[:, 0]
            state.raised[level].copy_(self.raises[level](self._step_level(level + 1, coarse, state)[:, None]))
        return out if len(self.down) else out + y

    def allocate_state(self, batch: int) -> SaShiMiState:
        """Return the state of `batch` sequences before their first position."""
        weight = self.norm.weight
        kept = at_least_float32(weight) if self.config.residual_in_fp32 else weight
        buffers = [
            [
                kept.new_zeros((batch, factor, width))
                for factor, width in zip(self.config.pool, self.config.widths, strict=False)
            ]
            for _ in range(2)
        ]
        stages = cast("list[list[Stage]]", [list(self.down), [self.centre], list(self.up)])
        down, (centre,), up = ([stage.allocate_state(batch) for stage in side] for side in stages)
        return SaShiMiState(0, down, centre, up, *buffers)

    def _phase(self, level: int, position: int) -> int:
        """Return how many positions of the window of a level's pool are read after `position` positions in all."""
        return position // self.config.strides[level] % self.config.pool[level]

    def _segment(self) -> int:
        """Return how many layers are between two checkpoints; 0 for no checkpoints."""
        if self.gradient_checkpointing < 0:
            raise ValueError(
                f"gradient_checkpointing is {self.gradient_checkpointing}, expected True, False or a number of layers"
            )
        return int(self.gradient_checkpointing) if torch.is_grad_enabled() else 0

    def _residual(self, hidden: Tensor) -> Tensor:
        """Return the input in the type of the residual stream."""
        if self.config.residual_in_fp32:
            return at_least_float32(hidden)
        device = hidden.device.type
        computing = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.norm.weight.dtype
        return hidden.to(computing)

    def _check_state(self, state: SaShiMiState | None) -> None:
        if state is None:
            return
        if not isinstance(state, SaShiMiState):
            raise ValueError(f"state is a {type(state).__name__}, expected the SaShiMiState of a model of this kind")
        found = [len(stage) for stage in [*state.down, state.centre, *state.up]]
        wanted = [len(cast("Stage", stage).layers) for stage in [*self.down, self.centre, *self.up]]
        if found != wanted or len(state.windows) != len(self.config.pool):
            raise ValueError(
                f"state is of stages of {found} layers, expected {wanted}: take it from allocate_state or from a call "
                "with return_state of the same model"
            )


def level_config(config: SaShiMiConfig, level: int) -> MambaConfig:
    """Return the config of a stage's blocks at a level, 0 the outermost."""
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(MambaConfig)}
    return MambaConfig(
        **{
            **shared,
            "d_model": config.widths[level],
            "n_layer": config.layers_of_levels[level],
            "ssm": config.kinds_of_levels[level],
        }
    )
