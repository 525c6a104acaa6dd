"""What a model is made of, and what a saved model must carry to be used.

`MambaConfig` describes the stack of blocks; `ModelConfig` adds everything that a prediction needs: the task, the
alphabet or codec, the label names in order, the context. It is the `config.json` of a saved-model folder.
"""

import dataclasses
import json
import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mamba_seq._version import __version__
from mamba_seq.calibration import Calibration
from mamba_seq.errors import ModelError

Task = Literal[
    "sequence-classification",
    "multi-label",
    "sequence-regression",
    "token-classification",
    "token-regression",
    "ctc",
    "language-model",
]
TASKS: tuple[Task, ...] = get_args(Task)
SSMKind = Literal["selective", "complex", "time-invariant", "time-invariant-real"]
SSM_KINDS: tuple[SSMKind, ...] = get_args(SSMKind)
_FEWEST_LABELS = {"sequence-classification": 2, "token-classification": 2, "language-model": 0}
"""How many labels a task needs; the others need 1."""


@dataclasses.dataclass(kw_only=True)
class MambaConfig:
    """Sizes and initialisation of a stack of Mamba blocks (arXiv 2312.00752, sections 3.4 to 3.6)."""

    d_model: int
    """Width of the residual stream."""
    n_layer: int
    """Number of blocks."""
    ssm: SSMKind = "selective"
    """The recurrence of every block: "selective", Mamba's, real; "complex", the same with complex states (section 3.6);
    "time-invariant", S4D with complex states, whose step size, B and C do not depend on the input (arXiv 2206.11893);
    "time-invariant-real", the same with real states."""
    d_state: int = 16
    """State size N of every channel; a complex state stands for itself and its conjugate, and counts once."""
    d_conv: int = 4
    """Taps K of the causal convolution."""
    expand: int = 2
    """The scan has D = expand * d_model channels."""
    dt_rank: int | None = None
    """Rank of the projection that makes delta; None takes ceil(d_model / 16)."""
    dt_min: float = 0.001
    """Smallest initial step size after softplus."""
    dt_max: float = 0.1
    """Largest initial step size after softplus."""
    bias: bool = False
    """Give the input and output projections a bias."""
    conv_bias: bool = True
    """Give the convolution a bias."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalisation in front of every block."""
    norm_eps: float = 1e-5
    """Added to the variance in the normalisation."""
    dropout: float = 0.0
    """Part of what a block adds to the residual stream that is dropped in training; the paper uses none."""
    residual_in_fp32: bool = True
    """Keep the residual stream in float32 where the blocks compute in 16 bits, by their weights or under autocast; if
    not, it is in the type they compute in, and takes half the memory."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("d_model", "n_layer", "d_state", "expand"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.d_conv < 2:
            raise ValueError(f"d_conv is {self.d_conv}, expected at least 2 taps")
        if self.dt_rank is not None and self.dt_rank < 1:
            raise ValueError(f"dt_rank is {self.dt_rank}, expected at least 1, or none for d_model / 16")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more, below 1")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"dt_min is {self.dt_min} and dt_max {self.dt_max}, expected 0 < dt_min <= dt_max")
        if self.ssm not in SSM_KINDS:
            raise ValueError(f"ssm is {self.ssm!r}, expected one of {', '.join(map(repr, SSM_KINDS))}")
        if self.norm not in ("rms", "layer"):
            raise ValueError(f"norm is {self.norm!r}, expected 'rms' or 'layer'")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}, expected above 0")

    @property
    def is_selective(self) -> bool:
        """Whether delta, B and C are functions of the input."""
        return self.ssm in ("selective", "complex")

    @property
    def has_complex_states(self) -> bool:
        """Whether A, B, C and the states are complex."""
        return self.ssm in ("complex", "time-invariant")

    @property
    def d_inner(self) -> int:
        """Channels D of the scan."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """The rank of delta's projection, after the default."""
        return self.dt_rank if self.dt_rank is not None else math.ceil(self.d_model / 16)


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """A whole model: the backbone, its input, its task, and the names of its outputs."""

    task: Task
    """What the head does; `mamba_seq.heads` has the models."""
    backbone: MambaConfig
    """The stack of blocks."""
    vocab_size: int | None = None
    """Number of input tokens V; None when the input is numbers."""
    input_features: int | None = None
    """Numbers F at every position of a series, which a linear map embeds; None when the input is tokens."""
    alphabet: str | None = None
    """Name of the alphabet that turns text into tokens, such as "dna"; None when the caller brings tokens."""
    labels: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes, targets or, for CTC, symbols, in the order of the outputs (CTC has the blank before them).
    """
    context: int | None = None
    """Length of the sequences the model was trained on, in tokens."""
    pooling: Literal["mean", "last", "max"] = "mean"
    """How a model with outputs for whole sequences turns the positions of one into one vector."""
    tie_embeddings: bool = True
    """A language model's embedding is also its output matrix; if not, that is a matrix of its own."""
    calibration: dict[str, Any] | None = None
    """Fields of `mamba_seq.calibration.Calibration`: what makes the scores of a classifier probabilities; None where it
    has not been measured."""
    taxonomy: dict[str, str] | None = None
    """For each label its lineage from the domain down to it, such as "2:D:Bacteria;562:S:Escherichia coli"
    (taxonomy id, rank code, name); None where the labels are no taxa."""
    mamba_seq_version: str = __version__
    """The version that wrote the model."""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if self.pooling not in ("mean", "last", "max"):
            raise ValueError(f"pooling is {self.pooling!r}, expected 'mean', 'last' or 'max'")
        for name in ("vocab_size", "input_features", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1, or none")
        if (self.vocab_size is None) == (self.input_features is None):
            raise ValueError(
                f"vocab_size is {self.vocab_size} and input_features {self.input_features}, expected one of them: "
                "the input is tokens or numbers"
            )
        if self.task == "language-model" and self.vocab_size is None:
            raise ValueError("vocab_size is None, expected the number of tokens: a language model has no other input")
        fewest = _FEWEST_LABELS.get(self.task, 1)
        if len(self.labels) < fewest:
            raise ValueError(f"labels has {len(self.labels)} names, expected at least {fewest} for {self.task}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels has a name twice: {self.labels}")
        if self.task != "language-model" and not self.tie_embeddings:
            raise ValueError(
                f"tie_embeddings is false, expected true for {self.task}: only a language model has an output matrix "
                "to untie"
            )
        if self.calibration is not None:
            Calibration.from_fields(self.calibration)
        if self.taxonomy is not None and set(self.taxonomy) != set(self.labels):
            odd = sorted(set(self.taxonomy) ^ set(self.labels))[0]
            raise ValueError(f"taxonomy has other names than labels, {odd!r} is in one of them only")

    def to_json(self) -> str:
        """Write the config as the text of a `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json_file(cls, path: Path) -> "ModelConfig":
        """Read a `config.json`.

        Raises:
            ModelError: when the file is not JSON or does not describe a model of this package.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as a model config: {error}") from error
        if not isinstance(fields, dict) or not isinstance(fields.get("backbone"), dict):
            raise ModelError(
                f"{path} is not a mamba-seq config: expected an object with 'task', 'backbone', 'vocab_size'"
            )
        backbone = _known_fields(MambaConfig, fields.pop("backbone"), path)
        try:
            return cls(backbone=MambaConfig(**backbone), **_known_fields(cls, fields, path))
        except (TypeError, ValueError) as error:
            raise ModelError(f"{path} does not describe a model: {error}") from error


def _check_types(config: Any) -> None:
    """Refuse fields of another type: JSON has numbers in quotes and 8.0 where a layer wants 8."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            continue  # compared with the allowed values by the config itself
        kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        plain = tuple(get_origin(kind) or kind for kind in kinds)
        if float in plain:
            plain += (int,)
        right = isinstance(value, plain) and (not isinstance(value, bool) or bool in plain)
        if right and isinstance(value, list):
            right = all(isinstance(item, str) for item in value)
        if not right:
            expected = " or ".join(
                "none" if kind is NoneType else getattr(kind, "__name__", str(kind)) for kind in kinds
            )
            raise ValueError(f"{name} is {value!r}, expected {expected}")


def _known_fields(config: type, fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return `fields`, refusing names that the config does not have: a newer format must not be half understood."""
    known = {field.name for field in dataclasses.fields(config)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ModelError(
            f"{path} has fields that mamba-seq {__version__} does not know: {', '.join(unknown)}; "
            "a newer version may have written it"
        )
    return fields
