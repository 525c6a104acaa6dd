"""`mamba-seq evaluate`: accuracy on genomes of known class, metrics of labelled sequences, or scores of sound."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mamba_seq.pipelines.cli._data_options import data_config, data_options
from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._options import drawn_windows, model_option, reading_options, window_length
from mamba_seq.pipelines.cli._shell import Command, Settings

if TYPE_CHECKING:
    from mamba_seq.pipelines.evaluate_genomes import LengthResult, UnknownResult


@click.command(cls=Command)
@click.argument("data", metavar="DATA")
@model_option
@click.option("-o", "--output", metavar="FILE", default="-", help="Table to write. Default: -, standard output.")
@click.option("--format", "format_", type=click.Choice(["tsv", "json"]), default="tsv", show_default=True)
@drawn_windows(100, "test")
@click.option(
    "--records", is_flag=True, help="Take every record of a folder's files as an example, not windows of genomes."
)
@click.option("--only", metavar="SPLIT", help="Of labelled sequences that name splits, measure this one, such as test.")
@click.option(
    "--novel",
    metavar="RATE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Count what classify --novel RATE would call novel. Default: 0.05 with --unknown.",
)
@click.option(
    "--unknown", metavar="FOLDER", help="Like DATA, genomes of none of the model's classes, to be called novel."
)
@click.option("--real", metavar="FOLDER", help="DATA is generated speech: compare it with these recordings.")
@click.option("--json", "json_file", metavar="FILE", help="Of sound: also write all that was measured as JSON.")
@reading_options
@data_options
@click.pass_obj
def evaluate(
    settings: Settings,
    data: str,
    model: str,
    output: str,
    format_: str,
    lengths: tuple[int, ...] | None,
    per_class: int,
    splits: str | None,
    novel: float | None,
    unknown: str | None,
    strand: str | None,
    context: int | None,
    stride: int | None,
    max_windows: int | None,
    batch_tokens: int | None,
    records: bool,
    only: str | None,
    real: str | None,
    json_file: str | None,
    **options: Any,
) -> None:
    """Measure how good MODEL is on DATA: genomes of known class, labelled sequences, or sound.

    DATA may be a folder with a folder of genomes (FASTA) for each class. Random windows are read as classify would
    read them. Every length gets a row for all classes and one for each, with 95 % Wilson intervals that take no more
    windows as independent than fit into the data side by side, and the expected calibration error of the probabilities.
    Classes without a window of a length, or with N in all of them, are left out there, with a warning.

    A file, or a folder with --records, is labelled sequences in any form that finetune takes: the metrics of the
    model's task, with bootstrapped 95 % intervals.

    A folder of sound is generated speech, if MODEL hears words (by default digits-classifier.mel): Frechet distance
    to --real recordings, Inception Scores, AM score, and how often the label that clips.tsv or a clip's folder names
    is heard. Or it is recordings, if MODEL makes waveforms: bits per sample by split (of --splits, or the collection's
    own; --only one of them), beside the histogram of levels.
    """
    from mamba_seq.pipelines.cli._evaluate_sound import evaluate_sound, is_sound

    asked = _said("model")
    if is_sound(data, model if asked else None, real, records):
        sound = {"splits": splits, "only": only, "real": real, "json_file": json_file}
        evaluate_sound(settings, data, model if asked else None, output, format_, **sound)
        return
    if json_file is not None:
        raise click.UsageError("--json is for sound; use --format json.")
    if records or only or not Path(data).is_dir() or any(value not in (None, ()) for value in options.values()):
        _evaluate_records(settings, data, model, output, format_, strand, batch_tokens, only, options)
        return
    from mamba_seq.data_prep.genomes import Genomes
    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.evaluate import Reading
    from mamba_seq.pipelines.evaluate_genomes import evaluate_genomes, evaluate_unknown, read_genomes
    from mamba_seq.pipelines.evaluation_table import to_json, to_tsv
    from mamba_seq.pipelines.output import check_output, open_output
    from mamba_seq.pipelines.runtime import start

    check_output(output, (splits,) if splits else ())
    device = start(settings.device, settings.threads, settings.seed)
    genomes, intervals, chosen = read_genomes(data, splits, lengths)
    strangers = None if unknown is None else Genomes(unknown)
    novel = 0.05 if novel is None and unknown is not None else novel
    loaded = models.load_model(model, device)
    calibration = models.calibration_of(model, loaded.config, novel)
    labels = loaded.config.labels
    reading = Reading(
        context=window_length(context, model, loaded.config.context),
        stride=stride,
        max_windows=models.max_windows_of(loaded.config, max_windows),
        both_strands=models.strands_of(model, loaded.config, strand) == "both",
        batch_tokens=batch_tokens,
    )
    seed = settings.seed or 0
    results: list[LengthResult] = []
    missed: list[UnknownResult] = []
    with progress("evaluating", verbosity=settings.verbosity) as show:
        for length in chosen:
            show(f"windows of {length:,} bases")
            how: dict[str, Any] = {"per_class": per_class, "seed": seed, "device": device}
            how |= {"calibration": calibration, "novel": novel}
            results += evaluate_genomes(loaded, labels, genomes, [length], reading, intervals, **how)
            if strangers is not None:
                missed += evaluate_unknown(loaded, labels, strangers, [length], reading, **how)
    about: dict[str, Any] = {"model": model, "data": data, "splits": splits, "seed": seed, "context": reading.context}
    about |= {"strand": "both" if reading.both_strands else "forward", "max_windows": reading.max_windows}
    about["novel"] = novel
    text = to_tsv(results, labels, missed) if format_ == "tsv" else to_json(results, labels, about, missed)
    with open_output(output) as sink:
        sink.write(text.encode())


def _evaluate_records(
    settings: Settings,
    data: str,
    model: str,
    output: str,
    format_: str,
    strand: str | None,
    batch_tokens: int | None,
    only: str | None,
    options: dict[str, Any],
) -> None:
    """Write metric, value, low, high and the number of examples."""
    import json

    from mamba_seq.data_prep.labelled import split_named
    from mamba_seq.loading import from_pretrained
    from mamba_seq.pipelines.finetune.predict import Predicted
    from mamba_seq.pipelines.finetune.scores import to_json
    from mamba_seq.pipelines.models import locate_model
    from mamba_seq.pipelines.output import check_output, open_output
    from mamba_seq.pipelines.runtime import start

    check_output(output, (data,))
    split = split_named(only, "--only") if only else None
    config = data_config(options)
    device = start(settings.device, settings.threads, settings.seed)
    loaded = from_pretrained(locate_model(model), device)
    found = Predicted(loaded, data, config, device, batch_tokens or 1 << 16, strand)
    table, examples = found.measured(split, settings.seed or 0)
    keys = ("value", "low", "high")
    if format_ == "json":
        about = {"model": model, "data": data, "split": split, "task": loaded.config.task, "examples": examples}
        text = json.dumps({**about, "metrics": to_json(table)}, indent=1) + "\n"
    else:
        lines = [
            "\t".join([name, *("NA" if each[key] is None else f"{each[key]:.4f}" for key in keys), str(examples)])
            for name, each in to_json(table).items()
        ]
        text = "\n".join(["metric\tvalue\tlow\thigh\texamples", *lines]) + "\n"
    with open_output(output) as sink:
        sink.write(text.encode())


def _said(option: str) -> bool:
    """Whether an option was given on the command line."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"
