"""`mamba-seq generate`: a model in, clips of sound or text out."""

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    required=True,
    help="A zoo name, a folder (with --text of transformers too), or a hub id (hub:owner/name fetches it).",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="A folder for clips and their table; a file such as clip.wav; or -, raw 16-bit samples to standard output. "
    "With --text a file, by default standard output, as it is drawn.",
)
@click.option("--text", metavar="PROMPT", help="Write text, and go on from this; -, from standard input.")
@click.option(
    "-n", "--clips", metavar="N", type=click.IntRange(min=1), default=1, show_default=True,
    help="How many clips; with --label, how many of each class.",
)  # fmt: skip
@click.option("--seconds", metavar="S", type=float, help="Length of a clip. Default: of those it was trained on.")
@click.option(
    "--label",
    "labels",
    metavar="NAME",
    multiple=True,
    help="Class of the clips, of a model that knows some; several times for several, or all. Default: all in turn.",
)
@click.option("--prompt", metavar="FILE", help="A sound file that every clip goes on from.")
@click.option(
    "--temperature", metavar="T", type=click.FloatRange(min=0), default=1.0, show_default=True,
    help="Below 1 is more likely, above more varied; 0 takes the most probable value each time.",
)  # fmt: skip
@click.option("--top-k", metavar="K", type=click.IntRange(min=1), help="Draw among the K most probable values.")
@click.option(
    "--top-p", metavar="P", type=click.FloatRange(0, 1, min_open=True),
    help="Draw among the most probable values that sum to P.",
)  # fmt: skip
@click.option(
    "--guidance", metavar="W", type=click.FloatRange(min=0),
    help="How much more of its class a clip has than by itself: 1 is none. Default: what the model says, or 1.",
)  # fmt: skip
@click.option(
    "--format",
    "format_",
    type=click.Choice(["wav", "flac", "ogg", "opus", "mp3"]),
    help="Of the files. Default: by the suffix of OUT, or wav.",
)
@click.option("--gallery", metavar="FILE", help="Also write a page of all clips, to hear and see: one HTML file.")
@click.option(
    "--max-tokens", metavar="N", type=click.IntRange(min=1), default=200, show_default=True,
    help="With --text: most tokens to draw.",
)  # fmt: skip
@click.option("--stop", metavar="TEXT", multiple=True, help="With --text: end before this; as often as you like.")
@click.option("--echo", is_flag=True, help="With --text: write the prompt in front.")
@click.pass_obj
def generate(
    settings: Settings,
    model: str,
    output: str | None,
    text: str | None,
    clips: int,
    seconds: float | None,
    labels: tuple[str, ...],
    prompt: str | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: float | None,
    format_: str | None,
    gallery: str | None,
    max_tokens: int,
    stop: tuple[str, ...],
    echo: bool,
) -> None:
    """Make clips of sound with a waveform model, sample by sample, or go on from a --text with a language model.

    A clip depends on --seed and its index alone (and on what else is asked for), not on how many are made with it.
    Without --seed, one is chosen and said.

    For text, the model's folder has a tokenizer.json, as those of transformers have (state-spaces/mamba-130m-hf and its
    kin; that needs 'pip install mamba-seq[text]'), or its config names an alphabet, as models of DNA do.
    """
    refuse_options_of_the_other(text is not None)
    if text is not None:
        from mamba_seq.pipelines.cli._generate_text import write_text

        write_text(settings, text, model, output or "-", max_tokens, temperature, top_k, top_p, stop, echo)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output': where clips go; text asks for --text instead.")
    import secrets

    from mamba_seq.counted import Drawing, check_drawing
    from mamba_seq.pipelines.audio_request import AudioRequest
    from mamba_seq.pipelines.generate import generate as generate_with
    from mamba_seq.pipelines.runtime import start, use

    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    drawing = Drawing(temperature, top_k, top_p, seed, guidance)
    try:
        check_drawing(drawing)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    request = AudioRequest(
        output=output,
        clips=clips,
        seconds=seconds,
        labels=labels,
        prompt=prompt,
        drawing=drawing,
        format=format_,
        gallery=gallery,
    )
    device = start(settings.device, settings.threads, seed)
    with use(device), progress("generating", verbosity=settings.verbosity) as show:
        generate_with(model, device, request, show)


OF_SOUND = ("clips", "seconds", "labels", "prompt", "guidance", "format_", "gallery")
OF_TEXT = ("max_tokens", "stop", "echo")


def refuse_options_of_the_other(is_text: bool) -> None:
    """Raise UsageError for an option that has no meaning for what is asked for."""
    context = click.get_current_context()
    options = {p.name: p.opts[-1] for p in context.command.params}
    for name in OF_SOUND if is_text else OF_TEXT:
        if context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT:
            goes = "does not go with --text" if is_text else "goes with --text, which is missing"
            raise click.UsageError(f"{options[name]} {goes}.")
