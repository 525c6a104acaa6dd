"""Clips on a GPU: a super-step, as many samples as the pools have positions, as one CUDA graph, draws included.

What runs at a step depends on the position in that period alone, so the graph of a period, from wherever the clips
stand, is the graph of all that follow. States are changed in place, and the host only says "again".

A U-Net of real selective blocks runs in kernels whose results for a clip do not depend on the number of clips: a
stage is one launch, or three a block of wide ones for many clips (`mamba_seq.kernels.block_step`). Other models take
the steps of the model itself, in tiles of TILE rows, filled up, so that its matrix products have one shape.

Shapes: B clips, R rows (two a clip where drawing is guided, else one), M width of a level, p pooling factor.
"""

import logging
from typing import Any, cast

import torch
from torch import Tensor

from mamba_seq.counted import Drawing, draw_counted
from mamba_seq.decoding import Captured
from mamba_seq.fused_step import weights_of
from mamba_seq.heads.language_model import LanguageModel
from mamba_seq.kernels._dispatch import implementation
from mamba_seq.sashimi import SaShiMi, SaShiMiState
from mamba_seq.sashimi_layers import Stage, StageState

log = logging.getLogger("mamba_seq.decoding")

FEWEST = 16
"""Samples of a graph, at least."""
TILE = 64


class GraphEngine:
    """Clips by replaying a graph; arguments as of `EagerEngine`."""

    def __init__(
        self,
        model: LanguageModel,
        index: Tensor,
        drawing: Drawing,
        classes: Tensor | None,
        tokens: Tensor,
        state: Any,
        position: int,
    ) -> None:
        reason = why_not_fused(model, state, drawing)
        size = len(index)
        if reason is not None:
            log.info("clips are made by the model's own operators, in tiles of %d: %s", TILE, reason)
            size = TILE
        self._loops = []
        for first in range(0, len(index), size):
            here = slice(first, first + size)
            some = None if classes is None else filled(classes[here], size)
            own = (
                state
                if size == len(index)
                else part_of(state, filled(torch.arange(len(index), device=index.device)[here], size))
            )
            arguments = (filled(index[here], size), drawing, some, filled(tokens[here], size), own, position)
            self._loops.append(_Loop(model, reason is None, *arguments))
        self._clips = len(index) // drawing.rows
        self._rest: tuple[Tensor, Tensor] | None = None

    def advance(self, count: int) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        pieces = [] if self._rest is None else [self._rest]
        have = sum(piece[0].shape[1] for piece in pieces)
        while have < count:
            found = [loop.replay() for loop in self._loops]
            levels, likelihood = (torch.cat(each)[: self._clips] for each in zip(*found, strict=True))
            pieces.append((levels, likelihood))
            have += levels.shape[1]
        levels, likelihood = (torch.cat(each, dim=1) for each in zip(*pieces, strict=True))
        self._rest = (levels[:, count:], likelihood[:, count:])
        return levels[:, :count], likelihood[:, :count]


