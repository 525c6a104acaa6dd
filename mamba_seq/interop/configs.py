"""Configs of other packages, to and from ours.

What changes the function that a model computes is mapped or refused; what only matters to initialisation, to that
package's choice of kernels or to its text generation is left aside.
"""

from pathlib import Path
from typing import Any

from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.errors import ModelError

_EXTRAS = "mamba_seq"
"""Our own field in a transformers config, which keeps what that config has no place for."""
_MAMBA_SSM_EPS = 1e-5
"""mamba_ssm's `norm_epsilon`, which its config cannot change."""


def from_transformers(fields: dict[str, Any], path: Path) -> ModelConfig:
    """Read the config of a transformers `MambaForCausalLM`.

    Args:
        fields: of its config.json; those left out have transformers' defaults.
        path: of that file, for messages.

    Raises:
        ModelError: when it is another architecture, or asks for what our block does not do.
    """
    take = _Taker(fields, path)
    kind = fields["model_type"]
    makers = fields.get("architectures") or []
    if kind == "falcon_mamba" or any(name in fields for name in ("mixer_rms_eps", "use_bcdt_rms")):
        raise ModelError(f"{path} is a Falcon Mamba, which normalises delta, B and C inside the block: not supported")
    if kind != "mamba" or not set(makers) <= {"MambaForCausalLM", "MambaModel", "MambaLMHeadModel"}:
        what = f"model_type is {kind!r}" + (f" and architectures {makers}" if makers else "")
        raise ModelError(f"{path} is not a Mamba language model: {what}, expected 'mamba' and MambaForCausalLM")
    if fields.get("quantization_config"):
        raise ModelError(f"{path} describes quantized weights, expected float32, bfloat16 or float16")
    act = fields.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ModelError(f"{path}: hidden_act is {act!r}, expected 'silu', the only activation of our block")
    d_model = take.integer("hidden_size")
    extras = take.mapping(_EXTRAS)
    return _build(
        path,
        {
            "d_model": d_model,
            "n_layer": take.integer("num_hidden_layers"),
            "d_state": take.integer("state_size", 16),
            "d_conv": take.integer("conv_kernel", 4),
            "expand": _expand(take, d_model, fields.get("intermediate_size")),
            "dt_rank": take.rank("time_step_rank"),
            "dt_min": take.number("time_step_min", 0.001),
            "dt_max": take.number("time_step_max", 0.1),
            "bias": take.flag("use_bias", False),
            "conv_bias": take.flag("use_conv_bias", True),
            "norm_eps": take.number("layer_norm_epsilon", 1e-5),
            "residual_in_fp32": take.flag("residual_in_fp32", True),
        },
        vocab_size=take.integer("vocab_size"),
        tie_embeddings=take.flag("tie_word_embeddings", True),
        alphabet=extras.get("alphabet"),
        context=extras.get("context"),
    )


