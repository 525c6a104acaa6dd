"""`mamba-seq evaluate`."""
import click
from mamba_seq.pipelines.cli._shell import Command
@click.command(cls=Command)
def evaluate() -> None:
    """Measure."""
