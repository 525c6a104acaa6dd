"""The step of a whole stack as one operator, `mamba_seq.kernels.block_step`, where a GPU runs it.

Shapes: B batch.
"""

import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mamba_seq.block import Mamba
from mamba_seq.kernels._dispatch import implementation
from mamba_seq.kernels._library import is_traced
from mamba_seq.kernels.block_step import BlockWeights, FinalNorm

if TYPE_CHECKING:
    from mamba_seq.backbone import Backbone, BackboneState, ResidualBlock

KEPT = 8
"""Prepared steps of a backbone that are kept: a state of its own each, a few kilobytes."""

_PREPARED: "weakref.WeakKeyDictionary[nn.Module, OrderedDict[tuple[Any, ...], Any]]" = weakref.WeakKeyDictionary()


def fused_step(backbone: "Backbone", residual: Tensor, state: "BackboneState") -> Tensor | None:
    """Advance all blocks and the final norm by one position, changing `state` in place, or do nothing.

    Args:
        backbone: whose step it is.
        residual: the input in the type of the residual stream (B, d_model).
        state: of its blocks.

    Returns:
        (B, d_model) in the weights' type; None where the blocks have to take their steps themselves: off the GPU, while
        a program is traced, for other recurrences than real selective ones, in float64, for changed layers, and where
        it would not pay.
    """
    if not residual.is_cuda or is_traced() or backbone.config.ssm != "selective":
        return None
    kernels = implementation("block_step", "triton")
    config = backbone.config
    kind = backbone.norm.weight.dtype
    if not kernels.pays(config.d_model, config.d_inner, len(residual), residual.device, kind):
        return None
    blocks = [weights_of(block) for block in backbone.blocks]
    if any(block is None for block in blocks):
        return None
    final = FinalNorm(backbone.norm.weight, getattr(backbone.norm, "bias", None), config.norm_eps)
    states = [(block.conv, block.ssm) for block in state]
    arguments = (states, blocks, config.norm, config.norm_eps, final)
    key = kernels.key_of(residual, *arguments)
    kept = _PREPARED.setdefault(backbone, OrderedDict())
    prepared = kept.pop(key, None)
    if prepared is None:
        if kernels.why_not(blocks, states, residual) is not None:
            return None
        prepared = kernels.Prepared(residual, *arguments)
    kept[key] = prepared
    while len(kept) > KEPT:
        kept.popitem(last=False)
    out: Tensor = prepared(residual)
    return out


def prepared_steps(module: nn.Module) -> list[Any]:
    """Return what `fused_step` keeps for the backbones in a module: a captured step reads it, and must keep it too."""
    return [step for part in module.modules() if part in _PREPARED for step in _PREPARED[part].values()]


def weights_of(block: "ResidualBlock") -> BlockWeights | None:
    """Return the weights of a block, or None if a layer is no longer what it was made as, such as an adapter's."""
    mixer, norm = block.mixer, block.norm
    if not isinstance(mixer, Mamba):
        return None
    linear = (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj)
    if any(type(layer) is not nn.Linear for layer in linear) or mixer.dt_proj.bias is not None:
        return None
    return BlockWeights(
        norm.weight,
        getattr(norm, "bias", None),
        mixer.in_proj.weight,
        mixer.in_proj.bias,
        mixer.conv_weight,
        mixer.conv_bias,
        mixer.x_proj.weight,
        mixer.dt_proj.weight,
        mixer.dt_bias,
        mixer.A_log,
        mixer.D,
        mixer.out_proj.weight,
        mixer.out_proj.bias,
    )
