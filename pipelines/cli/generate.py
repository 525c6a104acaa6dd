"""`mamba-seq generate`: a model in, clips of sound out."""

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.option(
    "-m", "--model", metavar="MODEL", required=True, help="A zoo name, the folder of a saved model, or a hub id."
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    required=True,
    help="A folder for clips and their table; a file such as clip.wav; or -, raw 16-bit samples to standard output.",
)
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
    "--temperature", metavar="T", type=float, default=1.0, show_default=True,
    help="Below 1 is more likely, above more varied; 0 takes the most probable value each time.",
)  # fmt: skip
@click.option("--top-k", metavar="K", type=click.IntRange(min=1), help="Draw among the K most probable values.")
@click.option("--top-p", metavar="P", type=float, help="Draw among the most probable values that sum to P.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["wav", "flac", "ogg", "opus", "mp3"]),
    help="Of the files. Default: by the suffix of OUT, or wav.",
)
@click.option("--gallery", metavar="FILE", help="Also write a page of all clips, to hear and see: one HTML file.")
@click.pass_obj
def generate(
    settings: Settings,
    model: str,
    output: str,
    clips: int,
    seconds: float | None,
    labels: tuple[str, ...],
    prompt: str | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    format_: str | None,
    gallery: str | None,
) -> None:
    """Make clips of sound with a waveform model, sample by sample.

    A clip depends on --seed and its index alone (and on what else is asked for), not on how many are made with it.
    Without --seed, one is chosen and said.
    """
    import secrets

    from mamba_seq.counted import Drawing, check_drawing
    from mamba_seq.pipelines.generate import generate as generate_with
    from mamba_seq.pipelines.generate_audio import AudioRequest
    from mamba_seq.pipelines.runtime import start, use

    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    drawing = Drawing(temperature, top_k, top_p, seed)
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
