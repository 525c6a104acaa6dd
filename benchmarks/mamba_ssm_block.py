"""mamba_ssm's fused block with our weights: a peer of `gpu_block.py`, `dna_pretrain.py` and `audio_train.py`."""

import importlib.util

import torch
from torch import Tensor

from mamba_seq import Mamba

WANTED = ("selective_scan_cuda", "causal_conv1d_cuda", "causal_conv1d", "mamba_ssm", "einops")


def has_peer() -> bool:
    """Tell whether mamba_ssm's fused block can run."""
    missing = [name for name in WANTED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"no mamba_ssm beside ours: {', '.join(missing)} missing")
    return not missing


def peer_block(block: Mamba, hidden: Tensor) -> Tensor:
    """Run it on normalised inputs (B, L, d_model), as its module does (`Mamba.forward`, fast path), in their type."""
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    B, L, d_model = hidden.shape
    xz = (block.in_proj.weight @ hidden.reshape(B * L, d_model).t()).view(-1, B, L).transpose(0, 1)
    assert block.conv_bias is not None
    out: Tensor = mamba_inner_fn(
        xz,
        block.conv_weight.to(hidden.dtype)[:, None],
        block.conv_bias.to(hidden.dtype),
        block.x_proj.weight,
        block.dt_proj.weight,
        block.out_proj.weight,
        None,
        -torch.exp(block.A_log.float()),
        None,
        None,
        block.D.float(),
        delta_bias=block.dt_bias.float(),
        delta_softplus=True,
    )
    return out
