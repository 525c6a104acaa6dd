"""`mamba-seq convert`: language models of transformers and mamba_ssm, in and out."""

from pathlib import Path

import click

from mamba_seq.pipelines.cli._shell import Command


@click.command(cls=Command)
@click.argument("source", metavar="IN")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "kind",
    type=click.Choice(["mamba-seq", "transformers", "mamba-ssm"]),
    default="mamba-seq",
    show_default=True,
    help="Whose model DIR shall be.",
)
def convert(source: str, folder: Path, kind: str) -> None:
    """Convert the Mamba model IN into the folder DIR, which must be empty or new.

    IN is a zoo name, a folder or a Hugging Face hub id: a model of mamba-seq, of transformers (MambaForCausalLM) or of
    mamba_ssm. A pytorch_model.bin is read for its tensors alone; nothing in it is run. Weights keep the precision that
    they have.
    """
    from mamba_seq.pipelines.convert import convert as run

    click.echo(run(source, folder, kind))
