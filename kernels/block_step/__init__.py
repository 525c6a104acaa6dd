"""A step of whole residual blocks: norm, projections, convolution, recurrence and gate, as few launches as can be.

Read `reference.py` first, it is the definition. `triton.py` launches the kernels of `_triton_kernels.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_seq.kernels._checks import check_devices, check_dtype, check_shape
from mamba_seq.kernels._dispatch import choose_backend, implementation
from mamba_seq.kernels.block_step.reference import BlockWeights, FinalNorm, block_step_reference

__all__ = ["BlockWeights", "FinalNorm", "block_step"]

NO_CPU = "there is no CPU kernel of it"


@torch.no_grad()
def block_step(
    residual: Tensor,
    states: Sequence[tuple[Tensor, Tensor]],
    blocks: Sequence[BlockWeights],
    norm: str = "rms",
    eps: float = 1e-5,
    final_norm: FinalNorm | None = None,
    backend: str | None = None,
) -> Tensor:
    """Advance residual blocks of real selective states by one position, changing `states` in place; no gradient.

        x = x + out_proj(recurrence(conv(in_proj(norm(x)))))      one after another (Mamba, arXiv 2312.00752, figure 3)

    Shapes: B batch, M width of the stream, D channels, N state size, K taps.

    Args:
        residual: the stream of this position (B, M); float32, float16 or bfloat16. Computed in float32, and rounded to
            its type behind every block.
        states: for each block, the K - 1 inputs of its convolution, oldest first (B, D, K-1), and the state of its
            recurrence (B, D, N) float32.
        blocks: the weights of each, of one shape and type.
        norm: "rms" or "layer".
        eps: of the norms of the blocks.
        final_norm: a norm of the same kind behind the last block.
        backend: "reference" or "triton"; None takes Triton on CUDA devices.

    Returns:
        (B, M) in the type of `residual`, or of the final norm's weight.

    Raises:
        ValueError: for shapes, types or devices outside the contract, naming the argument.
        RuntimeError: when a named backend cannot run the case.
    """
    check_block_step(residual, states, blocks, norm)
    reason = NO_CPU
    kernels = None
    if (backend or residual.device.type) in ("triton", "cuda") and residual.numel():
        kernels = implementation("block_step", "triton")
        reason = kernels.why_not(blocks, states, residual)
    chosen = choose_backend("block_step", backend, residual.device, {"cpu": NO_CPU, "triton": reason})
    if chosen == "reference" or kernels is None:
        return block_step_reference(residual, states, blocks, norm, eps, final_norm)
    out: Tensor = kernels.Prepared(residual, states, blocks, norm, eps, final_norm)(residual)
    return out


def check_block_step(
    residual: Tensor, states: Sequence[tuple[Tensor, Tensor]], blocks: Sequence[BlockWeights], norm: str
) -> None:
    """Check every argument of `block_step`; raise ValueError naming the first that is wrong."""
    if norm not in ("rms", "layer"):
        raise ValueError(f"norm is {norm!r}, expected 'rms' or 'layer'")
    if residual.dim() != 2:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, expected (B, M)")
    if not blocks or len(states) != len(blocks):
        raise ValueError(f"states is of {len(states)} blocks, expected {len(blocks)} like blocks, at least 1")
    batch, M = residual.shape
    for block, (conv_state, ssm_state) in zip(blocks, states, strict=True):
        D, N = block.A_log.shape
        K, R = block.conv_weight.shape[-1], block.dt_weight.shape[-1]
        shapes = {
            "norm_weight": ((M,), "(M,)"),
            "norm_bias": ((M,), "(M,)"),
            "in_weight": ((2 * D, M), "(2 D, M)"),
            "in_bias": ((2 * D,), "(2 D,)"),
            "conv_weight": ((D, K), "(D, K)"),
            "conv_bias": ((D,), "(D,)"),
            "x_weight": ((R + 2 * N, D), "(R + 2 N, D)"),
            "dt_weight": ((D, R), "(D, R)"),
            "dt_bias": ((D,), "(D,)"),
            "D": ((D,), "(D,)"),
            "out_weight": ((M, D), "(M, D)"),
            "out_bias": ((M,), "(M,)"),
        }
        given = block._asdict()
        for name, (shape, letters) in shapes.items():
            if given[name] is not None:
                check_shape(name, given[name], shape, letters)
        check_shape("the state of the convolution", conv_state, (batch, D, K - 1), "(B, D, K-1)")
        check_shape("the state of the recurrence", ssm_state, (batch, D, N), "(B, D, N)")
        check_dtype("the state of the recurrence", ssm_state, (block.A_log.dtype,))
        check_devices("residual", residual.device, **given, conv_state=conv_state, ssm_state=ssm_state)
