"""The time-invariant state-space operator (S4D): a diagonal recurrence whose parameters do not depend on the input.

So the whole sequence is one convolution, and a step is a multiply-add: two methods, one contract. Read `reference.py`
first, it is the definition; `convolution.py` is the same by FFT; `discretisation.py` goes from continuous to discrete
time, and `initialisation.py` has the published state matrices.
"""

import torch
from torch import Tensor

from mamba_seq.kernels.time_invariant_scan.checks import check_time_invariant_scan, check_time_invariant_update
from mamba_seq.kernels.time_invariant_scan.convolution import convolution_scan, ssm_kernel
from mamba_seq.kernels.time_invariant_scan.reference import (
    recurrence_scan,
    recurrence_update,
    skip_and_gate,
    step_parameters,
)

__all__ = ["ssm_kernel", "step_parameters", "time_invariant_scan", "time_invariant_update"]

# Below this length the loop over steps takes no more time than the transforms, forward and backward together.
SHORTEST_CONVOLUTION = 4


def time_invariant_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    discretisation: str = "zoh",
    method: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the time-invariant state-space recurrence over a sequence (S4D, arXiv 2206.11893, section 3).

        h_t = Abar h_(t-1) + Bbar u_t ;  y_t = C h_t + D u_t, for complex A 2 Re(C h_t) + D u_t ;  y_t = y_t * silu(z_t)

    with Abar = exp(delta A), and Bbar as `discretisation` says. With "euler" this is `selective_scan` with delta, B and
    C constant over time.

    Args:
        u: input (B, L, D); float32, float16 or bfloat16, computed in float32, or float64, computed in float64.
        delta: step size of each channel (D,), positive; float32 (float64 beside a float64 u, as all that follow).
        A: state matrix, diagonal per channel (D, N); float32 or complex64. Re A < 0 for a state that forgets.
        B: input projection (D, N), in A's type.
        C: output projection (D, N), in A's type.
        D: skip connection (D,) float32.
        z: gate (B, L, D) in u's type.
        initial_state: (B, D, N) in A's type. Zero when None.
        return_final_state: also return the state after the last step.
        discretisation: "zoh", exact for an input that is constant during a step: Bbar = (exp(delta A) - 1) / A B; or
            "euler" as in Mamba: Bbar = delta B.
        method: "convolution", by FFT, with memory of O(B D L + D N sqrt(B L)); or "recurrence", step by step, with
            O(B D N L) under autograd; None takes the faster one for the length. The two agree to rounding, but the
            rounding error of a transform is spread over the whole sequence, earlier steps included, as is a NaN or an
            infinity in u; and products of tables, float32, follow torch.set_float32_matmul_precision.

    Returns:
        y (B, L, D) in u's type; with `return_final_state` also the state (B, D, N). Differentiable in every float
        input, the states included. With L = 0, y is empty and the state the initial one.

    Raises:
        ValueError: for shapes, types, devices or names outside the contract, naming the argument.
    """
    length = check_time_invariant_scan(u, delta, A, B, C, D, z, initial_state, discretisation, method)
    if method is None:
        method = "recurrence" if length < SHORTEST_CONVOLUTION else "convolution"
    run = recurrence_scan if method == "recurrence" or length == 0 else convolution_scan
    # the products of tables of powers are matrix products, which autocast would round to 16 bits
    with torch.autocast(u.device.type, enabled=False):
        y, final_state = run(u, delta, A, B, C, initial_state, return_final_state, discretisation)
        y = skip_and_gate(y, u, D, z)
    return (y, final_state) if return_final_state else y


@torch.no_grad()
def time_invariant_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    discretisation: str = "zoh",
    parameters: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Advance the recurrence of `time_invariant_scan` by one step, changing `state` in place; no gradient.

    Args:
        state: (B, D, N) in A's type; overwritten with the next state.
        u: input of this step (B, D).
        delta: step size of each channel (D,).
        A: (D, N) float32 or complex64.
        B: (D, N) in A's type.
        C: (D, N) in A's type.
        D: skip connection (D,) float32.
        z: gate (B, D) in u's type.
        discretisation: "zoh" or "euler", as in `time_invariant_scan`.
        parameters: what `step_parameters(delta, A, B, discretisation)` returned, to be computed once for many steps: it
            takes longer than the step itself. delta, A, B and discretisation are then only checked.

    Returns:
        y (B, D) in u's type.

    Raises:
        ValueError: for shapes, types, devices or names outside the contract, naming the argument.
    """
    check_time_invariant_update(state, u, delta, A, B, C, D, z, discretisation, parameters)
    change, weight = step_parameters(delta, A, B, discretisation) if parameters is None else parameters
    return skip_and_gate(recurrence_update(state, u, change, weight, C), u, D, z)
