"""`mamba-seq finetune`: labelled sequences in, a saved model out."""

from typing import Any

import click

from mamba_seq.pipelines.cli._data_options import data_fields, data_options
from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("data", metavar="DATA")
@click.argument("overrides", metavar="[OVERRIDE]...", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "--model", metavar="MODEL", help="The model to fine-tune: a zoo name, a folder, or a hub id.")
@click.option("--from-scratch", metavar="RECIPE", help="Train the model of a zoo recipe or a YAML file instead.")
@click.option("-o", "--output", metavar="RUN", required=True, help="Folder of the run: checkpoints, log, model.")
@click.option("--task", metavar="TASK", help="What is learnt, such as sequence-regression. Default: as the labels say.")
@click.option("--tune", type=click.Choice(["full", "head", "lora"]), help="Which weights are trained. Default: full.")
@click.option("--force", is_flag=True, help="Throw away what an earlier run left in the folder.")
@click.option(
    "--max-minutes",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so long, with a checkpoint; the same command goes on.",
)
@data_options
@click.pass_obj
def finetune(
    settings: Settings,
    data: str,
    overrides: tuple[str, ...],
    model: str | None,
    from_scratch: str | None,
    output: str,
    task: str | None,
    tune: str | None,
    force: bool,
    max_minutes: float | None,
    **options: Any,
) -> None:
    """Train a model on labelled sequences: a table, a folder a class, FASTA, BED, GenBank, sound or series.

    What the data are is seen from themselves and told first. Splits are made where the data name none; the best
    weights on validation are kept and tested once. A run that was stopped goes on with the same command. Fields of
    the recipe are set by dotted options in snake_case, such as --optim.lr=0.001 or --epochs=50; --print_config
    shows them all.
    """
    import json
    import sys

    from mamba_seq.pipelines.errors import DeviceError
    from mamba_seq.pipelines.finetune.run import main
    from mamba_seq.pipelines.runtime import start

    if (model is None) == (from_scratch is None):
        raise click.UsageError("name one of -m MODEL, to fine-tune it, and --from-scratch RECIPE.")
    device = start(settings.device, settings.threads)
    if device != start("auto"):
        raise DeviceError(f"finetune takes the first GPU it sees, not {device}; set CUDA_VISIBLE_DEVICES to choose")
    given: dict[str, Any] = {"task": task, "tune": tune, "seed": settings.seed}
    fields = [f"--{name}={value}" for name, value in given.items() if value is not None]
    fields += [f"--data.{name}={_text(value, json.dumps)}" for name, value in data_fields(options).items()]
    quiet = settings.verbosity < 0 or sys.stderr is None or not sys.stderr.isatty()
    folder = main(
        data,
        output,
        model,
        from_scratch,
        [*fields, *overrides],
        force=force,
        max_minutes=max_minutes,
        progress=not quiet,
    )
    click.echo(folder)


def _text(value: Any, dumps: Any) -> str:
    return dumps(value) if isinstance(value, list) else str(value)
