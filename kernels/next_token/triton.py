"""The launch of what follows a step; see `_triton_kernels.py`.

Shapes: B batch, V vocabulary, M width, n new tokens.
"""

import torch
import triton
from torch import Tensor

from mamba_seq.kernels._dispatch import multiprocessor_count
from mamba_seq.kernels.next_token import _triton_kernels

MOST_TOKENS = 1024  # of a vocabulary
MOST_ORDERED = 256  # where only the likely ones are drawn
TILE = 32768  # elements of the output matrix that a program holds at a time
WIDEST = 2048
NO_TOP_P = 2.0  # more than all probabilities sum to
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_not(batch: int, weight: Tensor, embedding: Tensor, keeps_some: bool) -> str | None:
    """Give the reason that the kernel does not read logits with `weight` (V, M) and tokens with `embedding`, or None.

    Args:
        batch: how many sequences.
        weight: of the logits.
        embedding: (V, M), of what a step reads.
        keeps_some: whether top_k or top_p rule tokens out.
    """
    V, M = weight.shape
    if weight.dtype not in TYPES or embedding.dtype not in TYPES:
        return "weights of such a type run in separate operators"
    if not weight.is_contiguous() or not embedding.is_contiguous():
        return "a matrix is not contiguous"
    if M > WIDEST or (MOST_ORDERED if keeps_some else MOST_TOKENS) < V or embedding.shape != weight.shape:
        return "the vocabulary or the width is not small"
    if weight.device.type == "cuda" and batch > multiprocessor_count(weight.device):
        return "each sequence reads the whole matrix: a product over all of them is faster"
    return None


def next_token(
    tokens: Tensor,
    hidden: Tensor,
    history: Tensor,
    positions: Tensor,
    ended: Tensor,
    out: Tensor,
    weight: Tensor,
    embedding: Tensor,
    sampling: tuple[float, int | None, float | None],
    noise: Tensor | None,
    stop_token: int | None,
) -> None:
    """Draw a token of each sequence and note it, for cases that `why_not` lets through.

    Args:
        tokens: written (B,) int64.
        hidden: written (B, M): the tokens' rows of `embedding`.
        history: (B, n) int64, written at `positions`.
        positions: (B,) int64, counted up.
        ended: bool (B,), whose sequences repeat `stop_token`; true from there on.
        out: the step's outputs (B, M).
        weight: (V, M), of the logits.
        embedding: (V, M).
        sampling: temperature, top_k and top_p.
        noise: exponential random numbers (B, V) float32; None at temperature 0.
        stop_token: as of `generate`.
    """
    V, M = weight.shape
    temperature, top_k, top_p = sampling
    V_padded, some = triton.next_power_of_2(V), keeps_some(sampling, V)
    inverse_temperature = 0.0 if temperature == 0 else 1.0 / temperature
    p = NO_TOP_P if top_p is None or top_p == 1 else float(top_p)
    stop = -1 if stop_token is None else stop_token
    with torch.cuda.device_of(weight):
        _triton_kernels.next_token[(len(out),)](
            tokens, hidden, history, positions, ended.view(torch.int8), out, weight, embedding, noise,
            history.stride(0), history.shape[1], inverse_temperature, float(min(top_k or V, V)), p, stop,
            V=V, M=M, V_PADDED=V_padded, M_PADDED=triton.next_power_of_2(M),
            CHUNK=max(16, min(triton.next_power_of_2(M), TILE // V_padded)),
            DRAWN=noise is not None, KEEPS_SOME=some, HAS_STOP=stop_token is not None,
            num_warps=16 if V_padded * max(M, V_padded if some else 1) >= TILE else 8,
        )  # fmt: skip


def keeps_some(sampling: tuple[float, int | None, float | None], V: int) -> bool:
    """Tell whether top_k or top_p rule tokens out."""
    temperature, top_k, top_p = sampling
    return temperature != 0 and ((top_k is not None and top_k < V) or (top_p is not None and top_p < 1))
