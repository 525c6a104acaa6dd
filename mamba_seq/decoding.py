"""Steps on a GPU as CUDA graphs: all kernels of a step are launched as one, and nobody waits between steps.

A step of a small model is some dozens of kernels of a few microseconds each, fewer than the host needs to launch one.
`StepGraph` captures the step of a model once and replays it; `TokenLoop` also captures the drawing of the next
token, so that the host only counts. States change in place, and weights are read where they are: what changes their
values is seen, what replaces them is not.

Shapes: B batch, V vocabulary, n new tokens.
"""

import contextlib
import gc
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mamba_seq.backbone import BackboneState
from mamba_seq.fused_step import prepared_steps
from mamba_seq.kernels._dispatch import implementation
from mamba_seq.sampling import sample

log = logging.getLogger("mamba_seq.decoding")

FEWEST = 16
"""New tokens from which on capturing pays: it takes as long as some steps."""
LOOK_EVERY = 32
"""Tokens between two looks at whether every sequence has ended: each waits for the GPU."""
WARM_UP = 2
_THREAD = threading.local()
Sampling = tuple[float, int | None, float | None]
"""Temperature, top_k and top_p."""


class StepGraph:
    """The step of a model, captured: `graph(inputs)` does what `model.step(inputs, state)` does.

    Matrix products in graphs that one thread has captured share a workspace: replay such graphs one after another.

    Attributes:
        state: what the model remembers, changed in place at every call.

    Args:
        model: with `step(inputs, state)` that returns one tensor: a `Backbone`, or a model with an output at every
            position. Its weights must stay in their places.
        inputs: an example of what a step reads, of the batch, shape and type of all that follow, on a CUDA device.
        state: to go on from; None begins anew. It is not copied.

    Raises:
        ValueError: for inputs that are not on a CUDA device.
    """

    def __init__(self, model: Any, inputs: Tensor, state: BackboneState | None = None) -> None:
        if not inputs.is_cuda:
            raise ValueError(f"inputs are on {inputs.device}, expected a CUDA device: call model.step elsewhere")
        self.state: BackboneState = model.allocate_state(len(inputs)) if state is None else state
        self._inputs = inputs.clone()

        def step() -> None:
            self._out = model.step(self._inputs, self.state)

        self._captured = Captured(step, model, state_tensors(self.state))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the next position; they are overwritten by the next call."""
        self._inputs.copy_(inputs)
        self._captured.replay()
        return self._out


class TokenLoop:
    """A language model's step and the draw of the next token from it, captured; what is drawn is read next.

    Attributes:
        history: the tokens (B, n), of which `done` are there.

    Args:
        model: a language model on a CUDA device.
        first: the tokens drawn last (B,), the first of the history.
        state: after the prompts; changed in place.
        count: n, how many tokens there can be.
        sampling: temperature, top_k and top_p.
        generator: of the random numbers; None takes torch's own. It is left as drawing token by token leaves it.
        stop_token: ends a sequence, and is repeated after its end.
    """

    def __init__(
        self,
        model: Any,
        first: Tensor,
        state: BackboneState,
        count: int,
        sampling: Sampling,
        generator: torch.Generator | None = None,
        stop_token: int | None = None,
    ) -> None:
        device = first.device
        self._theirs = torch.cuda.default_generators[device.index or 0] if generator is None else generator
        self._random = torch.Generator(device)
        self.history = first.new_empty((len(first), count))
        self.history[:, 0] = first
        self.done = 1
        self.ended = torch.zeros(len(first), dtype=torch.bool, device=device)
        if stop_token is not None:
            self.ended |= first == stop_token
        self._token = first.clone()
        matrices = model.plain_matrices()
        if matrices is not None and few_launches(len(first), matrices, sampling):
            step, changed = self._one_launch_behind(model, state, matrices, sampling, stop_token)
        else:
            step, changed = self._separate(model, state, sampling, stop_token)
        changed += [*state_tensors(state), self._token, self.ended, self.history]
        self._captured = Captured(step, model, changed, self._random)
        self._random.set_state(self._theirs.get_state())
        self._begin = self._random.get_offset()

    def _separate(
        self, model: Any, state: BackboneState, sampling: Sampling, stop_token: int | None
    ) -> tuple[Callable[[], None], list[Tensor]]:
        """Return a step, its draw and records in torch's operators, and what else it changes."""
        position = torch.ones(1, dtype=torch.int64, device=self.history.device)

        def step() -> None:
            drawn = sample(model.step(self._token, state), *sampling, self._random)
            if stop_token is not None:
                drawn = drawn.masked_fill(self.ended, stop_token)
                self.ended.logical_or_(drawn == stop_token)
            self._token.copy_(drawn)
            self.history.index_copy_(1, position, drawn[:, None])
            position.add_(1)

        return step, [position]

    def _one_launch_behind(
        self,
        model: Any,
        state: BackboneState,
        matrices: tuple[Tensor, Tensor],
        sampling: Sampling,
        stop_token: int | None,
    ) -> tuple[Callable[[], None], list[Tensor]]:
        """Return the same with all that follows the stack in one launch, random numbers in another."""
        embedding, weight = (matrix.detach() for matrix in matrices)
        batch, V = len(self.history), len(weight)
        positions = torch.ones(batch, dtype=torch.int64, device=self.history.device)
        hidden = model.backbone.stream_input(embedding[self._token])
        noise = None if sampling[0] == 0 else torch.empty((batch, V), dtype=torch.float32, device=weight.device)
        kernels = implementation("next_token", "triton")
        self._read = (noise, embedding, weight)  # for as long as the graph does

        def step() -> None:
            out = model.backbone.step(hidden, state)
            if noise is not None:
                noise.exponential_(generator=self._random)
            kernels.next_token(
                self._token, hidden, self.history, positions, self.ended, out, weight, embedding, sampling, noise,
                stop_token,
            )  # fmt: skip

        return step, [positions, hidden]

    def advance(self, count: int) -> None:
        """Draw more tokens, without waiting for them."""
        for _ in range(count):
            self._captured.replay()
        self.done += count

    def finish(self, length: int) -> Tensor:
        """Return the first tokens (B, length), at most `done`, and give memory and random numbers back."""
        each = (self._random.get_offset() - self._begin) // max(self.done - 1, 1)
        self._random.set_offset(self._begin + each * (length - 1))
        self._theirs.set_state(self._random.get_state())
        torch.cuda.current_stream(self.history.device).synchronize()
        self._captured.reset()
        return self.history[:, :length]


