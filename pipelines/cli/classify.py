"""`mamba-seq classify`: FASTA in, a table out."""

import sys
from typing import TYPE_CHECKING

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._options import model_option, reading_options, window_length
from mamba_seq.pipelines.cli._shell import Command, Settings

if TYPE_CHECKING:
    from mamba_seq.pipelines.classify import Summary


@click.command(cls=Command)
@click.argument("files", metavar="[FILE]...", nargs=-1)
@model_option
@click.option("-o", "--output", metavar="FILE", default="-", help="Table to write; .gz compresses. Default: -, stdout.")
@click.option("--format", "format_", type=click.Choice(["tsv", "jsonl"]), default="tsv", show_default=True)
@click.option(
    "--min-probability",
    metavar="P",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Call a record unclassified when its best class is less probable.",
)
@reading_options
@click.option(
    "--min-length",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Call shorter records too_short.",
)
@click.option("--strict", is_flag=True, help="Refuse a file at its first record with letters that are no DNA code.")
@click.pass_obj
def classify(
    settings: Settings,
    files: tuple[str, ...],
    model: str,
    output: str,
    format_: str,
    min_probability: float,
    strand: str,
    context: int | None,
    stride: int | None,
    max_windows: int,
    batch_tokens: int | None,
    min_length: int,
    strict: bool,
) -> None:
    """Classify the sequences of FASTA, FASTQ or GenBank files.

    Files may be compressed (gzip, bgzip, bzip2, xz, zstd); "-" is standard input, also read when no FILE is given.
    Every record gets a row, in the order of the input; a file that cannot be read whole gives no output at all.
    """
    files = _inputs(files)

    import logging

    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.classify import Classifier, Options, check_inputs, megabases
    from mamba_seq.pipelines.output import check_output, open_output
    from mamba_seq.pipelines.rows import FORMATS
    from mamba_seq.pipelines.runtime import start

    log = logging.getLogger("mamba_seq.pipelines")
    check_inputs(files)
    check_output(output, files)
    device = start(settings.device, settings.threads, settings.seed)
    loaded = models.load_model(model, device)
    window = window_length(context, model, loaded.config.context)
    options = Options(
        context=window,
        stride=stride or window,
        max_windows=max_windows,
        both_strands=strand == "both",
        min_length=min_length,
        min_probability=min_probability,
        strict=strict,
        batch_tokens=batch_tokens,
    )
    log.debug("model %s: %d classes, windows of %s, on %s", model, len(loaded.config.labels), megabases(window), device)

    with progress("classifying", verbosity=settings.verbosity) as show:

        def report(summary: "Summary") -> None:
            show(
                f"{summary.records:,} records, {megabases(summary.letters)} read, {megabases(summary.bases_seen)} seen"
            )

        classifier = Classifier(loaded, loaded.config.labels, device, options, report)
        form = FORMATS[format_](loaded.config.labels)
        with open_output(output) as sink:
            sink.write(form.head())
            for row in classifier.rows(files):
                sink.write(form.row(row))
    log.info("%s", classifier.summary)


def _inputs(files: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files to read: standard input when none is named and it is not a terminal."""
    if files.count("-") > 1:
        raise click.UsageError("standard input, '-', can be read once only.")
    if files:
        return files
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("no FILE, and standard input is a terminal: name a file, or pipe sequences in.")
    return ("-",)
