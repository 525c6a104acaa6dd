"""Clips of sound, sample by sample, from a language model of levels: a batch of them at once, each as if it were alone.

What a clip is depends on the model, its class, the prompt, how it is drawn, and its index: not on the batch that it is
made in, on one kind of device. For its random numbers are counted (`mamba_seq.counted`), and sums that make up its
numbers are made in an order that does not depend on the batch.

There are three engines, which agree to rounding:

    compiled   on the CPU: a program of the whole step, draw included, without Python in between (`step_writer.py`)
    graph      on CUDA devices: so many steps as the pools have positions as one CUDA graph, draws included
    eager      anywhere: `model.step` and `draw_counted`, one after the other; the definition

A clip whose drawing is guided takes two rows of everything, one behind the other: of its class and of none. Both read
what is drawn. So pairs are in one tile wherever rows go in tiles, and all else is as for clips that are not guided.

Shapes: B clips, R rows, n samples, P samples of a prompt.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mamba_seq.block import MambaState
from mamba_seq.config import ModelConfig
from mamba_seq.counted import Drawing, check_drawing, draw_counted
from mamba_seq.heads.language_model import LanguageModel
from mamba_seq.kernels.step_program import StepProgram
from mamba_seq.sashimi import SaShiMiState
from mamba_seq.sashimi_layers import StageState
from mamba_seq.step_writer import StepWriter, why_not

log = logging.getLogger("mamba_seq.decoding")

ENGINES = ("compiled", "graph", "eager")
NO_CLASS = -1


class Engine(Protocol):
    """Clips in the making."""

    def advance(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw the next samples: levels (B, count) int64, and the log-probability of each in nats, float32."""


class WaveformDecoder:
    """Makes clips with one model.

    Args:
        model: of levels, a SaShiMi or a plain stack; in evaluation mode. Its weights must stay as they are.
        silence: the level that the model reads before a clip's first sample.
        engine: "compiled", "graph" or "eager"; None takes the fastest for the device, and logs why if that is none.

    Raises:
        ValueError: for an engine that there is not, or that cannot run the model.
    """

    def __init__(self, model: LanguageModel, silence: int, engine: str | None = None) -> None:
        if engine not in (None, *ENGINES):
            raise ValueError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}, or None")
        self.model = model
        self.silence = silence
        self._device = next(model.parameters()).device
        self._writer: StepWriter | None = None
        reason = None
        if engine == "compiled" or (engine is None and self._device.type == "cpu"):
            reason = why_not(model)
            if reason is None:
                self._writer = StepWriter(model)
        elif engine == "graph" and self._device.type != "cuda":
            reason = f"graphs are for CUDA devices, and the model is on {self._device}"
        if reason is not None:
            if engine is not None:
                raise ValueError(f"the engine {engine!r} cannot run this model: {reason}")
            log.warning("clips are made step by step: %s", reason)
        fastest = "compiled" if self._writer else "graph" if self._device.type == "cuda" else "eager"
        self.engine = engine or fastest

    def start(
        self,
        indices: Sequence[int] | Tensor,
        drawing: Drawing,
        labels: Sequence[int] | Tensor | None = None,
        prompt: Tensor | None = None,
    ) -> Engine:
        """Begin clips.

        Args:
            indices: of the clips (B,), each 0 or more: what tells one clip of a seed from another.
            drawing: temperature, filters, seed, guidance; unless that is 1, of a model trained with label dropout.
            labels: of a conditional model, the class of each (B,), -1 for none.
            prompt: levels (P,) that all clips begin with; None or none for clips from silence.

        Raises:
            ValueError: for labels that do not fit the model, a drawing out of its range, or guidance of a model that
                cannot be guided.
        """
        check_drawing(drawing)
        drawing = with_guidance(drawing, self.model.config)
        index = torch.as_tensor(indices, dtype=torch.int64, device=self._device)
        classes = None if labels is None else torch.as_tensor(labels, dtype=torch.int64, device=self._device)
        self.model.check_labels(classes, len(index))
        if drawing.rows == 2:
            classes = torch.stack([cast("Tensor", classes), torch.full_like(index, NO_CLASS)], dim=1).flatten()
            index = index[:, None].expand(-1, 2).flatten()
        tokens = index.new_full((len(index),), self.silence)
        state: Any = None
        if prompt is not None and len(prompt):
            prompt = prompt.to(self._device, torch.int64)
            state = self._read(prompt, classes, len(index))
            tokens = prompt[-1].expand(len(index)).clone()
        position = 0 if prompt is None else len(prompt)
        if self._writer is not None:
            return self._compiled(self._writer, index, drawing, classes, tokens, state, position)
        if state is None:
            state = self.model.allocate_state(len(index))
        if self.engine == "graph":
            from mamba_seq.waveform_graph import GraphEngine

            return GraphEngine(self.model, index, drawing, classes, tokens, state, position)
        return EagerEngine(self.model, index, drawing, classes, tokens, state, position)

    @torch.no_grad()
    def _read(self, prompt: Tensor, classes: Tensor | None, rows: int) -> Any:
        """Return the state of all rows after the prompt (P,) but its last sample, which the first step reads.

        The prompt goes through the model once for every class, alone, so that it leaves the same in any batch.
        """
        inputs = torch.cat([prompt.new_tensor([self.silence]), prompt[:-1]])[None]
        if classes is None:
            known, which = [None], torch.zeros(rows, dtype=torch.int64, device=prompt.device)
        else:
            distinct, which = classes.unique(return_inverse=True)
            known = cast("Any", list(distinct.split(1)))
        states = [self.model.prefill(inputs, labels=label)[1] for label in known]
        return gathered(states, which)

    def _compiled(
        self,
        writer: StepWriter,
        index: Tensor,
        drawing: Drawing,
        classes: Tensor | None,
        tokens: Tensor,
        state: Any,
        position: int,
    ) -> "CompiledEngine":
        V = cast("int", self.model.config.vocab_size)
        program = StepProgram(writer.builder, len(index), V, drawing, tokens, index, position)
        if classes is not None:
            vectors = cast("Any", self.model.label_embedding).weight[classes.clamp(min=0)]
            program.write(writer.label.place, vectors.masked_fill((classes < 0)[:, None], 0))
        if state is not None:
            writer.load(program, state)
        return CompiledEngine(program)


