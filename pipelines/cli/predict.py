"""`mamba-seq predict`: any saved model on any data."""

from typing import Any

import click

from mamba_seq.pipelines.cli._data_options import data_config, data_options
from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.argument("data", metavar="DATA")
@click.option(
    "-m", "--model", metavar="MODEL", required=True, help="A zoo name, a folder of a saved model, or a hub id."
)
@click.option("-o", "--output", metavar="FILE", default="-", help="Table to write; .gz compresses. Default: -, stdout.")
@click.option("--strand", type=click.Choice(["both", "forward"]), help="Default: as the model was trained.")
@click.option("--batch-tokens", metavar="N", type=click.IntRange(min=1), default=1 << 16, show_default=True)
@data_options
@click.pass_obj
def predict(
    settings: Settings, data: str, model: str, output: str, strand: str | None, batch_tokens: int, **options: Any
) -> None:
    """Write what MODEL says of every sequence of DATA, which takes all forms that finetune takes, labels or not.

    A row a sequence, in the order of the data, whole sequences at once; status is ok, empty, invalid (letters that the
    model does not know) or too_long. `classify` reads genomes in windows, in constant memory.
    """
    from mamba_seq.loading import from_pretrained
    from mamba_seq.pipelines.finetune.predict import Predicted
    from mamba_seq.pipelines.models import locate_model
    from mamba_seq.pipelines.output import check_output, open_output
    from mamba_seq.pipelines.runtime import start

    check_output(output, (data,))
    config = data_config(options)
    device = start(settings.device, settings.threads, settings.seed)
    loaded = from_pretrained(locate_model(model), device)
    table = Predicted(loaded, data, config, device, batch_tokens, strand).table()
    with open_output(output) as sink:
        sink.write(table)
