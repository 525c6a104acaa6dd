"""`mamba-seq calibrate`: probabilities that mean what they say, and thresholds for novel records."""

from pathlib import Path

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._options import drawn_windows, model_option, reading_options, window_length
from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.argument("data", metavar="DATA")
@model_option
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the calibrated model, new or empty.",
)
@drawn_windows(200, "validation")
@reading_options
@click.pass_obj
def calibrate(
    settings: Settings,
    data: str,
    model: str,
    output: Path,
    lengths: tuple[int, ...] | None,
    per_class: int,
    splits: str | None,
    strand: str | None,
    context: int | None,
    stride: int | None,
    max_windows: int | None,
    batch_tokens: int | None,
) -> None:
    """Calibrate MODEL on genomes that it has not seen: DATA, a folder with a folder of FASTA files for each class.

    A temperature and the weight of many windows are fitted, and the thresholds of 'classify --novel'; 'classify' and
    'evaluate' use them. Which class is the most probable does not change. To report the calibration error, measure it
    on yet other genomes with 'evaluate'.
    """
    import logging

    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.calibrate import fit_calibration, held_out_predictions, write_calibrated
    from mamba_seq.pipelines.evaluate import Predictions, Reading
    from mamba_seq.pipelines.evaluate_genomes import read_genomes
    from mamba_seq.pipelines.output import check_new_folder
    from mamba_seq.pipelines.runtime import start

    check_new_folder(output)
    device = start(settings.device, settings.threads, settings.seed)
    genomes, intervals, chosen = read_genomes(data, splits, lengths, "validation")
    loaded = models.load_model(model, device)
    reading = Reading(
        context=window_length(context, model, loaded.config.context),
        stride=stride,
        max_windows=models.max_windows_of(loaded.config, max_windows),
        both_strands=models.strands_of(model, loaded.config, strand) == "both",
        batch_tokens=batch_tokens,
    )
    found: list[Predictions] = []
    with progress("calibrating", verbosity=settings.verbosity) as show:
        for number, length in enumerate(chosen):
            show(f"windows of {length:,} bases", number / len(chosen))
            found += held_out_predictions(
                loaded,
                loaded.config.labels,
                genomes,
                [length],
                reading,
                intervals,
                per_class=per_class,
                seed=settings.seed or 0,
                device=device,
            )
    calibration = fit_calibration(found, reading.context)
    write_calibrated(models.locate_model(model), output, calibration)
    logging.getLogger("mamba_seq.pipelines").info(
        "temperature %.3f, growth with windows %.3f, on %s windows",
        calibration.temperature,
        calibration.growth,
        f"{calibration.windows:,}",
    )
    click.echo(output)
