"""`mamba-seq push`: a model to the Hugging Face hub."""

import click

from mamba_seq.pipelines.cli._shell import Command


@click.command(cls=Command)
@click.argument("model", metavar="MODEL")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make it a model that only its owner sees.")
@click.option("--license", "licence", metavar="ID", help="Licence for the card, as apache-2.0. Default: the card's.")
@click.option("--message", metavar="TEXT", help="Message of the commit.")
def push(model: str, name: str, private: bool, licence: str | None, message: str | None) -> None:
    """Publish MODEL on the Hugging Face hub as OWNER/NAME, in one commit.

    MODEL is a zoo name, the folder of a saved model or a hub id. Its card gets the metadata that the hub reads, and is
    written where there is none. The token comes from HF_TOKEN, or from 'hf auth login'. Afterwards every -m takes
    hub:OWNER/NAME.
    """
    from mamba_seq.pipelines.push import push as run

    click.echo(run(model, name, private=private, licence=licence, message=message))
