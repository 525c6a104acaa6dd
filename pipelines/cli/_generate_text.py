"""`mamba-seq generate --text`: a prompt in, its continuation out."""

import itertools
import sys

import click

from mamba_seq.pipelines.cli._shell import Settings


def write_text(
    settings: Settings,
    text: str,
    model: str,
    output: str,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop: tuple[str, ...],
    echo: bool,
) -> None:
    """Write what a language model goes on with; what is meant by each, the command's help says."""
    from mamba_seq.pipelines.generate_text import generate_text, load_text_model, read_prompt
    from mamba_seq.pipelines.output import STDOUT, check_output, open_output
    from mamba_seq.pipelines.runtime import start

    if not all(stop):
        raise click.UsageError("--stop is empty; a text of at least one character was expected.")
    check_output(output)
    prompt = read_prompt() if text == "-" else text
    device = start(settings.device, settings.threads, settings.seed)
    pieces = generate_text(
        load_text_model(model, device),
        prompt,
        max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=settings.seed,
        stop=stop,
    )
    if output != STDOUT:
        with open_output(output) as sink:
            sink.write((prompt if echo else "").encode() + "".join(pieces).encode() + b"\n")
        return
    # not whole or not at all: a person reads along
    for piece in itertools.chain((prompt,) if echo else (), pieces, ("\n",)):
        sys.stdout.buffer.write(piece.encode())
        sys.stdout.buffer.flush()
