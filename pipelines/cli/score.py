"""`mamba-seq score`: FASTA in, a likelihood track out."""

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "-m", "--model", metavar="MODEL", required=True, help="A zoo name, the folder of a saved model, or a hub id."
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default="-",
    help="Track to write: .bw is a bigWig, .tsv a table, else bedGraph; .gz compresses. Default: -, standard output.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["bedgraph", "bigwig", "tsv"]),
    help="A value a base, or, with tsv, a row a record. Default: by the name of the output.",
)
@click.option(
    "--strand",
    type=click.Choice(["both", "forward"]),
    default="forward",
    show_default=True,
    help="Average over both strands, or read the given one.",
)
@click.option(
    "--context",
    metavar="N",
    type=click.IntRange(min=1),
    help="Start the model anew every N bases. Default: it reads every record from end to end.",
)
@click.option(
    "--batch-tokens",
    metavar="N",
    type=click.IntRange(min=1),
    help="Bases that go through the model at once; less takes less memory. Default: 32,768, on GPUs 262,144.",
)
@click.pass_obj
def score(
    settings: Settings,
    files: tuple[str, ...],
    model: str,
    output: str,
    format_: str | None,
    strand: str,
    context: int | None,
    batch_tokens: int | None,
) -> None:
    """Say how probable a language model finds each base of FASTA, FASTQ or GenBank files.

    Values are log2 of the probability of a base given those before it: 0 is certain, -2 a guess among four. N has
    none. The mean over all, in bits per base, goes to standard error.
    """
    import logging

    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.likelihood import LikelihoodScorer
    from mamba_seq.pipelines.runtime import start
    from mamba_seq.pipelines.score import PackedInputs, Total
    from mamba_seq.pipelines.score import score as score_records
    from mamba_seq.pipelines.tracks import check_track, format_of, write_track

    if files.count("-") > 1:
        raise click.UsageError("standard input, '-', can be read once only.")
    form = format_ or format_of(output)
    check_track(output, form, files)  # type: ignore[arg-type]
    device = start(settings.device, settings.threads, settings.seed)
    scorer = LikelihoodScorer(models.load_language_model(model, device), device, batch_tokens)
    totals: list[Total] = []
    with progress("scoring", verbosity=settings.verbosity) as show, PackedInputs(files) as inputs:

        def report(total: Total) -> None:
            show(f"{total.bases:,} of {sum(inputs.lengths):,} bases")
            totals[:] = [total]

        pieces = score_records(scorer, inputs, context, strand == "both", report)
        write_track(output, form, inputs.names, inputs.lengths, pieces)  # type: ignore[arg-type]
    logging.getLogger("mamba_seq.pipelines").info("%s", totals[0])
