"""Models as programs that run without this package: torch.export's, and ONNX.

The scan becomes a loop over chunks in operators that every such program has (`kernels/selective_scan/exportable.py`),
so batch and length stay free. Stacks of selective blocks with real states are exported, of every task.

    inputs   tokens (B, L) int64, or numbers (B, L, F) float32
    mask     bool (B, L), true at real positions; only where it was asked for
    outputs  what the model's forward pass returns, in float32
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.errors import ModelError
from mamba_seq.kernels._library import plain_operators

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mamba_seq.heads import Model

EXAMPLE = 200
"""Length of the example that a program for any length is traced with: some chunks of the scan and a part of one."""
LENGTHS = (1, 63, 130)
"""Lengths that a program for any length is held to its model at."""
TOLERANCE = 1e-4
"""How far outputs may be from the model's, as a part of the largest of them, or of 1 if that is less."""
CONFIG_KEY = "mamba_seq_config"
"""What the file calls the model's config.json: labels in order, alphabet, context."""

Run = Callable[..., Tensor]


def export_torch(model: "Model", length: int | None = None, mask: bool = False) -> bytes:
    """Return the model as a program of torch.export, a .pt2 file that `torch.export.load` reads without this package.

    Args:
        model: in float32, on the CPU; see `check_exportable`.
        length: take sequences of this length alone; None takes any.
        mask: give the program a second input, the mask.

    Raises:
        ModelError: for a model that cannot be exported, or whose program gives other outputs.
    """
    program = _traced(model, length, mask)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={CONFIG_KEY: model.config.to_json()})
    with torch.no_grad():
        _hold_to(model, program.module(), length, mask, "program")
    return file.getvalue()


def export_onnx(model: "Model", length: int | None = None, mask: bool = False) -> tuple[bytes, bool]:
    """Return the model as an ONNX file, its scan an ONNX Scan; arguments as for `export_torch`.

    Returns:
        The file, and whether it has been held to the model, which needs onnxruntime.

    Raises:
        ModelError: for a model that cannot be exported, or whose program gives other outputs.
        ImportError: when onnx or onnxscript is not installed.
    """
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401

    program = _traced(model, length, mask)
    names = ["inputs", "mask"][: 1 + mask]
    free: dict[int, Any] = {0: "batch"} if length is not None else {0: "batch", 1: "length"}
    with torch.no_grad(), _quiet_onnx():
        converted = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=["outputs"],
            dynamic_shapes=tuple(free for _ in names),
        )
    assert converted is not None
    converted.model.metadata_props[CONFIG_KEY] = model.config.to_json()
    converted.model.metadata_props["labels"] = json.dumps(model.config.labels)
    try:
        file = converted.model_proto.SerializeToString()
    except Exception as error:  # protobuf's own, of a name that changes
        raise ModelError(f"the model does not fit into one ONNX file, which holds 2 GB at most: {error}") from error
    try:
        run = _onnx_runner(file, names)
    except ImportError:
        return file, False
    _hold_to(model, run, length, mask, "ONNX program")
    return file, True


def check_exportable(config: ModelConfig) -> None:
    """Refuse what has no exported form.

    Raises:
        ModelError: for a backbone other than a stack of real selective blocks, or a conditional language model.
    """
    backbone = config.backbone
    if not isinstance(backbone, MambaConfig):
        raise ModelError(
            f"the backbone is a {backbone.architecture}, expected a stack of blocks: only that is exported"
        )
    if backbone.ssm != "selective":
        raise ModelError(
            f"ssm is {backbone.ssm!r}, expected 'selective': complex numbers and convolutions by FFT are not exported"
        )
    if config.task == "language-model" and config.labels:
        raise ModelError("the model is conditional, which is not exported: the program has no input for the class")


class _Program(nn.Module):
    """A model's forward pass with the inputs that the program has."""

    def __init__(self, model: "Model") -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        outputs: Tensor = self.model(inputs, mask)
        return outputs


def _traced(model: "Model", length: int | None, mask: bool) -> "ExportedProgram":
    check_exportable(model.config)
    if length is not None and length < 1:
        raise ValueError(f"length is {length}, expected at least 1, or None for any")
    arguments = _some_inputs(model, 2, length or EXAMPLE, mask)
    free = torch.export.Dim.DYNAMIC
    shape = {0: free} if length is not None else {0: free, 1: free}
    # what has been compiled for other shapes before would come in here
    torch._dynamo.reset()
    with torch.no_grad(), plain_operators():
        return torch.export.export(
            _Program(model).eval(), arguments, dynamic_shapes=tuple(shape for _ in arguments), strict=False
        )


def _some_inputs(model: "Model", batch: int, length: int, mask: bool) -> tuple[Tensor, ...]:
    """Return random inputs, and with a mask one that pads the last sequence."""
    config = model.config
    random = torch.Generator().manual_seed(length)
    if config.vocab_size is not None:
        inputs = torch.randint(0, config.vocab_size, (batch, length), generator=random)
    else:
        assert config.input_features is not None
        inputs = torch.randn((batch, length, config.input_features), generator=random)
    real = torch.ones((batch, length), dtype=torch.bool)
    real[-1, length // 2 + 1 :] = False
    return (inputs, real) if mask else (inputs,)


def _hold_to(model: "Model", run: Run, length: int | None, mask: bool, what: str) -> None:
    """Refuse a program whose outputs at real positions are not the model's."""
    longest = model.config.positions
    lengths = [length] if length is not None else [n for n in LENGTHS if longest is None or n <= longest]
    for each in lengths:
        for batch in (1, 3):
            arguments = _some_inputs(model, batch, each, mask)
            with torch.no_grad():
                want = model(*arguments)
            got = run(*arguments)
            if mask and want.ndim == 3:
                want, got = want[arguments[1]], got[arguments[1]]
            if got.shape != want.shape:
                raise ModelError(
                    f"the {what} gives other outputs than the model: {tuple(got.shape)} for {batch} x {each} "
                    f"positions, expected {tuple(want.shape)}; please report it"
                )
            far = (got - want).abs().max().item()
            if not far <= TOLERANCE * max(1.0, want.abs().max().item()):
                raise ModelError(
                    f"the {what} gives other outputs than the model: {far:.2g} apart for {batch} x {each} positions, "
                    f"expected at most {TOLERANCE:g}; please report it"
                )


def _onnx_runner(file: bytes, names: list[str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(*arguments: Tensor) -> Tensor:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


@contextlib.contextmanager
def _quiet_onnx() -> Iterator[None]:
    """Leave out what the exporter says of packages that it does not find, and of two inputs of one shape."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used")
            yield
    finally:
        log.setLevel(level)
