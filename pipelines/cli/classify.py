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
@click.option("-o", "--output", metavar="FILE", default="-", help="Table to write. Default: -, standard output.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["tsv", "jsonl", "kraken"]),
    default="tsv",
    show_default=True,
    help="Of the table; kraken is Kraken 2's line a record.",
)
@click.option("--windows", metavar="FILE", help="Write a BED of windows: record, start, end, class, score.")
@click.option("--kreport", metavar="FILE", help="Write Kraken 2's report, the records of every taxon.")
@click.option("--report", metavar="FILE", help="Write one HTML page: composition, table, classes along sequences.")
@click.option("--multiqc", metavar="FILE", help="Write a summary for MultiQC; the name must end in _mqc.json.")
@click.option("--classified-out", metavar="FILE", help="Write the records that have a class, as they were read.")
@click.option("--unclassified-out", metavar="FILE", help="Write the other records, as they were read.")
@click.option(
    "--taxonomy",
    metavar="FILE",
    help="Table of taxonomy ids (label, taxid; rank, name, lineage) for kraken and --kreport. Default: the model's.",
)
@click.option(
    "--min-probability",
    metavar="P",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Call a record unclassified when its best class is less probable.",
)
@click.option(
    "--novel",
    metavar="RATE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Call a record novel, of none of the model's classes, when its best class is less probable than for all but "
    "RATE of known records (0.01, 0.02, 0.05, 0.1 or 0.2). Needs a calibrated model.",
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
    windows: str | None,
    kreport: str | None,
    report: str | None,
    multiqc: str | None,
    classified_out: str | None,
    unclassified_out: str | None,
    taxonomy: str | None,
    min_probability: float,
    novel: float | None,
    strand: str | None,
    context: int | None,
    stride: int | None,
    max_windows: int | None,
    batch_tokens: int | None,
    min_length: int,
    strict: bool,
) -> None:
    """Classify the sequences of FASTA, FASTQ or GenBank files.

    Files may be compressed (gzip, bgzip, bzip2, xz, zstd); "-" is standard input, also read when no FILE is given.
    Every record gets a row, in the order of the input; a file that cannot be read whole gives no output at all.
    Outputs whose names end in .gz, .bz2, .xz or .zst are compressed.
    """
    files = _inputs(files)
    if multiqc is not None and not multiqc.endswith("_mqc.json"):
        raise click.UsageError(f"--multiqc {multiqc}: MultiQC finds files whose names end in _mqc.json only.")

    import logging

    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.classify import Classifier, Options, megabases
    from mamba_seq.pipelines.inputs import check_inputs
    from mamba_seq.pipelines.output import check_outputs
    from mamba_seq.pipelines.outputs import Outputs, write_outputs
    from mamba_seq.pipelines.report import About
    from mamba_seq.pipelines.runtime import start

    log = logging.getLogger("mamba_seq.pipelines")
    outputs = Outputs(
        table=output,
        format=format_,
        windows=windows,
        kreport=kreport,
        report=report,
        multiqc=multiqc,
        classified=classified_out,
        unclassified=unclassified_out,
        taxonomy=taxonomy,
    )
    check_inputs(files)
    check_outputs(outputs.targets, files)
    device = start(settings.device, settings.threads, settings.seed)
    loaded = models.load_model(model, device)
    window = window_length(context, model, loaded.config.context)
    calibration = models.calibration_of(model, loaded.config, novel)
    options = Options(
        context=window,
        stride=stride or window,
        max_windows=models.max_windows_of(loaded.config, max_windows),
        reads_all=loaded.config.max_windows == 0,
        both_strands=models.strands_of(model, loaded.config, strand) == "both",
        min_length=min_length,
        min_probability=min_probability,
        novel=novel,
        strict=strict,
        batch_tokens=batch_tokens,
        calls=outputs.need_calls,
        originals=outputs.need_originals,
    )
    about = About(model, window, "both strands" if options.both_strands else "forward strand")
    writers = outputs.writers(files, model, loaded.config, about, min_probability)
    log.debug("model %s: %d classes, windows of %s, on %s", model, len(loaded.config.labels), megabases(window), device)

    with progress("classifying", verbosity=settings.verbosity) as show:

        def tell(summary: "Summary") -> None:
            read, seen = megabases(summary.letters), megabases(summary.bases_seen)
            show(f"{summary.records:,} records, {read} read, {seen} seen", summary.done)

        classifier = Classifier(loaded, loaded.config.labels, device, options, tell, calibration)
        write_outputs(classifier.rows(files), outputs.targets, writers)
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
