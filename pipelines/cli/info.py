"""`mamba-seq info`: what a bug report needs to say about a machine and an installation."""

import click

from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.option("--no-compile", is_flag=True, help="Do not run the scan once to see whether its kernels are compiled.")
@click.pass_obj
def info(settings: Settings, no_compile: bool) -> None:
    """Show versions, devices, threads, the scan that would run, and what its first call costs.

    The scan is run once, forward and backward: its kernels are compiled, which takes seconds, or come from a cache on
    disk, and are there for the next command.
    """
    from mamba_seq.pipelines import first_call
    from mamba_seq.pipelines.info import describe
    from mamba_seq.pipelines.runtime import start, use

    device = start(settings.device, settings.threads, settings.seed)
    for name, value in describe(device):
        click.echo(f"{name:<16} {value}")
    if not no_compile:
        with use(device):
            for name, value in first_call.report(device):
                click.echo(f"{name:<16} {value}")
