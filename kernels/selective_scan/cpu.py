"""The selective scan on the CPU: sixteen channels of one sequence at a time, compiled by Numba, spread over threads.

The work is cut into batch x (D / 16) tasks, each serial over time; with fewer tasks than threads some threads stay idle
(D = 128 with batch 1 fills eight). Cutting the length as well would cost every exponential twice, so it is not done.

Long inputs are walked in segments, so that float32 copies of 16-bit inputs and the partial sums of dB and dC stay small
whatever L is; the state passes from one segment to the next. Everything is added up in an order that depends on the
shapes alone: results are the same bits on any number of threads.
"""

import torch
from torch import Tensor

from mamba_seq.kernels._numba import run_kernel, worker_count
from mamba_seq.kernels._segments import Segment, address, dense, empty, is_last_dense, last_dense, segments, walk, zeros
from mamba_seq.kernels._simd import LANES, LOG2E
from mamba_seq.kernels.selective_scan._cpu_kernels import (
    CHUNK,
    SCRATCH,
    STEP_SCRATCH,
    scan_backward,
    scan_forward,
    step_blocks,
)

_SERIAL_UPDATES = 1 << 16
"""State updates below which more threads cost more than they bring (some 40 microseconds of work)."""

_F32 = torch.float32


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Run the scan.

    Args: as `mamba_seq.kernels.selective_scan`, checked, with B and C (B, L, N).
        keep_for_backward: also keep the state before every CHUNK steps.

    Returns:
        y (B, L, D) in u's type, the final state (B, D, N) float32, and for `backward` the kept states (B, D / 16,
        L / CHUNK, N, 16) float32, both quotients rounded up; nothing without `keep_for_backward`.
    """
    batch, length, channels = u.shape
    n_state = A.shape[1]
    blocks, chunks = -(-channels // LANES), -(-length // CHUNK)
    A2, skip, bias = _over_lanes(A * LOG2E), _pad(D), _pad(delta_bias)
    state = _state_over_lanes(initial_state, batch, blocks, n_state)
    y = empty(batch, length, channels, dtype=u.dtype)
    kept = empty(batch, blocks, chunks, n_state, LANES) if keep_for_backward else None
    workers = _workers(batch * length * channels * n_state)
    scratch = empty(workers, SCRATCH)

    readable = all(x is None or is_last_dense(x) for x in (u, delta, z))
    for part in segments(batch, length, n_state if readable else channels, CHUNK):
        us, deltas, zs = _rows(part, u), _rows(part, delta), _rows(part, z)
        Bs, Cs = _columns(part, B), _columns(part, C)
        ys = part.of(y) if y.dtype == _F32 else empty(part.batch, part.steps, channels)
        arguments = (
            *walk(us),
            *walk(deltas),
            *walk(zs),
            Bs.data_ptr(),
            Cs.data_ptr(),
            *walk(ys),
            A2.data_ptr(),
            address(skip),
            address(bias),
            state[part.b0].data_ptr(),
            0 if kept is None else kept[part.b0, 0, part.t0 // CHUNK].data_ptr(),
            chunks,
            int(delta_softplus),
            part.steps,
            channels,
            n_state,
        )
        run_kernel(scan_forward, arguments, part.batch * blocks, scratch)
        if y.dtype != _F32:
            part.of(y).copy_(ys)
    return y, _from_lanes(state, channels), () if kept is None else (kept,)


def backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    saved: tuple[Tensor, ...],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Differentiate the scan: recompute the states chunk by chunk from those kept, then run each chunk in reverse.

    Args: dy (B, L, D) in u's type, dfinal_state (B, D, N) float32 or None, and the arguments of `forward`.

    Returns:
        du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state, each like its input; None where the input was None.
    """
    (kept,) = saved
    batch, length, channels = u.shape
    n_state = A.shape[1]
    blocks, chunks = kept.shape[1:3]
    A2, skip, bias = _over_lanes(A * LOG2E), _pad(D), _pad(delta_bias)
    dstate = _state_over_lanes(dfinal_state, batch, blocks, n_state)
    dA = zeros(batch, blocks, n_state, LANES)
    dskip, dbias = (zeros(batch, blocks * LANES) for _ in range(2))
    du, ddelta = (empty(batch, length, channels, dtype=u.dtype) for _ in range(2))
    dz = None if z is None else empty(batch, length, channels, dtype=u.dtype)
    dB, dC = (empty(batch, length, n_state, dtype=u.dtype) for _ in range(2))
    workers = _workers(batch * length * channels * n_state)
    scratch = empty(workers, SCRATCH)

    for part in reversed(segments(batch, length, max(channels, blocks * n_state), CHUNK)):
        dys, us, deltas, zs = _rows(part, dy), _rows(part, u), _rows(part, delta), _rows(part, z)
        Bs, Cs = _columns(part, B), _columns(part, C)
        wholes = [part.of(x) for x in (du, ddelta, dz) if x is not None]
        outputs = wholes if u.dtype == _F32 else [empty(*x.shape) for x in wholes]
        dBs, dCs = (empty(part.batch, blocks, n_state, part.steps) for _ in range(2))
        arguments = (
            *walk(dys),
            *walk(us),
            *walk(deltas),
            *walk(zs),
            Bs.data_ptr(),
            Cs.data_ptr(),
            A2.data_ptr(),
            address(skip),
            address(bias),
            kept[part.b0, 0, part.t0 // CHUNK].data_ptr(),
            chunks,
            dstate[part.b0].data_ptr(),
            outputs[0].data_ptr(),
            outputs[1].data_ptr(),
            outputs[-1].data_ptr(),
            outputs[0].stride(0),
            dBs.data_ptr(),
            dCs.data_ptr(),
            dA[part.b0].data_ptr(),
            dskip[part.b0].data_ptr(),
            dbias[part.b0].data_ptr(),
            int(delta_softplus),
            part.steps,
            channels,
            n_state,
        )
        run_kernel(scan_backward, arguments, part.batch * blocks, scratch)
        for whole, piece in zip(wholes, outputs, strict=True):
            if whole is not piece:
                whole.copy_(piece)
        for whole, piece in ((dB, dBs), (dC, dCs)):
            part.of(whole).copy_(piece.sum(1).transpose(1, 2))
    return (
        du,
        ddelta,
        _from_lanes(dA.sum(0, keepdim=True), channels)[0],
        dB,
        dC,
        None if D is None else dskip.sum(0)[:channels],
        dz,
        None if delta_bias is None else dbias.sum(0)[:channels],
        None if initial_state is None else _from_lanes(dstate, channels),
    )


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Advance `state` (B, D, N) in place by one step and return y (B, D) in u's type.

    Args: as `mamba_seq.kernels.selective_state_update`, checked, with B and C (B, N) or (B, 1, N).
    """
    batch, channels = u.shape
    n_state = A.shape[1]
    us, deltas, Bs, Cs = last_dense(u), last_dense(delta), last_dense(B), last_dense(C)
    zs, skip, bias = (None if x is None else last_dense(x) for x in (z, D, delta_bias))
    As, h = dense(A), dense(state)
    y = empty(batch, channels)
    workers = _workers(batch * channels * n_state)
    scratch = empty(workers, STEP_SCRATCH)
    arguments = (
        h.data_ptr(),
        us.data_ptr(),
        us.stride(0),
        deltas.data_ptr(),
        deltas.stride(0),
        address(zs),
        0 if zs is None else zs.stride(0),
        As.data_ptr(),
        Bs.data_ptr(),
        Bs.stride(0),
        Cs.data_ptr(),
        Cs.stride(0),
        y.data_ptr(),
        address(skip),
        address(bias),
        int(delta_softplus),
        channels,
        n_state,
    )
    run_kernel(step_blocks, arguments, batch * -(-channels // LANES), scratch)
    if h is not state:
        state.detach().copy_(h)
    return y.to(u.dtype)


def _rows(part: Segment, x: Tensor | None) -> Tensor | None:
    """Return a segment of x (B, L, D) in float32 with channels dense."""
    return None if x is None else last_dense(part.of(x))


def _columns(part: Segment, x: Tensor) -> Tensor:
    """Return a segment of x (B, L, N) in float32 transposed, (B, N, L) and dense."""
    return part.of(x).transpose(1, 2).to(_F32).contiguous()


def _pad(x: Tensor | None) -> Tensor | None:
    """Pad (D,) with zeros to whole blocks of lanes."""
    return None if x is None else torch.nn.functional.pad(x, (0, -len(x) % LANES)).contiguous()


def _over_lanes(x: Tensor) -> Tensor:
    """Bring (..., D, N) to (..., D / 16, N, 16), zeros after the last channel."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % LANES))
    return padded.unflatten(-2, (-1, LANES)).transpose(-1, -2).contiguous()


def _state_over_lanes(state: Tensor | None, batch: int, blocks: int, n_state: int) -> Tensor:
    """Return a copy of a state (B, D, N) as (B, D / 16, N, 16); zeros for None."""
    if state is None:
        return zeros(batch, blocks, n_state, LANES)
    lanes = _over_lanes(state)
    return lanes.clone() if lanes.data_ptr() == state.data_ptr() else lanes


def _from_lanes(x: Tensor, channels: int) -> Tensor:
    """Bring (B, D / 16, N, 16) back to (B, D, N)."""
    return x.transpose(-1, -2).flatten(1, 2)[:, :channels].contiguous()


def _workers(updates: int) -> int:
    return 1 if updates < _SERIAL_UPDATES else worker_count()
