"""`mamba-seq info`: what a bug report needs to say about a machine and an installation."""

import click

from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.pass_obj
def info(settings: Settings) -> None:
    """Show versions, devices, threads and the scan that would run."""
    from mamba_seq.pipelines.info import describe
    from mamba_seq.pipelines.runtime import start

    device = start(settings.device, settings.threads, settings.seed)
    for name, value in describe(device):
        click.echo(f"{name:<16} {value}")
