"""Writes the step of a language model as a program for the CPU (`mamba_seq.kernels.step_program`).

The definition is `LanguageModel.step`: a phase of the program does what it does at a position, the draw of the next
token included. A plain stack has one phase, a SaShiMi as many as the positions after which what runs at a step
repeats.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from mamba_seq.backbone import Backbone, ResidualBlock
from mamba_seq.block import Mamba, MambaState
from mamba_seq.heads.language_model import LanguageModel
from mamba_seq.kernels.step_program import Builder, StepProgram, Vector
from mamba_seq.kernels.step_program.builder import NEVER, in_blocks, pad, pad_rows
from mamba_seq.s4 import S4Layer
from mamba_seq.sashimi import SaShiMi, SaShiMiState
from mamba_seq.sashimi_layers import FeedForward, Layer, Stage

Rows = list[list[int]]


class Place:
    """Where the state of a block is in a sequence's memory."""

    def __init__(self, conv: Vector | None, ssm: Vector) -> None:
        self.conv, self.ssm = conv, ssm

    def load(self, program: StepProgram, state: MambaState) -> None:
        """Put a state of the model's own form there."""
        if self.conv is not None:
            program.write(self.conv.place, pad(state.conv.transpose(1, 2)))
        ssm = torch.view_as_real(state.ssm) if state.ssm.is_complex() else state.ssm
        program.write(self.ssm.place, torch.stack([in_blocks(each) for each in ssm]))


