"""What a model is made of, and what a saved model must carry to be used.

`MambaConfig` describes the stack of blocks; `ModelConfig` adds everything that a prediction needs: the task, the
alphabet or codec, the label names in order, the context. It is the `config.json` of a saved-model folder.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, Literal, get_args

from mamba_seq._version import __version__
from mamba_seq.block_config import SSM_KINDS, BlockConfig, SSMKind, check_kind, check_types
from mamba_seq.calibration import Calibration
from mamba_seq.errors import ModelError
from mamba_seq.sashimi_config import SaShiMiConfig

__all__ = ["SSM_KINDS", "TASKS", "BackboneConfig", "MambaConfig", "ModelConfig", "SSMKind", "SaShiMiConfig", "Task"]

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
_FEWEST_LABELS = {"sequence-classification": 2, "token-classification": 2, "language-model": 0}
"""How many labels a task needs; the others need 1."""
_OF_WHOLE_SEQUENCES = ("sequence-classification", "multi-label", "sequence-regression")


@dataclasses.dataclass(kw_only=True)
class MambaConfig(BlockConfig):
    """Sizes and initialisation of a stack of Mamba blocks (arXiv 2312.00752, sections 3.4 to 3.6)."""

    d_model: int
    """Width of the residual stream."""
    n_layer: int
    """Number of blocks."""
    ssm: SSMKind = "selective"
    """The recurrence of every block: "selective", Mamba's, real; "complex", the same with complex states (section 3.6);
    "time-invariant", S4D with complex states, whose step size, B and C do not depend on the input (arXiv 2206.11893);
    "time-invariant-real", the same with real states."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d_model", "n_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        check_kind(self.ssm)

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


