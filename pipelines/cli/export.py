"""`mamba-seq export`: a model as a program of torch.export or ONNX."""

import click

from mamba_seq.pipelines.cli._shell import Command, Settings


@click.command(cls=Command)
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", metavar="FILE", required=True, help="FILE.pt2 (torch.export) or FILE.onnx.")
@click.option(
    "--length", metavar="N", type=click.IntRange(min=1), help="Take sequences of N positions alone. Default: any."
)
@click.option("--mask", is_flag=True, help="A second input, true at real positions, for padded batches.")
@click.pass_obj
def export(settings: Settings, model: str, output: str, length: int | None, mask: bool) -> None:
    """Write MODEL as one file that runs without mamba-seq, in torch or in an ONNX runtime.

    MODEL is a zoo name, the folder of a saved model or a hub id, with blocks of real selective states, of any task. The
    program takes tokens and gives the model's outputs in float32, logits for a classifier: strands, windows and
    calibration are classify's. It is written after its outputs have been held to the model's. ONNX needs 'pip install
    mamba-seq[export]'.
    """
    from mamba_seq.pipelines.export import check_export
    from mamba_seq.pipelines.export import export as run
    from mamba_seq.pipelines.runtime import start

    check_export(output)
    start("cpu", settings.threads, settings.seed)
    run(model, output, length=length, mask=mask)