def to_transformers(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of transformers' config.json.

    Raises:
        ModelError: for a backbone with LayerNorm, or with blocks other than Mamba's.
    """
    backbone = _check_selective(config, "transformers")
    if backbone.norm != "rms":
        raise ModelError(f"norm is {backbone.norm!r}, expected 'rms': transformers' Mamba has no other")
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": config.vocab_size,
        "hidden_size": backbone.d_model,
        "intermediate_size": backbone.d_inner,
        "num_hidden_layers": backbone.n_layer,
        "state_size": backbone.d_state,
        "conv_kernel": backbone.d_conv,
        "expand": backbone.expand,
        "time_step_rank": backbone.rank,
        "time_step_min": backbone.dt_min,
        "time_step_max": backbone.dt_max,
        "use_bias": backbone.bias,
        "use_conv_bias": backbone.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": backbone.norm_eps,
        "residual_in_fp32": backbone.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        # left out, transformers would take 0 for all three, and stop at the first letter of an alphabet
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": "float32",
        _EXTRAS: {"alphabet": config.alphabet, "context": config.context},
    }


def from_mamba_ssm(fields: dict[str, Any], path: Path) -> ModelConfig:
    """Read the config of mamba_ssm's `MambaLMHeadModel`; the vocabulary is the padded one, that of its logits.

    Args:
        fields: of its config.json; those left out have the defaults of its `MambaConfig`.
        path: of that file, for messages.

    Raises:
        ModelError: for Mamba-2, attention or MLP layers, and for fields that are not known.
    """
    take = _Taker(fields, path)
    ssm = _Taker(take.mapping("ssm_cfg"), path, "ssm_cfg.")
    layer = ssm.fields.get("layer", "Mamba1")
    if layer != "Mamba1":
        raise ModelError(f"{path}: ssm_cfg.layer is {layer!r}, expected 'Mamba1', the only block here")
    if fields.get("attn_layer_idx") or fields.get("d_intermediate"):
        raise ModelError(
            f"{path} has attention or MLP layers (attn_layer_idx, d_intermediate), expected Mamba blocks alone"
        )
    take.refuse_unknown(
        "d_model d_intermediate n_layer vocab_size ssm_cfg attn_layer_idx attn_cfg rms_norm residual_in_fp32 "
        "fused_add_norm pad_vocab_size_multiple tie_embeddings"
    )
    ssm.refuse_unknown(
        "layer d_state d_conv expand dt_rank dt_min dt_max dt_init dt_scale dt_init_floor conv_bias bias use_fast_path"
    )
    d_model, multiple = take.integer("d_model"), take.integer("pad_vocab_size_multiple", 8)
    return _build(
        path,
        {
            "d_model": d_model,
            "n_layer": take.integer("n_layer"),
            "d_state": ssm.integer("d_state", 16),
            "d_conv": ssm.integer("d_conv", 4),
            "expand": _expand(ssm, d_model, None),
            "dt_rank": ssm.rank("dt_rank"),
            "dt_min": ssm.number("dt_min", 0.001),
            "dt_max": ssm.number("dt_max", 0.1),
            "bias": ssm.flag("bias", False),
            "conv_bias": ssm.flag("conv_bias", True),
            "norm": "rms" if take.flag("rms_norm", True) else "layer",
            "norm_eps": _MAMBA_SSM_EPS,
            "residual_in_fp32": take.flag("residual_in_fp32", True),
        },
        vocab_size=-(-take.integer("vocab_size") // max(multiple, 1)) * max(multiple, 1),
        tie_embeddings=take.flag("tie_embeddings", True),
    )


def to_mamba_ssm(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of mamba_ssm's config.json, in the form that its versions 1 and 2 read.

    Raises:
        ModelError: for a norm_eps other than its own, or blocks other than Mamba's.
    """
    backbone = _check_selective(config, "mamba_ssm")
    if backbone.norm_eps != _MAMBA_SSM_EPS:
        raise ModelError(
            f"norm_eps is {backbone.norm_eps}, expected {_MAMBA_SSM_EPS}: mamba_ssm's config cannot change it"
        )
    fields: dict[str, Any] = {
        "d_model": backbone.d_model,
        "n_layer": backbone.n_layer,
        "vocab_size": config.vocab_size,
        "ssm_cfg": {
            "d_state": backbone.d_state,
            "d_conv": backbone.d_conv,
            "expand": backbone.expand,
            "dt_rank": backbone.rank,
            "dt_min": backbone.dt_min,
            "dt_max": backbone.dt_max,
            "conv_bias": backbone.conv_bias,
            "bias": backbone.bias,
        },
        "rms_norm": backbone.norm == "rms",
        "residual_in_fp32": backbone.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
    }
    if not config.tie_embeddings:
        fields["tie_embeddings"] = False  # version 1 ties always, and refuses the field
    return fields


def _check_selective(config: ModelConfig, package: str) -> MambaConfig:
    """Return the backbone's config, refusing what the package's model cannot hold."""
    backbone = config.backbone
    if not isinstance(backbone, MambaConfig):
        raise ModelError(f"the backbone is a {backbone.architecture}, expected a stack: {package}'s Mamba is one")
    if config.labels:
        raise ModelError(f"the model is conditional ({', '.join(config.labels)}), which {package}'s Mamba cannot be")
    if config.embedding != "learned":
        raise ModelError(f"embedding is {config.embedding!r}, expected 'learned': {package}'s Mamba has no other")
    if backbone.ssm != "selective":
        raise ModelError(f"ssm is {backbone.ssm!r}, expected 'selective': {package}'s Mamba has no other recurrence")
    return backbone


def _build(path: Path, backbone: dict[str, Any], **model: Any) -> ModelConfig:
    try:
        return ModelConfig(task="language-model", backbone=MambaConfig(**backbone), **model)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path} does not describe a model that mamba-seq has: {error}") from error


def _expand(take: "_Taker", d_model: int, d_inner: Any) -> int:
    """Return D / d_model, from `intermediate_size` if it is given, for transformers builds its layers from that."""
    if d_inner is None:
        d_inner = int(take.number("expand", 2) * d_model)
    if not isinstance(d_inner, int) or d_model < 1 or d_inner % d_model:
        raise ModelError(
            f"{take.path}: the blocks have {d_inner} channels for a width of {d_model}, "
            "expected a multiple of it: our blocks widen by a whole number"
        )
    return d_inner // d_model


class _Taker:
    """Takes fields from a JSON object, checking their types."""

    def __init__(self, fields: dict[str, Any], path: Path, prefix: str = "") -> None:
        self.fields, self.path, self.prefix = fields, path, prefix

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.fields.get(name, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else self._refuse(name, "an integer")

    def number(self, name: str, default: float) -> float:
        value = self.fields.get(name, default)
        return (
            value if isinstance(value, (int, float)) and not isinstance(value, bool) else self._refuse(name, "a number")
        )

    def flag(self, name: str, default: bool) -> bool:
        value = self.fields.get(name, default)
        return value if isinstance(value, bool) else self._refuse(name, "true or false")

    def rank(self, name: str) -> int | None:
        """Return the rank of delta's projection; None for "auto", which is ceil(d_model / 16) in all three packages."""
        return None if self.fields.get(name, "auto") == "auto" else self.integer(name)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.fields.get(name) or {}
        return value if isinstance(value, dict) else self._refuse(name, "an object")

    def refuse_unknown(self, known: str) -> None:
        unknown = sorted(set(self.fields) - set(known.split()))
        if unknown:
            names = ", ".join(self.prefix + name for name in unknown)
            raise ModelError(f"{self.path} has fields that mamba-seq does not know, and will not guess about: {names}")

    def _refuse(self, name: str, expected: str) -> Any:
        value = f"is {self.fields[name]!r}" if name in self.fields else "is missing"
        raise ModelError(f"{self.path}: {self.prefix}{name} {value}, expected {expected}")