BackboneConfig = MambaConfig | SaShiMiConfig


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """A whole model: the backbone, its input, its task, and the names of its outputs."""

    task: Task
    """What the head does; `mamba_seq.heads` has the models."""
    backbone: BackboneConfig
    """The stack of blocks, or the U-Net of them."""
    vocab_size: int | None = None
    """Number of input tokens V; None when the input is numbers."""
    input_features: int | None = None
    """Numbers F at every position of a series, which a linear map embeds; None when the input is tokens."""
    alphabet: str | None = None
    """Name of the alphabet that turns text into tokens, such as "dna"; None when the caller brings tokens."""
    codec: str | None = None
    """Name of the codec that turns sound into tokens, such as "mu-law-8bit-minmax"; None when the input is no sound."""
    sample_rate: int | None = None
    """Samples of sound a second; None when the input is no sound."""
    features: str | None = None
    """Name of the features of sound that are the numbers of the input, such as "log-mel-40band-12.5ms-3600hz"; None
    when the caller brings numbers, or the input is tokens."""
    labels: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes, targets or, for CTC, symbols, in the order of the outputs (CTC has the blank before them);
    for a language model, of the classes that it can be asked for, if there are any."""
    context: int | None = None
    """Length of the sequences the model was trained on, in tokens."""
    max_windows: int | None = None
    """Most windows of `context`, evenly spaced, that a record of DNA is read in unless something else is asked for; 0
    for all of them, None to leave it to the program that reads."""
    pooling: Literal["mean", "last", "max"] = "mean"
    """How a model with outputs for whole sequences turns the positions of one into one vector."""
    embedding: Literal["learned", "sinusoidal"] = "learned"
    """How tokens become vectors: each has its own, or, for levels of a quantity, a linear map of waves makes them."""
    tie_embeddings: bool = True
    """A language model's embedding is also its output matrix; if not, that is a matrix of its own."""
    positions: int | None = None
    """For sequences that are aligned, such as windows around a site: a vector of its own for each of so many positions,
    added to the embedding. No sequence may then be longer. Only for models with outputs for whole sequences."""
    target_mean: list[float] = dataclasses.field(default_factory=list)
    """Of a regression, one for each label: outputs are multiplied by `target_scale`, and this is added, to give the
    quantity that was learnt. Empty when outputs are the quantity."""
    target_scale: list[float] = dataclasses.field(default_factory=list)
    """See `target_mean`."""
    input_mean: list[float] = dataclasses.field(default_factory=list)
    """Of a series, one for each of its numbers: this is subtracted from the input, and the difference divided by
    `input_scale`, before the model reads it. Empty when it reads the numbers as they are."""
    input_scale: list[float] = dataclasses.field(default_factory=list)
    """See `input_mean`."""
    strand: Literal["both", "forward"] | None = None
    """Whether predictions for DNA average over both strands or read the given one; None leaves it to who asks."""
    complement: list[int] = dataclasses.field(default_factory=list)
    """The token that stands for each token on the other strand, [3, 2, 1, 0, 4] for DNA: a model of whole sequences
    then reads both strands with the same weights and pools them together. Empty: it reads what it is given."""
    calibration: dict[str, Any] | None = None
    """Fields of `mamba_seq.calibration.Calibration`: what makes the scores of a classifier probabilities; None where it
    has not been measured."""
    taxonomy: dict[str, str] | None = None
    """For each label its lineage from the domain down to it, such as "2:D:Bacteria;562:S:Escherichia coli"
    (taxonomy id, rank code, name); None where the labels are no taxa."""
    label_dropout: float = 0.0
    """Of a language model with labels, the part of the training sequences that it was not told the class of. Above 0 it
    knows what sequences of no class are like, and how it draws can be guided by the difference (`Drawing.guidance`)."""
    guidance: float = 1.0
    """How much drawing is guided unless something else is asked for; 1 is not at all."""
    mamba_seq_version: str = __version__
    """The version that wrote the model."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if self.pooling not in ("mean", "last", "max"):
            raise ValueError(f"pooling is {self.pooling!r}, expected 'mean', 'last' or 'max'")
        if self.embedding not in ("learned", "sinusoidal"):
            raise ValueError(f"embedding is {self.embedding!r}, expected 'learned' or 'sinusoidal'")
        if self.strand not in (None, "both", "forward"):
            raise ValueError(f"strand is {self.strand!r}, expected 'both', 'forward' or none")
        for name, count in (("target", len(self.labels)), ("input", self.input_features)):
            mean, scale = getattr(self, f"{name}_mean"), getattr(self, f"{name}_scale")
            if len(mean) != len(scale) or len(mean) not in (0, count) or not all(s > 0 for s in scale):
                raise ValueError(
                    f"{name}_mean has {len(mean)} numbers and {name}_scale {len(scale)}, expected {count or 0} of "
                    "each, or "
                    "none, and scales above 0"
                )
        if self.positions is not None and self.task not in _OF_WHOLE_SEQUENCES:
            raise ValueError(f"positions is {self.positions}, expected none for {self.task}")
        for name in ("vocab_size", "input_features", "context", "sample_rate", "positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1, or none")
        if self.max_windows is not None and self.max_windows < 0:
            raise ValueError(f"max_windows is {self.max_windows}, expected 0 for all, or more, or none")
        if (self.vocab_size is None) == (self.input_features is None):
            raise ValueError(
                f"vocab_size is {self.vocab_size} and input_features {self.input_features}, expected one of them: "
                "the input is tokens or numbers"
            )
        if (self.codec is None and self.features is None) != (self.sample_rate is None):
            raise ValueError(
                f"codec is {self.codec!r}, features is {self.features!r} and sample_rate {self.sample_rate}, expected "
                "sample_rate with one of the others, or none: a model of sound needs the two to read and to write it"
            )
        if self.features is not None and (self.codec is not None or self.input_features is None):
            raise ValueError(
                f"features is {self.features!r} with codec {self.codec!r} and input_features {self.input_features}, "
                "expected no codec, and how many numbers they are"
            )
        self._check_complement()
        if self.task == "language-model" and self.vocab_size is None:
            raise ValueError("vocab_size is None, expected the number of tokens: a language model has no other input")
        fewest = _FEWEST_LABELS.get(self.task, 1)
        if len(self.labels) < fewest:
            raise ValueError(f"labels has {len(self.labels)} names, expected at least {fewest} for {self.task}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels has a name twice: {self.labels}")
        if self.embedding == "sinusoidal" and (
            self.vocab_size is None or (self.task == "language-model" and self.tie_embeddings)
        ):
            raise ValueError(
                "embedding is 'sinusoidal', expected 'learned': the input is numbers, or tie_embeddings is true, and "
                "only a learned embedding is an output matrix too"
            )
        if self.task != "language-model" and not self.tie_embeddings:
            raise ValueError(
                f"tie_embeddings is false, expected true for {self.task}: only a language model has an output matrix "
                "to untie"
            )
        self._check_guidance()
        if self.calibration is not None:
            Calibration.from_fields(self.calibration)
        if self.taxonomy is not None and set(self.taxonomy) != set(self.labels):
            odd = sorted(set(self.taxonomy) ^ set(self.labels))[0]
            raise ValueError(f"taxonomy has other names than labels, {odd!r} is in one of them only")

    def _check_guidance(self) -> None:
        knows_classes = self.task == "language-model" and bool(self.labels)
        if not 0 <= self.label_dropout < 1 or (self.label_dropout and not knows_classes):
            raise ValueError(
                f"label_dropout is {self.label_dropout}, expected 0 or more, below 1, and 0 unless it is a language "
                "model with labels"
            )
        if not (math.isfinite(self.guidance) and self.guidance >= 0) or (self.guidance != 1 and not self.label_dropout):
            raise ValueError(
                f"guidance is {self.guidance} with label_dropout {self.label_dropout}, expected a number of at least "
                "0, and 1 without label dropout: what has no class must have been learnt"
            )

    def _check_complement(self) -> None:
        tokens = self.complement
        if not tokens:
            return
        if self.task not in _OF_WHOLE_SEQUENCES:
            raise ValueError(
                f"complement is {tokens}, expected none for {self.task}: only outputs for whole sequences are the "
                "same on both strands"
            )
        if len(tokens) != self.vocab_size or any(
            not 0 <= other < len(tokens) or tokens[other] != token for token, other in enumerate(tokens)
        ):
            raise ValueError(
                f"complement is {tokens}, expected for each of the {self.vocab_size} tokens the one that stands for it "
                "on the other strand, and for that one the token again"
            )

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
        _check_version(fields.get("mamba_seq_version"), path)
        backbone = fields.pop("backbone")
        # a stack of blocks has no such field: it was there before there was anything to tell it from
        kind: type[BackboneConfig] = SaShiMiConfig if "architecture" in backbone else MambaConfig
        backbone = _known_fields(kind, backbone, path)
        try:
            return cls(backbone=kind(**backbone), **_known_fields(cls, fields, path))
        except (TypeError, ValueError) as error:
            raise ModelError(f"{path} does not describe a model: {error}") from error


def _check_version(written: Any, path: Path) -> None:
    """Refuse a config that a later minor version wrote: its fields may mean something else."""
    if written is None:  # not there before it was there
        return
    match = re.match(r"(\d+)\.(\d+)", written) if isinstance(written, str) else None
    if match is None:
        raise ModelError(f"{path}: mamba_seq_version is {written!r}, expected a version such as {__version__!r}")
    here = tuple(map(int, __version__.split(".")[:2]))
    if tuple(map(int, match.groups())) > here:
        raise ModelError(
            f"{path} was written by mamba-seq {written}, which is newer than this {__version__} and may mean other "
            "things by it; upgrade: pip install --upgrade mamba-seq"
        )


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
