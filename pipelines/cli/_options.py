"""Options that several commands share, so that they have one name, one default and one text."""

from collections.abc import Callable
from typing import Any

import click

DEFAULT_MODEL = "mamba-dna.bacteria11"
_AT_LEAST_1 = click.IntRange(min=1)


def model_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add `-m`, the model."""
    return click.option(
        "-m",
        "--model",
        metavar="MODEL",
        default=DEFAULT_MODEL,
        show_default=True,
        help="A zoo name (see 'mamba-seq zoo list'), the folder of a saved model, or a Hugging Face hub id "
        "(hub:owner/name fetches it).",
    )(function)


def strand_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--strand`, None unless it is given: `mamba_seq.pipelines.models.strands_of` says what that means."""
    return click.option(
        "--strand",
        type=click.Choice(["both", "forward"]),
        help="Average over both strands, or read the given one. Default: as the model was trained, else both.",
    )(function)


def reading_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what decides how a sequence is read: strand, context, stride, max_windows and batch_tokens."""
    options: list[Any] = [
        strand_option,
        click.option("--context", metavar="N", type=_AT_LEAST_1, help="Bases of a window. Default: the model's."),
        click.option("--stride", metavar="N", type=_AT_LEAST_1, help="From window to window. Default: the context."),
        click.option(
            "--max-windows",
            metavar="N",
            type=click.IntRange(min=0),
            help="Most windows of a record, evenly spaced; 0 takes all. Default: the model's, else 32.",
        ),
        click.option(
            "--batch-tokens",
            metavar="N",
            type=_AT_LEAST_1,
            help="Bases that go through the model at once; less takes less memory. Default: 16,384, on GPUs up to "
            "1,048,576, as their memory allows.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def drawn_windows(per_class: int, regions: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add which windows are drawn from genomes: lengths, per_class with its default, and splits, of those regions."""
    options: list[Any] = [
        click.option(
            "--lengths",
            metavar="N,N,...",
            type=Lengths(),
            help="Bases of the windows. Default: those of 1000, 10000 and 100000 that every class has.",
        ),
        click.option(
            "--per-class",
            metavar="N",
            type=_AT_LEAST_1,
            default=per_class,
            show_default=True,
            help="Windows of each class, drawn with --seed (default 0).",
        ),
        click.option("--splits", metavar="FILE", help=f"A run's splits.tsv: draw from its {regions} regions only."),
    ]

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def window_length(asked: int | None, model: str, of_model: int | None) -> int:
    """Return the context: what was asked for, or what the model was trained with."""
    context = asked or of_model
    if context is None:
        raise click.UsageError(f"model {model} names no context; give one with --context.")
    return context


class Lengths(click.ParamType):
    """Whole numbers with commas between them."""

    name = "lengths"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        lengths = str(value).split(",")
        if not all(length.strip().isdecimal() and int(length) > 0 for length in lengths):
            self.fail(
                f"{value!r}: numbers of bases with commas between them were expected, such as 1000,10000.", param, ctx
            )
        return tuple(map(int, lengths))
