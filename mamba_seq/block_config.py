"""What all blocks of a model have in common, whatever they are stacked into, and how a config checks its fields."""

import dataclasses
import typing
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

SSMKind = Literal["selective", "complex", "time-invariant", "time-invariant-real"]
SSM_KINDS: tuple[SSMKind, ...] = get_args(SSMKind)


@dataclasses.dataclass(kw_only=True)
class BlockConfig:
    """Sizes and initialisation of Mamba blocks, but for their width and number (arXiv 2312.00752, section 3.6)."""

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
        check_types(self)
        for name in ("d_state", "expand"):
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
        if self.norm not in ("rms", "layer"):
            raise ValueError(f"norm is {self.norm!r}, expected 'rms' or 'layer'")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}, expected above 0")


def check_kind(ssm: object) -> None:
    """Raise ValueError unless `ssm` is a kind of recurrence."""
    if ssm not in SSM_KINDS:
        raise ValueError(f"ssm is {ssm!r}, expected one of {', '.join(map(repr, SSM_KINDS))}")


def check_types(config: Any) -> None:
    """Refuse fields of another type: JSON has numbers in quotes and 8.0 where a layer wants 8."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = get_args(hint) if get_origin(hint) in (UnionType, typing.Union) else (hint,)
        if any(get_origin(kind) is Literal for kind in kinds):
            continue  # compared with the allowed values by the config itself
        if not any(_fits(value, kind) for kind in kinds):
            expected = " or ".join("none" if kind is NoneType else _called(kind) for kind in kinds)
            raise ValueError(f"{name} is {value!r}, expected {expected}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict)  # what it holds is compared by the config itself
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (float, int) if kind is float else kind)


def _called(kind: Any) -> str:
    return str(kind) if get_origin(kind) is not None else getattr(kind, "__name__", str(kind))
