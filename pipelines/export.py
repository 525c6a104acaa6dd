"""A saved model as one file that runs without this package."""

import logging
from pathlib import Path

from mamba_seq.exporting import export_onnx, export_torch
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.errors import OutputError, PipelineError
from mamba_seq.pipelines.models import locate_model
from mamba_seq.pipelines.output import check_output, open_output

log = logging.getLogger("mamba_seq.pipelines")
SUFFIXES = (".pt2", ".onnx")


def check_export(output: str) -> None:
    """Refuse a name that says no format, or that cannot be written.

    Raises:
        OutputError: with what to do about it.
    """
    if Path(output).suffix not in SUFFIXES:
        raise OutputError(f"cannot export to {output}: expected a name that ends in .pt2 (torch.export) or .onnx")
    check_output(output)


def export(model: str, output: str, *, length: int | None = None, mask: bool = False) -> None:
    """Write the model `model` as a program, after its outputs have been held to the model's.

    Args:
        model: a zoo name, the folder of a saved model, or a hub id.
        output: a file whose suffix, .pt2 or .onnx, says the format.
        length: take sequences of this length alone; None takes any.
        mask: give the program a second input, true at real positions, for sequences of different lengths in a batch.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it cannot be read or exported.
        OutputError: when the file cannot be written.
        PipelineError: when a package is missing.
    """
    check_export(output)
    loaded = from_pretrained(locate_model(model))
    if Path(output).suffix == ".pt2":
        content = export_torch(loaded, length, mask)
    else:
        try:
            content, checked = export_onnx(loaded, length, mask)
        except ImportError as error:
            raise PipelineError(
                f"ONNX needs the package {error.name}, which is not installed: pip install 'mamba-seq[export]'"
            ) from error
        if not checked:
            log.warning("onnxruntime is not installed, so %s has not been held to the model's outputs", output)
    with open_output(output) as sink:
        sink.write(content)
    lengths = "any length" if length is None else f"length {length:,}"
    log.info("wrote %.1f MB for batches of any size and sequences of %s", len(content) / 1e6, lengths)
