"""Text from a language model: a prompt in, its continuation out, piece by piece while it is drawn."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mamba_seq.errors import ModelError
from mamba_seq.heads import LanguageModel
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.errors import PipelineError
from mamba_seq.pipelines.models import locate_model
from mamba_seq.pipelines.runtime import use
from mamba_seq.pipelines.text_tokens import TextStream, TextTokens, end_tokens, text_tokens
from mamba_seq.sampling import check_sampling
from mamba_seq.streaming import stream_tokens


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A language model with what turns text into its tokens."""

    model: LanguageModel
    tokens: TextTokens
    ends: frozenset[int]
    """Tokens that end a text."""


def load_text_model(spec: str, device: torch.device | str) -> TextModel:
    """Load the language model that `-m` names, with its tokenizer.json, or the alphabet of its config.

    Args:
        spec: a zoo name, the folder of a model (of mamba-seq, or of transformers' MambaForCausalLM) or a hub id.
        device: where the model shall run.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it cannot be read, is no language model of text, or wants to be told a class.
        PipelineError: when tokenizers is not installed.
    """
    folder: Path = locate_model(spec)
    model = from_pretrained(folder, device)
    if not isinstance(model, LanguageModel) or model.config.labels or model.config.codec is not None:
        kind: str = model.config.task
        kind += " of several classes" if isinstance(model, LanguageModel) and model.config.labels else ""
        kind += " of sound" if model.config.codec is not None else ""
        raise ModelError(f"model {spec!r} is a {kind}, expected a language-model of text; choose another -m")
    return TextModel(model, text_tokens(folder, model.config), frozenset(end_tokens(folder)))


def generate_text(
    model: TextModel,
    prompt: str,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continue a prompt; what comes is the continuation alone, in pieces as they become certain.

    Args:
        model: from `load_text_model`.
        prompt: text to go on from, at least one token of it.
        max_tokens: tokens to draw at most; fewer when the model ends the text, or a text of `stop` comes.
        temperature: divides the logits; 0 takes the most probable token each time (greedy).
        top_k: draw among the k most probable tokens only.
        top_p: draw among the fewest most probable tokens whose probabilities sum to p only, after `top_k`.
        seed: of the random numbers; None draws others each time.
        stop: texts that end the continuation, and are not part of it.

    Raises:
        PipelineError: for an empty prompt.
        DataError: for a letter that the model's alphabet does not have.
        ValueError: for a sampling argument out of its range, or an empty text to stop at.
    """
    check_sampling(temperature, top_k, top_p)
    if not all(stop):
        raise ValueError("stop has an empty text, expected texts of at least one character")
    ids = model.tokens.encode(prompt)
    if not ids:
        raise PipelineError("the prompt is empty; give at least a word to go on from")
    return _until_stop(_pieces(model, ids, max_tokens, (temperature, top_k, top_p), seed), stop)


def read_prompt() -> str:
    """Return the prompt on standard input, without the end of its last line.

    Raises:
        PipelineError: when it is not text, or there is no standard input.
    """
    if sys.stdin is None:
        raise PipelineError("standard input is closed; give the prompt itself with --text")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise PipelineError(f"standard input is not text in UTF-8: byte {error.start} of it is not") from error


def _pieces(
    model: TextModel,
    ids: list[int],
    max_tokens: int,
    sampling: tuple[float, int | None, float | None],
    seed: int | None,
) -> Iterator[str]:
    """Yield the text of each token, up to one that ends it."""
    stream = TextStream(model.tokens, ids)
    device = next(model.model.parameters()).device
    temperature, top_k, top_p = sampling
    prompt = torch.tensor([ids], device=device)
    with use(device):
        drawn = stream_tokens(
            model.model, prompt, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, generator=seed
        )
        for some in drawn:
            for token in some[0].tolist():
                if token in model.ends:
                    drawn.close()
                    yield stream.end()
                    return
                yield stream.add(token)
    yield stream.end()


def _until_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield pieces of text up to the first of the texts `stop`, holding back what may be the beginning of one."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for text in stop if (at := held.find(text)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        keep = max((n for text in stop for n in range(1, len(text)) if held.endswith(text[:n])), default=0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held
