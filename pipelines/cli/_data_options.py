"""Options that say how labelled data are to be read, shared by finetune, predict and evaluate."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mamba_seq.data_prep.labelled import LabelledConfig

_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("--sequence", {"metavar": "COLUMN", "help": "Column of the sequences. Default: sequence, seq or text."}),
    ("--label", {"metavar": "COLUMN", "multiple": True, "help": "Column of the labels; several make several targets."}),
    ("--id", {"metavar": "COLUMN", "help": "Column of the names. Default: id or name."}),
    ("--split", {"metavar": "COLUMN", "help": "Column of the splits. Default: split."}),
    ("--group", {"metavar": "COLUMN", "help": "Column of what stays in one split together. Default: group."}),
    ("--values", {"metavar": "COLUMN,...", "help": "Columns of numbers: a row is a series, or a position of one."}),
    ("--series", {"metavar": "COLUMN", "help": "Column that says which series a row is a position of."}),
    ("--labels-file", {"metavar": "FILE", "help": "Table of id and label for sequences that come without."}),
    ("--label-pattern", {"metavar": "REGEX", "help": "Where a FASTA header holds the label, in a group ( )."}),
    ("--reference", {"metavar": "FASTA", "help": "What the intervals of a BED file lie on."}),
    ("--flank", {"metavar": "N", "type": click.IntRange(min=0), "help": "Bases added on either side of an interval."}),
    ("--feature", {"metavar": "KIND", "help": "Kind of GenBank feature, such as CDS."}),
    ("--qualifier", {"metavar": "NAME", "help": "Qualifier of a GenBank feature that is its label."}),
    ("--sample-rate", {"metavar": "HZ", "type": click.IntRange(min=1), "help": "Rate sound is brought to."}),
]


def data_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the command gets them as keyword arguments, which `data_fields` takes."""
    for name, settings in reversed(_OPTIONS):
        function = click.option(name, name.removeprefix("--").replace("-", "_") + "_", **settings)(function)
    return function


def data_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `LabelledConfig` that were given."""
    fields = {name.removesuffix("_"): value for name, value in options.items() if value not in (None, ())}
    if "label" in fields:
        fields["label"] = list(fields["label"])
    if "values" in fields:
        fields["values"] = [each.strip() for each in fields["values"].split(",")]
    return fields


def data_config(options: dict[str, Any]) -> "LabelledConfig":
    """Return the config that the options make."""
    from mamba_seq.data_prep.labelled import LabelledConfig

    try:
        return LabelledConfig(**data_fields(options))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
