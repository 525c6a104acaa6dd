"""The time-invariant scan over sequences of different lengths: padded, or packed.

A selective block skips a masked position with a step size of 0. Here the step size is the same everywhere, so a state
goes on through padding, and zeros as input are not enough where there was a state before the padding, or where the
state after it is wanted. But moving a row along the length changes nothing, so that

    outputs       come from rows moved to the start, with the initial state right in front of them;
    final states  from rows moved to the end, plus the initial state after as many steps as there are real positions.

Packed sequences are cut out into a few padded batches, of similar lengths each, and go the same way.

Shapes: B batch, L length, D channels, N state size, S packed sequences.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels import time_invariant_scan
from mamba_seq.padding import end_position, first_position, lengths_of, shift_left


class Parameters(NamedTuple):
    """What the recurrence is made of, in the order in which the operators take it."""

    delta: Tensor
    """Step size of each channel (D,)."""
    A: Tensor
    """(D, N), real or complex."""
    B: Tensor
    """(D, N), in A's type."""
    C: Tensor
    """(D, N), in A's type."""
    D: Tensor
    """(D,)."""


Result = tuple[Tensor, Tensor | None]
"""y (B, L, D) in u's type, and the state after the last real position (B or S, D, N) if it was asked for."""


def scan_whole(
    u: Tensor, z: Tensor, parameters: Parameters, initial_state: Tensor | None, return_state: bool
) -> Result:
    """Scan sequences that fill u (B, L, D), with the gate z (B, L, D)."""
    result = time_invariant_scan(u, *parameters, z, initial_state, return_state)
    return cast("Result", result if return_state else (result, None))


def scan_padded(
    u: Tensor, z: Tensor, parameters: Parameters, mask: Tensor, initial_state: Tensor | None, return_state: bool
) -> Result:
    """Scan the run of true positions in every row of `mask` (B, L); otherwise as `scan_whole`."""
    u = u.masked_fill(~mask[..., None], 0)
    if initial_state is None and not return_state:
        return scan_whole(u, z, parameters, None, False)  # there is no state before the padding, and none is wanted
    y, state = _scan_runs(u, parameters, first_position(mask), end_position(mask), initial_state, return_state)
    return y * F.silu(z), state


def scan_packed(
    u: Tensor, z: Tensor, parameters: Parameters, cu_seqlens: Tensor, initial_state: Tensor | None, return_state: bool
) -> Result:
    """Scan S sequences laid end to end in u (1, L, D), with the boundaries `cu_seqlens`; states are (S, D, N)."""
    lengths = lengths_of(cu_seqlens)
    similar: dict[int, list[int]] = {}
    for sequence, length in enumerate(lengths):
        similar.setdefault(length.bit_length(), []).append(sequence)  # the longest is less than twice the shortest
    found: list[Tensor] = []
    places: list[Tensor] = []
    states: list[Tensor] = []
    for sequences in similar.values():
        rows = torch.tensor(sequences, device=u.device)
        width = max(lengths[sequence] for sequence in sequences)
        end = cu_seqlens.diff().long()[rows]
        inside = torch.arange(width, device=u.device) < end[:, None]  # (rows, width)
        place = (cu_seqlens[rows].long()[:, None] + torch.arange(width, device=u.device)).masked_fill(~inside, 0)
        padded = u[0].index_select(0, place.flatten()).view(len(sequences), width, -1)
        before = None if initial_state is None else initial_state.index_select(0, rows)
        padded = padded.masked_fill(~inside[..., None], 0)
        y, state = _scan_runs(padded, parameters, torch.zeros_like(end), end, before, return_state)
        kept = torch.cat(
            [torch.arange(i * width, i * width + lengths[sequence]) for i, sequence in enumerate(sequences)]
        ).to(u.device)
        found.append(y.flatten(0, 1).index_select(0, kept))
        places.append(place.flatten().index_select(0, kept))
        if state is not None:
            states.append(state)
    y = torch.cat(found).index_select(0, torch.cat(places).argsort())[None] * F.silu(z)
    if not return_state:
        return y, None
    order = torch.tensor([sequence for sequences in similar.values() for sequence in sequences], device=u.device)
    return y, torch.cat(states).index_select(0, order.argsort())


def _scan_runs(
    u: Tensor, parameters: Parameters, start: Tensor, end: Tensor, initial_state: Tensor | None, return_state: bool
) -> Result:
    """Scan positions `start` to `end` (B,) of every row of u (B, L, D), which is 0 elsewhere; y has no gate yet."""
    if u.shape[1] == 0:
        y, state = time_invariant_scan(u, *parameters, initial_state=initial_state, return_final_state=True)
        return y, state if return_state else None
    state = None
    if return_state:
        y, state = time_invariant_scan(shift_left(u, end), *parameters, return_final_state=True)
        if initial_state is None:
            return shift_left(y, -end), state
        state = state + decayed(initial_state, parameters, end - start)
    y = cast("Tensor", time_invariant_scan(shift_left(u, start), *parameters, initial_state=initial_state))
    return shift_left(y, -start), state


def decayed(state: Tensor, parameters: Parameters, steps: Tensor) -> Tensor:
    """Return what is left of a state (B, D, N) after `steps` (B,) without input; in double precision on the way."""
    log_decay = parameters.delta.double()[:, None] * parameters.A.to(
        torch.complex128 if parameters.A.is_complex() else torch.float64
    )
    return (torch.exp(steps[:, None, None] * log_decay) * state).to(state.dtype)