def with_guidance(drawing: Drawing, config: ModelConfig) -> Drawing:
    """Return a drawing that says how much it is guided: as asked, or as the model's config says.

    Raises:
        ValueError: for guidance of a model that knows no classes, or does not know sequences of none.
    """
    drawing = drawing._replace(guidance=config.guidance if drawing.guidance is None else drawing.guidance)
    if drawing.rows == 2 and not config.label_dropout:
        lacks = "was trained without label dropout" if config.labels else "knows no classes"
        raise ValueError(
            f"guidance is {drawing.guidance:g}, expected 1: the model {lacks}, and has nothing to be guided by; leave "
            "guidance out, or train a conditional model with data.label_dropout 0.1, which may start from one without"
        )
    return drawing


class CompiledEngine:
    """Clips by a program of the whole step."""

    def __init__(self, program: StepProgram) -> None:
        self._program = program

    def advance(self, count: int) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        return self._program.run(count)


class EagerEngine:
    """Clips by `model.step`: what the other engines are held against."""

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
        self._model, self._index, self._drawing, self._classes = model, index, drawing, classes
        self._tokens, self._state, self._position = tokens, state, position

    @torch.no_grad()
    def advance(self, count: int) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        levels, likelihoods = [], []
        for _ in range(count):
            logits = self._model.step(self._tokens, self._state, self._classes)
            rows = self._drawing.rows
            drawn, likelihood = draw_counted(logits, self._drawing, self._index[::rows], self._position)
            self._tokens = drawn[:, None].expand(-1, rows).flatten()
            self._position += 1
            levels.append(drawn)
            likelihoods.append(likelihood)
        return torch.stack(levels, dim=1), torch.stack(likelihoods, dim=1)


def gathered(states: list[Any], which: Tensor) -> Any:
    """Return the state of sequences of which number i is as `states[which[i]]`, each of one sequence."""
    if isinstance(states[0], SaShiMiState):
        first = states[0]

        def of(side: str) -> list[StageState]:
            stages = zip(*(getattr(state, side) for state in states), strict=True)
            return [_stage(list(each), which) for each in stages]

        def tensors(name: str) -> list[Tensor]:
            return [torch.cat(each)[which] for each in zip(*(getattr(s, name) for s in states), strict=True)]

        centre = _stage([state.centre for state in states], which)
        return SaShiMiState(first.position, of("down"), centre, of("up"), tensors("windows"), tensors("raised"))
    return _stage(states, which)


def _stage(states: list[StageState], which: Tensor) -> StageState:
    found: StageState = []
    for layers in zip(*states, strict=True):
        if layers[0] is None:
            found.append(None)
            continue
        each = cast("list[MambaState]", list(layers))
        conv, ssm = torch.cat([s.conv for s in each])[which], torch.cat([s.ssm for s in each])[which]
        found.append(each[0]._replace(conv=conv, ssm=ssm))
    return found