def few_launches(batch: int, matrices: tuple[Tensor, Tensor], sampling: Sampling) -> bool:
    """Tell whether what follows the stack is one launch here."""
    if not matrices[0].is_cuda:
        return False
    kernels = implementation("next_token", "triton")
    embedding, weight = matrices
    some = kernels.keeps_some(sampling, len(weight))
    return bool(kernels.why_not(batch, weight, embedding, some) is None)


def continue_tokens(
    model: Any,
    first: Tensor,
    state: BackboneState,
    count: int,
    sampling: Sampling,
    generator: torch.Generator | None,
    stop_token: int | None,
) -> Tensor | None:
    """Go on from tokens that were just drawn, as `LanguageModel.generate` does; arguments as of `TokenLoop`.

    Returns:
        (B, n), fewer where all sequences have ended before; None if the step cannot be captured, all being as it was.
    """
    try:
        loop = TokenLoop(model, first, state, count, sampling, generator, stop_token)
    except RuntimeError as error:
        log.warning("generate runs step by step, its step cannot be captured: %s", error)
        return None
    if stop_token is None:
        loop.advance(count - 1)
        return loop.finish(count)
    while loop.done < count and not bool(loop.ended.all()):
        loop.advance(min(LOOK_EVERY, count - loop.done))
    return loop.finish(length_until_all_stopped(loop.history[:, : loop.done], stop_token))


def length_until_all_stopped(tokens: Tensor, stop_token: int) -> int:
    """Return how many of the tokens (B, n) there are up to where the last sequence has stopped, n if one has not."""
    stopped = (tokens == stop_token).all(dim=0)  # a stop is repeated to the end
    return min(int((~stopped).sum()) + 1, tokens.shape[1])


class Captured:
    """A function without arguments as a CUDA graph; it runs while it is captured, and what it changed is put back."""

    def __init__(
        self,
        step: Callable[[], None],
        model: nn.Module,
        changed: Sequence[Tensor],
        random: torch.Generator | None = None,
    ) -> None:
        device = changed[0].device
        saved = [tensor.clone() for tensor in changed]
        stream = capture_stream(device)
        self._graph = torch.cuda.CUDAGraph()
        if random is not None:
            self._graph.register_generator_state(random)
        # a capture that fails leaves its stream the current one; the outer block puts the caller's back
        with torch.no_grad(), torch.cuda.stream(torch.cuda.current_stream(device)), without_cached_casts():
            try:
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP):  # kernels are compiled and libraries set up outside of the graph
                        step()
                torch.cuda.current_stream().wait_stream(stream)
                capture(self._graph, step, stream, random)
                # a graph has addresses only: what they belong to lives as long as it does
                self._kept = (changed, model, prepared_steps(model))
            finally:
                for tensor, value in zip(changed, saved, strict=True):
                    tensor.copy_(value)

    def replay(self) -> None:
        """Run the step."""
        self._graph.replay()

    def reset(self) -> None:
        """Give the graph's memory back."""
        self._graph.reset()


def capture(
    graph: torch.cuda.CUDAGraph, step: Callable[[], None], stream: torch.cuda.Stream, random: torch.Generator | None
) -> None:
    """Capture a step; whatever ends that, random numbers can be drawn again afterwards."""
    collects = gc.isenabled()
    gc.disable()  # an earlier graph that is freed inside of a capture would end it
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except RuntimeError:
        end_capture(stream, random)
        raise
    finally:
        if collects:
            gc.enable()


def end_capture(stream: torch.cuda.Stream, random: torch.Generator | None) -> None:
    """Give random numbers back after a capture that failed: generators count for its graph until one is ended."""
    graph = torch.cuda.CUDAGraph()
    if random is not None:
        graph.register_generator_state(random)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        with torch.cuda.stream(torch.cuda.current_stream(stream.device)), torch.cuda.graph(graph, stream=stream):
            pass


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device that this thread captures on: cuBLAS keeps 32 MiB for every stream it has seen."""
    kept: dict[torch.device, torch.cuda.Stream] = _THREAD.__dict__.setdefault("streams", {})
    if device not in kept:
        kept[device] = torch.cuda.Stream(device)
    return kept[device]


def state_tensors(state: BackboneState) -> list[Tensor]:
    """Return what a step changes of a state."""
    return [tensor for block in state for tensor in (block.conv, block.ssm)]


@contextlib.contextmanager
def without_cached_casts() -> Iterator[None]:
    """Let autocast cast weights inside of a graph: a cast that it keeps is gone when the caller's block ends."""
    if not torch.is_autocast_enabled("cuda"):
        yield
        return
    with torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), cache_enabled=False):
        yield