class _Loop:
    """A graph of a super-step of one tile of rows."""

    def __init__(
        self,
        model: LanguageModel,
        fused: bool,
        index: Tensor,
        drawing: Drawing,
        classes: Tensor | None,
        tokens: Tensor,
        state: Any,
        position: int,
    ) -> None:
        period = model.backbone.config.period if isinstance(model.backbone, SaShiMi) else 1
        size = -(-FEWEST // period) * period
        rows = drawing.rows
        clips = len(index) // rows
        self._drawn = torch.zeros((clips, size), dtype=torch.int64, device=index.device)
        self._likelihood = torch.zeros((clips, size), dtype=torch.float32, device=index.device)
        positions = torch.full_like(index, position)
        changed = [tokens, positions, self._drawn, self._likelihood, *tensors_of(state)]
        with torch.no_grad():
            if fused:
                step = FusedLevels(
                    model, state, index, drawing, classes, tokens, positions, self._drawn, self._likelihood, position
                )
                changed += step.buffers

                def run() -> None:
                    for column in range(size):
                        step(position + column)
            else:

                def run() -> None:
                    for column in range(size):
                        logits = model.step(tokens, state, classes)
                        drawn, likelihood = draw_counted(logits, drawing, index[::rows], positions[::rows])
                        tokens.view(clips, rows).copy_(drawn[:, None])
                        positions.add_(1)
                        self._drawn[:, column] = drawn
                        self._likelihood[:, column] = likelihood

            self._kept = run
            self._captured = Captured(run, model, changed)

    def replay(self) -> tuple[Tensor, Tensor]:
        """Run a super-step; return copies of what was drawn."""
        self._captured.replay()
        return self._drawn.clone(), self._likelihood.clone()


class FusedLevels:
    """The step of a U-Net and the draw behind it in few kernels, at fixed addresses.

    Attributes:
        buffers: what it changes besides the state.

    Args: as of `_Loop`; the three in front of the last are written, `origin` is the position of the first column.
    """

    def __init__(
        self,
        model: LanguageModel,
        state: SaShiMiState,
        index: Tensor,
        drawing: Drawing,
        classes: Tensor | None,
        tokens: Tensor,
        positions: Tensor,
        drawn: Tensor,
        likelihood: Tensor,
        origin: int,
    ) -> None:
        from mamba_seq.kernels.next_token.counted import NextLevel

        self._kernels = implementation("block_step", "triton")
        self._backbone = backbone = cast("SaShiMi", model.backbone)
        self._state = state
        config, device, R = backbone.config, index.device, len(index)
        self._streams = [
            torch.zeros((stage + 1, R, width), dtype=torch.float32, device=device)
            for stage, width in zip(config.layers_of_levels, config.widths, strict=True)
        ]
        self.buffers = self._streams
        self._down = [self._stage(s, own) for s, own in zip(backbone.down, state.down, strict=True)]
        self._up = [self._stage(s, own) for s, own in zip(backbone.up, state.up, strict=True)]
        self._centre = self._stage(backbone.centre, state.centre)
        table = model.embedding(torch.arange(cast("int", model.config.vocab_size), device=device)).detach()
        vectors = None
        hidden = table[tokens].float()
        if classes is not None:
            vectors = cast("Any", model.label_embedding).weight[classes.clamp(min=0)]
            vectors = vectors.masked_fill((classes < 0)[:, None], 0).detach()
            hidden += vectors.float()
        self._streams[0][0] = hidden
        head = model.embedding if model.output is None else model.output
        norm = (backbone.norm.weight.detach(), getattr(backbone.norm, "bias", None), cast("float", backbone.norm.eps))
        self._next = NextLevel(
            tokens, self._streams[0][0], drawn, likelihood, positions, index, norm,
            cast("Tensor", head.weight).detach(), table, vectors, drawing, origin,
        )  # fmt: skip

    def __call__(self, position: int) -> None:
        """Take the step at a position, and draw."""
        self._next(self._run(0, position))

    def _run(self, level: int, position: int) -> Tensor:
        streams = self._streams[level]
        if level == len(self._down):
            return self._centre(streams[0]) + streams[0]
        config = self._backbone.config
        layers, R, width = len(streams) - 1, streams.shape[1], streams.shape[2]
        self._down[level](streams[0], None, streams[1:])
        window, raised = self._state.windows[level], self._state.raised[level]
        phase = position // config.strides[level] % config.pool[level]
        window[:, phase] = streams[layers]
        y = raised[:, phase] + streams[layers]
        # behind layer i comes the input of its mirror image, layer n - 1 - i: the streams backwards
        out = self._up[level](y, streams[layers - 1], None, -R * width)
        if phase == config.pool[level] - 1:
            pool, lift = (
                cast("Any", self._backbone.pools[level]).linear,
                cast("Any", self._backbone.raises[level]).linear,
            )
            inner = self._streams[level + 1]
            self._kernels.map_rows(inner[0], window.flatten(1), pool.weight.detach(), pool.bias.detach())
            coarse = self._run(level + 1, position)
            self._kernels.map_rows(raised.flatten(1), coarse, lift.weight.detach(), lift.bias.detach())
        return out

    def _stage(self, stage: Any, state: StageState) -> Any:
        layers = list(cast("Stage", stage).layers)
        blocks = [weights_of(cast("Any", layer)) for layer in layers]
        states = [(cast("Any", each).conv, cast("Any", each).ssm) for each in state]
        like = self._streams[0].new_empty((len(states[0][0]), cast("Any", blocks[0]).out_weight.shape[0]))
        D = cast("Any", blocks[0]).A_log.shape[0]
        launch = self._kernels.batch_invariant_launch(like.shape[1], D, len(like), like.device)
        config = self._backbone.config
        return self._kernels.Prepared(like, states, blocks, config.norm, config.norm_eps, None, launch)


def why_not_fused(model: LanguageModel, state: Any, drawing: Drawing) -> str | None:
    """Give the reason that a model's steps do not run in the fused kernels, or None."""
    from mamba_seq.kernels.next_token import counted

    backbone = model.backbone
    if not isinstance(backbone, SaShiMi) or backbone.config.topology != "unet" or backbone.config.ff:
        return "it is no U-Net of blocks alone"
    config = backbone.config
    if set(config.kinds_of_levels) != {"selective"} or set(config.blocks_of_levels) != {"mamba"}:
        return "its blocks are not all real selective ones"
    if not config.residual_in_fp32:
        return "its residual stream is not float32"
    kernels = implementation("block_step", "triton")
    head = model.embedding if model.output is None else model.output
    weight = cast("Tensor", head.weight)
    reason = counted.why_not(weight, drawing)
    if reason is not None:
        return reason
    R = len(state.centre[0].conv)
    pairs = [*zip(backbone.down, state.down, strict=True), (backbone.centre, state.centre)]
    pairs += zip(backbone.up, state.up, strict=True)
    for stage, own in pairs:
        found = [weights_of(layer) for layer in cast("Any", stage).layers]
        blocks = [block for block in found if block is not None]
        if len(blocks) < len(found):
            return "its layers have been changed"
        M, D = blocks[0].out_weight.shape
        if kernels.batch_invariant_launch(M, D, R, weight.device) is None:
            return f"blocks of width {M} are not small"
        reason = kernels.why_not(
            blocks, [(each.conv, each.ssm) for each in own], weight.new_empty(0, dtype=torch.float32)
        )
        if reason is not None:
            return cast("str", reason)
    return None


def filled(x: Tensor, size: int) -> Tensor:
    """Repeat the last row until there are `size`."""
    return torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]) if len(x) < size else x.clone()


def part_of(state: Any, which: Tensor) -> Any:
    """Return a copy of the state of some sequences."""

    def stage(states: StageState) -> StageState:
        return [None if s is None else s._replace(conv=s.conv[which], ssm=s.ssm[which]) for s in states]

    if not isinstance(state, SaShiMiState):
        return stage(state)
    down, up = [stage(s) for s in state.down], [stage(s) for s in state.up]
    windows, raised = [w[which] for w in state.windows], [r[which] for r in state.raised]
    return SaShiMiState(state.position, down, stage(state.centre), up, windows, raised)


def tensors_of(state: Any) -> list[Tensor]:
    """Return what a step changes of a state."""
    stages, tensors = ([state], []) if not isinstance(state, SaShiMiState) else (
        [*state.down, state.centre, *state.up], [*state.windows, *state.raised]
    )  # fmt: skip
    return [t for stage in stages for each in stage if each is not None for t in (each.conv, each.ssm)] + tensors
