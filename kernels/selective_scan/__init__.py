"""The selective scan (S6): one operator, three implementations, one contract.

Read `reference.py` first, it is the definition. `cpu.py` (Numba) and `triton.py` compute the same in compiled code,
with their own backward; `function.py` binds those two to autograd, `library.py` to torch.library.
"""

import torch
from torch import Tensor

from mamba_seq.kernels._checks import check_boundaries, check_selective_scan
from mamba_seq.kernels._dispatch import choose
from mamba_seq.kernels._library import exports, is_traced, wants_gradient
from mamba_seq.kernels.selective_scan.exportable import selective_scan_exportable
from mamba_seq.kernels.selective_scan.function import SelectiveScan, run
from mamba_seq.kernels.selective_scan.library import SCAN, UPDATE, update
from mamba_seq.kernels.selective_scan.reference import selective_scan_reference
from mamba_seq.kernels.selective_scan.step import check_step

__all__ = ["selective_scan", "selective_state_update"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence over a sequence (Mamba, arXiv 2312.00752, eq. 2 and Algorithm 2).

        h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t ;  y_t = C_t h_t + D u_t, 2 Re(C_t h_t) + D u_t for complex A
        y_t = y_t * silu(z_t)

    Args:
        u: input (B, L, D); float32, float16 or bfloat16 (float64 on the reference). Computed in float32.
        delta: step sizes before bias and softplus (B, L, D), in u's type.
        A: state matrix, diagonal per channel (D, N); float32 or complex64.
        B: input projection (B, L, N), or (B, L, G, N) with G groups of D / G channels, in u's type; constant over time:
            (D, N) float32. complex64 when A is.
        C: output projection, like B.
        D: skip connection (D,) float32.
        z: gate (B, L, D) in u's type.
        delta_bias: (D,) float32, added to delta.
        delta_softplus: pass delta through softplus after the bias.
        initial_state: (B, D, N), or (S, D, N) when packed; A's type. Zero when None.
        cu_seqlens: boundaries (S+1,) int32 of S sequences packed along L with batch 1; the state starts anew at each.
        return_final_state: also return the state after the last step.
        backend: "reference", "cpu" or "triton"; None chooses by device and case.

    Returns:
        y (B, L, D) in u's type; with `return_final_state` also the state (B, D, N), or (S, D, N) when packed.
        Differentiable in every float input, the states included. With L = 0, y is empty and the state the initial one.

    Raises:
        ValueError: for shapes, types or devices outside the contract, naming the argument.
        RuntimeError: when a named backend cannot run the case.
    """
    check_selective_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens)
    keep = wants_gradient(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if exports():
        y, final_state = selective_scan_exportable(*arguments)
        return (y, final_state) if return_final_state else y
    if is_traced():
        y, final_state, _ = SCAN(*arguments, backend, keep)
        return (y, final_state) if return_final_state else y
    if cu_seqlens is not None:
        check_boundaries(cu_seqlens, u.shape[1])
    chosen = choose("selective_scan", backend, u)
    if chosen == "reference" or u.shape[1] == 0:
        y, final_state = selective_scan_reference(*arguments)
    else:
        scan = SelectiveScan.apply if keep else run  # autograd's machinery is a fifth of a short call's time
        y, final_state, _ = scan(*arguments, chosen, keep)
    return (y, final_state) if return_final_state else y


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Advance the recurrence of `selective_scan` by one step, changing `state` in place; no gradient.

    Args:
        state: (B, D, N) in A's type; overwritten with the next state.
        u: input of this step (B, D).
        delta: (B, D), in u's type.
        A: (D, N) float32 or complex64.
        B: (B, N), (B, G, N), or (D, N) constant over time (a matrix is read as (B, N) where the batch equals D).
        C: like B.
        D: skip connection (D,) float32.
        z: gate (B, D).
        delta_bias: (D,) float32.
        delta_softplus: pass delta through softplus after the bias.
        backend: as in `selective_scan`.

    Returns:
        y (B, D) in u's type.

    Raises:
        ValueError: for shapes or types outside the contract, naming the argument.
        RuntimeError: when a named backend cannot run the case.
    """
    check_step(state, u, delta, A, B, C, D, z, delta_bias)
    step = UPDATE if is_traced() else update
    return step(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend)
