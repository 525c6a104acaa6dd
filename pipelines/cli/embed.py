"""`mamba-seq embed`: FASTA in, vectors out."""

from typing import TYPE_CHECKING

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._options import model_option, strand_option
from mamba_seq.pipelines.cli._shell import Command, Settings

if TYPE_CHECKING:
    from mamba_seq.pipelines.embed import Summary

_AT_LEAST_1 = click.IntRange(min=1)


@click.command(cls=Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@model_option
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    help="Vectors to write: .parquet, a table, or .npy, an array, beside it a .tsv of what its rows are.",
)
@click.option("--window", metavar="N", type=_AT_LEAST_1, help="A vector every window of N bases. Default: a record.")
@click.option("--stride", metavar="N", type=_AT_LEAST_1, help="From window to window. Default: the window.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "last", "max"]),
    help="How positions become one vector. Default: as in the model; a language model's mean.",
)
@click.option("--layer", metavar="N", type=_AT_LEAST_1, help="Take the output of the Nth block. Default: the last.")
@strand_option
@click.option(
    "--batch-tokens",
    metavar="N",
    type=_AT_LEAST_1,
    help="Bases that go through the model at once; less takes less memory. Default: 16,384, on GPUs 262,144.",
)
@click.pass_obj
def embed(
    settings: Settings,
    files: tuple[str, ...],
    model: str,
    output: str,
    window: int | None,
    stride: int | None,
    pooling: str | None,
    layer: int | None,
    strand: str | None,
    batch_tokens: int | None,
) -> None:
    """Write what a model of DNA makes of records, or of windows of them, as vectors (embeddings).

    Takes the files that classify takes, and any saved model that reads DNA: classifiers, language models and others.
    A record is read from end to end, in constant memory. What has no base (empty, or nothing but N) gets NaN.
    """
    if files.count("-") > 1:
        raise click.UsageError("standard input, '-', can be read once only.")
    if stride is not None and window is None:
        raise click.UsageError("--stride is from window to window: give --window too.")

    import logging

    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.embed import Embedder
    from mamba_seq.pipelines.embedding_files import targets_of, write_embeddings
    from mamba_seq.pipelines.inputs import check_inputs
    from mamba_seq.pipelines.runtime import start
    from mamba_seq.pipelines.vectors import VectorReader, keep_blocks

    check_inputs(files)
    targets = targets_of(output, files)
    device = start(settings.device, settings.threads, settings.seed)
    loaded = models.load_dna_model(model, device)
    if layer is not None:
        keep_blocks(loaded, layer, model)
    strands = models.strands_of(model, loaded.config, strand)
    reader = VectorReader(loaded, device, pooling, strands == "both", batch_tokens)
    about = {"model": model, "pooling": reader.pooling, "layer": layer, "strand": strands}
    about |= {"window": window, "stride": stride or window}
    with progress("embedding", verbosity=settings.verbosity) as show:

        def tell(summary: "Summary") -> None:
            show(f"{summary.records:,} records, {summary.vectors:,} vectors", summary.done)

        embedder = Embedder(reader, window, stride, loaded.config.positions, tell)
        write_embeddings(targets, embedder.rows(files), reader.width, about)
    logging.getLogger("mamba_seq.pipelines").info("%s", embedder.summary)
