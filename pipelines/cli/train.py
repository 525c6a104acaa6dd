"""`mamba-seq train`: hands a recipe and its overrides to `mamba_seq.pipelines.train`."""

import click

from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", metavar="[OVERRIDE]...", nargs=-1, type=click.UNPROCESSED)
@click.option("-o", "--output", metavar="RUN", required=True, help="Folder of the run: checkpoints, log, model.")
@click.option("--force", is_flag=True, help="Throw away what an earlier run left in the folder.")
@click.option(
    "--max-minutes",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so long, with a checkpoint; the same command goes on.",
)
@click.option(
    "--checkpoint-mib",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Split checkpoints into files of at most N MiB, to carry them to another machine.",
)
@click.pass_obj
def train(
    settings: Settings,
    recipe: str,
    overrides: tuple[str, ...],
    output: str,
    force: bool,
    max_minutes: float | None,
    checkpoint_mib: float | None,
) -> None:
    """Train the model of RECIPE, the name of a zoo recipe or a YAML file; a run that was stopped goes on.

    Fields of the recipe are set by dotted options in snake_case, such as --optim.lr=0.001, or by --config FILE;
    --print_config shows them all.
    """
    import sys

    from mamba_seq.pipelines.errors import DeviceError
    from mamba_seq.pipelines.runtime import start
    from mamba_seq.pipelines.train.run import main

    device = start(settings.device, settings.threads)
    if device != start("auto"):
        raise DeviceError(f"train takes the first GPU it sees, not {device}; set CUDA_VISIBLE_DEVICES to choose")
    seed = [] if settings.seed is None else [f"--seed={settings.seed}"]
    quiet = settings.verbosity < 0 or sys.stderr is None or not sys.stderr.isatty()
    folder = main(
        recipe,
        output,
        [*overrides, *seed],
        force=force,
        max_minutes=max_minutes,
        progress=not quiet,
        checkpoint_mib=checkpoint_mib,
    )
    click.echo(folder)
