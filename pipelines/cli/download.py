"""`mamba-seq download`: genomes from NCBI, ready for training."""

from pathlib import Path

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.argument("name", metavar="NAME")
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to put a folder of FASTA files for each class; made where it is missing.",
)
@click.option(
    "--base-url",
    metavar="URL",
    envvar="MAMBA_SEQ_NCBI_URL",
    help="A mirror of https://ftp.ncbi.nlm.nih.gov/genomes/all, the default (or set MAMBA_SEQ_NCBI_URL).",
)
@click.pass_obj
def download(settings: Settings, name: str, output: Path, base_url: str | None) -> None:
    """Fetch the genomes of the download list NAME from NCBI, in the layout that 'train' takes.

    NAME is a list that comes with the package, such as great-apes, or a file of your own with lines
    class<TAB>accession, such as GCF_000146045.2; with a header line and the columns 'test' and 'validation' it names
    chromosomes to hold out, and FOLDER/splits.tsv says which records they are (--data.splits_file of 'train').

    Checksums are verified. What was interrupted goes on where it stopped with the same command; what is there and
    right is not fetched again.
    """
    from mamba_seq.pipelines.download import BASE_URL, read_list
    from mamba_seq.pipelines.download import download as fetch_all

    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise click.BadParameter(
            f"{base_url!r} is no address; http:// or https:// was expected.", param_hint="--base-url"
        )
    assemblies = read_list(name)
    with progress("downloading", verbosity=settings.verbosity) as show:
        fetch_all(assemblies, output, base_url or BASE_URL, show)
    click.echo(output)
