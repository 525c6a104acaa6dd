"""`mamba-seq train`: hands a recipe and its overrides to `mamba_seq.pipelines.train`."""

import click

from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.argument("recipe", metavar="RECIPE")
@click.option("-o", "--output", metavar="RUN", required=True, help="Folder of the run: checkpoints, log, model.")
@click.argument("overrides", metavar="[OVERRIDE]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def train(settings: Settings, recipe: str, output: str, overrides: tuple[str, ...]) -> None:
    """Train a model from a recipe: a name from the zoo, or a YAML file.

    What is left over goes to the recipe: --config FILE, dotted overrides such as --optimizer.lr=0.001 (in snake_case), and
    --print_config.
    """
    from mamba_seq.pipelines import train as training
    from mamba_seq.pipelines.runtime import start

    start(settings.device, settings.threads, settings.seed)
    training.main(recipe, output, list(overrides))
