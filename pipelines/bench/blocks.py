"""The Mamba blocks of other packages, with the weights of ours.

Shapes: L length, K convolution taps, D channels of the scan.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mamba_seq.block import Mamba
from mamba_seq.kernels import causal_conv1d, selective_scan
from mamba_seq.pipelines.bench.ops import Call, Case, Inputs, module_call

if TYPE_CHECKING:
    from collections.abc import Mapping

RENAMED = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "dt_bias": "dt_proj.bias"}


def transformers_block(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run transformers' MambaMixer: mamba_ssm's kernels where it finds them, a loop over the steps elsewhere."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    ours: Mamba = inputs["block"]
    config = ours.config
    sizes: dict[str, Any] = {"state_size": config.d_state, "conv_kernel": config.d_conv, "time_step_rank": config.rank}
    theirs = MambaMixer(MambaConfig(hidden_size=config.d_model, num_hidden_layers=1, **sizes), 0)
    return _call(theirs, inputs, direction)


def mambapy_block(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run mambapy's MambaBlock, with its parallel scan."""
    from mambapy.mamba import MambaBlock, MambaConfig

    config = inputs["block"].config
    sizes = {"d_state": config.d_state, "d_conv": config.d_conv, "dt_rank": config.rank}
    return _call(MambaBlock(MambaConfig(d_model=config.d_model, n_layers=1, **sizes)), inputs, direction)


def mamba_ssm_block(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run mamba_ssm's Mamba, fused: one autograd node, and CUDA kernels for convolution and scan."""
    from mamba_ssm.modules.mamba_simple import Mamba as Theirs

    config = inputs["block"].config
    sizes = {"d_state": config.d_state, "d_conv": config.d_conv, "dt_rank": config.rank}
    theirs = Theirs(config.d_model, expand=config.expand, layer_idx=0, **sizes)
    keep = ("A_log", "D")  # float32, as in its own models
    return _call(theirs, inputs, direction, keep)


def block_reference(block: Mamba, hidden: Tensor) -> Tensor:
    """Run a block on the reference operators, whatever its type."""
    config = block.config
    x, z = block.in_proj(hidden).chunk(2, dim=-1)
    u = causal_conv1d(x, block.conv_weight, block.conv_bias, "silu", backend="reference")
    assert isinstance(u, Tensor)
    low, B, C = block.x_proj(u).split([config.rank, config.d_state, config.d_state], dim=-1)
    A = -torch.exp(block.A_log)
    delta = block.dt_proj(low)
    y = selective_scan(u, delta, A, B, C, block.D, z, block.dt_bias, delta_softplus=True, backend="reference")
    return block.out_proj(y)


def _call(theirs: nn.Module, inputs: Inputs, direction: str, float32: tuple[str, ...] = ()) -> Call:
    """Give a block the weights, the type and the device of ours, and return its call."""
    block, hidden = inputs["block"], inputs["hidden"]
    theirs.load_state_dict(_renamed(block.state_dict()))
    theirs = theirs.to(hidden.device, hidden.dtype)
    for name in float32:
        parameter = theirs.get_parameter(name)
        parameter.data = parameter.data.float()
    return module_call(theirs, hidden, direction)


def _renamed(weights: "Mapping[str, Any]") -> dict[str, Tensor]:
    """Give weights their common names; taps are (D, 1, K) there."""
    named = {RENAMED.get(name, name): tensor for name, tensor in weights.items()}
    named["conv1d.weight"] = named["conv1d.weight"][:, None]
    return named
