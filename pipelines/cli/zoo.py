"""`mamba-seq zoo`: the models that come with the package."""

from pathlib import Path

import click

from mamba_seq.pipelines.cli._shell import LazyGroup


@click.group(cls=LazyGroup)
def zoo() -> None:
    """List, describe and copy the models that come with the package."""


@zoo.command("list")
def list_models() -> None:
    """List the models: name, task, number of labels (classes, targets or symbols), context, and size on disk."""
    from mamba_seq import models_zoo
    from mamba_seq.config import ModelConfig

    click.echo("name\ttask\tlabels\tcontext\tmegabytes")
    for name in models_zoo.names():
        folder = models_zoo.path(name)
        config = ModelConfig.from_json_file(folder / "config.json")
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        labels = len(config.labels) or "NA"
        click.echo(f"{name}\t{config.task}\t{labels}\t{config.context or 'NA'}\t{size:.1f}")


@zoo.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The record of its training as JSON, not the card.")
def show(name: str, as_json: bool) -> None:
    """Show the card of a model: data, licence, recipe, results."""
    import json

    folder = _folder(name)
    card = folder / "README.md"
    if as_json or not card.is_file():
        from mamba_seq import models_zoo

        click.echo(json.dumps(models_zoo.describe(name), indent=2))
    else:
        click.echo(card.read_text(encoding="utf-8").rstrip("\n"))


@zoo.command()
@click.argument("name")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def export(name: str, folder: Path) -> None:
    """Copy a model into the folder DIR, which must be empty or new, to share or fine-tune it."""
    import shutil

    from mamba_seq.pipelines.output import new_folder

    source = _folder(name)
    with new_folder(folder) as copy:
        shutil.copytree(source, copy)
    click.echo(folder)


def _folder(name: str) -> Path:
    """Return the folder of a zoo model, or say which one was meant."""
    from mamba_seq import models_zoo
    from mamba_seq.errors import UnknownModelError
    from mamba_seq.pipelines.models import suggest_model

    known = models_zoo.names()
    if name not in known:
        raise UnknownModelError(f"no model {name!r}; {suggest_model(name, known)}")
    return models_zoo.path(name)