class StepWriter:
    """The program of a model's step.

    Attributes:
        builder: all phases.
        label: the place of the vector of a sequence's class, zeros without one.
        logits: the place of the logits.

    Args:
        model: float32, on the CPU. Its weights are copied.

    Raises:
        ValueError: for weights of another type or elsewhere.
    """

    def __init__(self, model: LanguageModel) -> None:
        reason = why_not(model)
        if reason is not None:
            raise ValueError(f"the model's step cannot be compiled: {reason}")
        config = model.config
        assert config.vocab_size is not None
        self.builder = builder = Builder()
        self._blocks: dict[nn.Module, Place] = {}
        self._begun: tuple[list[Vector], list[Vector]] = ([], [])
        width, V = config.backbone.d_model, config.vocab_size
        self.label = builder.vector(width)
        self.logits = builder.vector(V)
        self._model = model
        x, out, normed = (builder.vector(width) for _ in range(3))
        head = model.embedding if model.output is None else model.output
        matrix = builder.matrix(cast("Tensor", head.weight), fill=NEVER)
        norm = model.backbone.norm

        def begin() -> None:
            builder.embed(model.embedding(torch.arange(V)), self.label, x)

        def end() -> None:
            builder.norm(out, normed, norm.weight, getattr(norm, "bias", None), cast("float", norm.eps))
            builder.linear(normed, matrix, self.logits)
            builder.draw(self.logits)

        with torch.no_grad():
            first, last = builder.segment(begin), builder.segment(end)
            if isinstance(model.backbone, SaShiMi):
                self._write_levels(model.backbone, x, out, first, last)
            else:
                self._write_stack(model.backbone, x, out, first, last)

    def load(self, program: StepProgram, state: Any) -> None:
        """Put a state of the model (of B sequences, or of one for all) into the memory of a program."""
        if isinstance(state, SaShiMiState):
            backbone = cast("SaShiMi", self._model.backbone)
            pairs = [*zip(backbone.down, state.down, strict=True), (backbone.centre, state.centre)]
            pairs += zip(backbone.up, state.up, strict=True)
            for stage, states in pairs:
                for layer, each in zip(cast("Stage", stage).layers, states, strict=True):
                    if each is not None:
                        self._blocks[layer].load(program, each)
            for places, values in zip(self._begun, (state.windows, state.raised), strict=True):
                for place, value in zip(places, values, strict=True):
                    program.write(place.place, pad(value))
            return
        for layer, each in zip(cast("Backbone", self._model.backbone).layers, state, strict=True):
            self._blocks[layer].load(program, each)

    def _write_stack(self, backbone: Backbone, x: Vector, out: Vector, first: Rows, last: Rows) -> None:
        self.builder.begin_phase()
        self.builder.play(first)
        self._layers(list(backbone.layers), x, [out] * len(backbone.layers), None)
        self.builder.play(last)

    def _write_levels(self, backbone: SaShiMi, x: Vector, out: Vector, first: Rows, last: Rows) -> None:
        builder, config = self.builder, backbone.config
        inputs = [x, *(builder.vector(width) for width in config.widths[1:])]
        outs = [out, *(builder.vector(width) for width in config.widths[1:])]
        windows, raised = self._begun
        segments: list[tuple[Rows, Vector, Vector, Rows, Rows, Rows]] = []
        for level, (factor, width) in enumerate(zip(config.pool, config.widths, strict=False)):
            windows.append(builder.vector(width, factor))
            raised.append(builder.vector(width, factor))
            segments.append(self._level(backbone, level, inputs, outs))
        centre = list(backbone.centre.layers)
        stream = [outs[-1] if i == len(centre) - 1 else builder.vector(config.widths[-1]) for i in range(len(centre))]
        added = [None] * (len(centre) - 1) + [inputs[-1]]
        inmost = builder.segment(lambda: self._layers(centre, inputs[-1], stream, added))

        def run(level: int, position: int) -> None:
            if level == len(config.pool):
                builder.play(inmost)
                return
            down, end, y, up, pool, lift = segments[level]
            phase = position // config.strides[level] % config.pool[level]
            builder.play(down)
            builder.add(end, None, windows[level].row(phase))
            builder.add(raised[level].row(phase), end, y)
            builder.play(up)
            if phase == config.pool[level] - 1:
                builder.play(pool)
                run(level + 1, position)
                builder.play(lift)

        for position in range(config.period):
            builder.begin_phase()
            builder.play(first)
            run(0, position)
            builder.play(last)

    def _level(
        self, backbone: SaShiMi, level: int, inputs: list[Vector], outs: list[Vector]
    ) -> tuple[Rows, Vector, Vector, Rows, Rows, Rows]:
        """Write the parts of a level: way down, its end, the beginning of the way up, that way, pool and raise."""
        builder, width, factor = self.builder, backbone.config.widths[level], backbone.config.pool[level]
        windows, raised = self._begun[0][level], self._begun[1][level]
        x, dense = inputs[level], len(backbone.down) > 0
        downs = [x]
        down: Rows = []
        if dense:
            layers = list(cast("Stage", backbone.down[level]).layers)
            downs += [builder.vector(width) for _ in layers]
            down = builder.segment(lambda: self._layers(layers, x, downs[1:], None))
        y = builder.vector(width)
        up_layers = list(cast("Stage", backbone.up[level]).layers)
        stream = [*(builder.vector(width) for _ in up_layers[1:]), outs[level]]
        added: list[Vector | None] = [*downs[-2::-1]] if dense else [*[None] * (len(up_layers) - 1), y]
        up = builder.segment(lambda: self._layers(up_layers, y, stream, added))
        pooled, lifted = cast("Any", backbone.pools[level]).linear, cast("Any", backbone.raises[level]).linear
        columns = pad(pooled.weight.unflatten(1, (factor, width))).flatten(1)
        parts = [width] * factor
        into = builder.matrix(columns, pooled.bias)
        back = builder.matrix(pad_rows(lifted.weight, parts), pad_rows(lifted.bias, parts))
        pool = builder.segment(lambda: builder.linear(windows, into, inputs[level + 1]))
        lift = builder.segment(lambda: builder.linear(outs[level + 1], back, raised))
        return down, downs[-1], y, up, pool, lift

    def _layers(self, layers: list[nn.Module], x: Vector, outs: list[Vector], added: Any) -> None:
        for i, layer in enumerate(layers):
            more = None if added is None else added[i]
            self._layer(cast("Layer", layer), x, outs[i], more)
            x = outs[i]

    def _layer(self, layer: Layer, x: Vector, out: Vector, more: Vector | None) -> None:
        builder, norm = self.builder, layer.norm
        normed = builder.vector(x.length)
        builder.norm(x, normed, norm.weight, getattr(norm, "bias", None), cast("float", norm.eps))
        if isinstance(layer, FeedForward):
            wide = builder.vector(layer.widen.out_features)
            builder.linear(normed, builder.matrix(layer.widen.weight, layer.widen.bias), wide)
            builder.gelu(wide, wide)
            builder.linear(wide, builder.matrix(layer.narrow.weight, layer.narrow.bias), out, x, more)
        elif isinstance(layer.mixer, S4Layer):
            self._s4(layer, layer.mixer, normed, x, out, more)
        else:
            self._mamba(layer, layer.mixer, normed, x, out, more)

    def _mamba(
        self, layer: nn.Module, mixer: Mamba, normed: Vector, x: Vector, out: Vector, more: Vector | None
    ) -> None:
        builder, config = self.builder, mixer.config
        D, N = config.d_inner, config.d_state
        halves = builder.vector(D, 2)
        bias = mixer.in_proj.bias
        builder.linear(
            normed,
            builder.matrix(pad_rows(mixer.in_proj.weight, [D, D]), None if bias is None else pad_rows(bias, [D, D])),
            halves,
        )
        z, u, y = halves.row(1), builder.vector(D), builder.vector(D)
        conv = builder.vector(D, config.d_conv - 1)
        ssm = self._state(D, N, config.has_complex_states)
        self._blocks[layer] = Place(conv, ssm)
        builder.convolution(halves, u, mixer.conv_weight, mixer.conv_bias, conv)
        if config.is_selective:
            selection, delta = builder.vector(mixer.x_proj.out_features), builder.vector(D)
            builder.linear(u, builder.matrix(mixer.x_proj.weight), selection)
            builder.linear(selection, builder.matrix(mixer.dt_proj.weight), delta)
            A = mixer._state_matrix()
            builder.selective(u, z, delta, selection, y, A, mixer.dt_bias, mixer.D, ssm, config.rank)
        else:
            parameters = mixer._time_invariant()
            builder.time_invariant(
                u, z, y, cast("tuple[Tensor, Tensor]", mixer._discrete()), parameters.C, parameters.D, ssm
            )
        builder.linear(y, builder.matrix(mixer.out_proj.weight, mixer.out_proj.bias), out, x, more)

    def _s4(
        self, layer: nn.Module, mixer: S4Layer, normed: Vector, x: Vector, out: Vector, more: Vector | None
    ) -> None:
        builder, width = self.builder, mixer.config.d_model
        ssm = self._state(width, mixer.config.d_state, mixer.config.has_complex_states)
        self._blocks[layer] = Place(None, ssm)
        parameters = mixer._recurrence()
        y, halves = builder.vector(width), builder.vector(width, 2)
        builder.time_invariant(normed, None, y, mixer._discrete(), parameters.C, parameters.D, ssm)
        builder.gelu(y, y)
        parts = [width, width]
        matrix = builder.matrix(pad_rows(mixer.out_proj.weight, parts), pad_rows(mixer.out_proj.bias, parts))
        builder.linear(y, matrix, halves)
        builder.glu(halves, y)
        builder.add(x, y, out)
        if more is not None:
            builder.add(out, more, out)

    def _state(self, channels: int, N: int, is_complex: bool) -> Vector:
        return self.builder.vector(channels, N * (2 if is_complex else 1))


def why_not(model: LanguageModel) -> str | None:
    """Give the reason that a model's step is not written as a program, or None."""
    if type(model) is not LanguageModel:
        return f"it is a {type(model).__name__}, expected a LanguageModel"
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            return f"{name} is {kind} on {parameter.device}, expected float32 on the CPU"
    known = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.LayerNorm, nn.Dropout, nn.ModuleList)
    for name, part in model.named_modules():
        ours = type(part).__module__.startswith("mamba_seq.")
        if not (ours or type(part) in known) or part._forward_hooks or part._forward_pre_hooks:
            return f"{name} is a {type(part).__name__} or has hooks, expected the layers of a saved model"
    if not all(isinstance(b, ResidualBlock | FeedForward) for b in _layers_of(model)):
        return "it has layers of another kind"
    return None


def _layers_of(model: LanguageModel) -> list[nn.Module]:
    backbone = model.backbone
    if isinstance(backbone, SaShiMi):
        stages = cast("list[Stage]", [*backbone.down, backbone.centre, *backbone.up])
        return [layer for stage in stages for layer in stage.layers]
    return list(backbone.layers)
