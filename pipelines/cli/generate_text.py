"""`mamba-seq generate-text`: a prompt in, its continuation out."""

import click

from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command("generate-text", cls=Command)
@click.option("--text", metavar="PROMPT", required=True, help="What to go on from; -, standard input.")
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    required=True,
    help="A language model: a zoo name, a folder (of transformers too), or a hub id (hub:owner/name fetches it).",
)
@click.option("-o", "--output", metavar="FILE", default="-", help="Default: -, standard output, as it is drawn.")
@click.option(
    "--max-tokens", metavar="N", type=click.IntRange(min=1), default=200, show_default=True, help="Most tokens to draw."
)
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Below 1 the probable becomes more so; 0 takes the most probable token.",
)
@click.option("--top-k", metavar="N", type=click.IntRange(min=1), help="Draw among the N most probable tokens.")
@click.option(
    "--top-p",
    metavar="P",
    type=click.FloatRange(0, 1, min_open=True),
    help="Draw among the fewest most probable tokens whose probabilities sum to P.",
)
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; as often as you like.")
@click.option("--echo", is_flag=True, help="Write the prompt in front.")
@click.pass_obj
def generate_text(
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
    """Go on from a text with a Mamba language model.

    The model's folder has a tokenizer.json, as those of transformers have (state-spaces/mamba-130m-hf and its kin; that
    needs 'pip install mamba-seq[text]'), or its config names an alphabet, as models of DNA do. --seed draws the same
    text again.
    """
    import itertools
    import sys

    from mamba_seq.pipelines.generate_text import generate_text as run
    from mamba_seq.pipelines.generate_text import load_text_model, read_prompt
    from mamba_seq.pipelines.output import STDOUT, check_output, open_output
    from mamba_seq.pipelines.runtime import start

    if not all(stop):
        raise click.UsageError("--stop is empty; a text of at least one character was expected.")
    check_output(output)
    prompt = read_prompt() if text == "-" else text
    device = start(settings.device, settings.threads, settings.seed)
    pieces = run(
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
