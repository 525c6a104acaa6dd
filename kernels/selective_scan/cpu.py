"""The selective scan on the CPU: sixteen channels of one sequence at a time, compiled by Numba, spread over threads.

The work is cut into sequences x (D / 16) tasks, each serial over time; sequences are the items of the batch, or those
packed along one length; with fewer tasks than threads some threads stay idle
(D = 128 with batch 1 fills eight). Cutting the length as well would cost every exponential twice, so it is not done.

Long inputs are walked in segments, so that float32 copies of 16-bit inputs and the partial sums of dB and dC stay small
whatever L is; the state passes from one segment to the next. Everything is added up in an order that depends on the
shapes alone: results are the same bits on any number of threads.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_seq.kernels._numba import run_kernel, worker_count
from mamba_seq.kernels._segments import (
    Piece,
    Segment,
    address,
    dense,
    empty,
    is_last_dense,
    last_dense,
    packed_segments,
    pieces_of,
    segments,
    walk,
    zeros,
)
from mamba_seq.kernels._simd import LANES, LOG2E
from mamba_seq.kernels.selective_scan._cpu_complex import COMPLEX_SCRATCH, complex_backward, complex_forward
from mamba_seq.kernels.selective_scan._cpu_kernels import (
    CHUNK,
    SCRATCH,
    STEP_SCRATCH,
    scan_backward,
    scan_forward,
    step_blocks,
)
from mamba_seq.kernels.selective_scan.reference import is_constant

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
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Run the scan.

    Args: as `mamba_seq.kernels.selective_scan`, checked, with B and C (B, L, N), (B, L, G, N) or (D, N).
        keep_for_backward: also keep the state before every CHUNK steps.

    Returns:
        y (B, L, D) in u's type, the final state (B or S, D, N) float32, and for `backward` the kept states (B, blocks,
        chunks, N, 16) float32, see `_Plan`; nothing without `keep_for_backward`.
    """
    batch, length, channels = u.shape
    plan = _Plan.make(u, A, B, C, cu_seqlens)
    groups, rows = plan.groups, plan.rows
    A, B, C = (_as_real(x) for x in (A, B, C))
    kernel = complex_forward if plan.is_complex else scan_forward
    A2, skip, bias = _over_lanes(A * plan.scale(), groups), _pad(D, groups), _pad(delta_bias, groups)
    state = _state_over_lanes(initial_state, plan)
    y = empty(batch, length, channels, dtype=u.dtype)
    kept = empty(*plan.kept_shape) if keep_for_backward else None
    if kept is not None and plan.bounds is not None:
        kept[:, :, plan.used :] = 0  # nobody reads it, but the same call returns the same
    workers = _workers(batch * length * channels * rows)
    scratch = empty(workers, COMPLEX_SCRATCH if plan.is_complex else SCRATCH)

    readable = all(x is None or is_last_dense(x) for x in (u, delta, z))
    for part, pieces in plan.cut(groups * rows if readable else max(channels, groups * rows)):
        us, deltas, zs = _rows(part, u), _rows(part, delta), _rows(part, z)
        Bs, Cs = _columns(part, B, groups), _columns(part, C, groups)
        ys = part.of(y) if y.dtype == _F32 else empty(part.batch, part.steps, channels)
        table = plan.table(pieces)
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
            state.data_ptr(),
            address(kept),
            plan.chunks,
            table.data_ptr(),
            int(B.dim() == 2),
            int(C.dim() == 2),
            int(delta_softplus),
            part.steps,
            channels,
            plan.states,
            groups,
        )
        run_kernel(kernel, arguments, len(pieces) * plan.blocks, scratch)
        if y.dtype != _F32:
            part.of(y).copy_(ys)
    return y, plan.as_given(_from_lanes(state, plan)), () if kept is None else (kept,)


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
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Differentiate the scan: recompute the states chunk by chunk from those kept, then run each chunk in reverse.

    Args: dy (B, L, D) in u's type, dfinal_state (B or S, D, N) float32 or None, and the arguments of `forward`.

    Returns:
        du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state, each like its input; None where the input was None.
    """
    (kept,) = saved
    batch, length, channels = u.shape
    plan = _Plan.make(u, A, B, C, cu_seqlens)
    groups, rows, blocks = plan.groups, plan.rows, plan.blocks
    A, B, C = (_as_real(x) for x in (A, B, C))
    kernel = complex_backward if plan.is_complex else scan_backward
    A2, skip, bias = _over_lanes(A * plan.scale(), groups), _pad(D, groups), _pad(delta_bias, groups)
    dstate = _state_over_lanes(dfinal_state, plan)
    dA = zeros(*dstate.shape)
    dskip, dbias = (zeros(plan.sequences, blocks * LANES) for _ in range(2))
    du, ddelta = (empty(batch, length, channels, dtype=u.dtype) for _ in range(2))
    dz = None if z is None else empty(batch, length, channels, dtype=u.dtype)
    dB, dC = (zeros(*dstate.shape) if x.dim() == 2 else empty(*x.shape, dtype=x.dtype) for x in (B, C))
    workers = _workers(batch * length * channels * rows)
    scratch = empty(workers, COMPLEX_SCRATCH if plan.is_complex else SCRATCH)

    for part, pieces in reversed(plan.cut(max(channels, blocks * rows))):
        dys, us, deltas, zs = _rows(part, dy), _rows(part, u), _rows(part, delta), _rows(part, z)
        Bs, Cs = _columns(part, B, groups), _columns(part, C, groups)
        wholes = [part.of(x) for x in (du, ddelta, dz) if x is not None]
        outputs = wholes if u.dtype == _F32 else [empty(*x.shape) for x in wholes]
        dBs, dCs = (
            total if x.dim() == 2 else empty(part.batch, blocks, rows, part.steps) for total, x in ((dB, B), (dC, C))
        )
        table = plan.table(pieces)
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
            kept.data_ptr(),
            plan.chunks,
            dstate.data_ptr(),
            outputs[0].data_ptr(),
            outputs[1].data_ptr(),
            outputs[-1].data_ptr(),
            outputs[0].stride(0),
            dBs.data_ptr(),
            dCs.data_ptr(),
            dA.data_ptr(),
            dskip.data_ptr(),
            dbias.data_ptr(),
            table.data_ptr(),
            int(B.dim() == 2),
            int(C.dim() == 2),
            int(delta_softplus),
            part.steps,
            channels,
            plan.states,
            groups,
        )
        run_kernel(kernel, arguments, len(pieces) * blocks, scratch)
        for whole, piece in zip(wholes, outputs, strict=True):
            if whole is not piece:
                whole.copy_(piece)
        for whole, piece, x in ((dB, dBs, B), (dC, dCs, C)):
            if x.dim() != 2:
                part.of(whole).copy_(_over_blocks(piece, groups, x.dim()))
    return (
        du,
        ddelta,
        plan.as_given(_total(dA, plan)),
        plan.as_given(_total(dB, plan) if B.dim() == 2 else dB),
        plan.as_given(_total(dC, plan) if C.dim() == 2 else dC),
        None if D is None else _unpad(dskip.sum(0), plan),
        dz,
        None if delta_bias is None else _unpad(dbias.sum(0), plan),
        None if initial_state is None else plan.as_given(_from_lanes(dstate, plan)),
    )


def kept_shapes(u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, ...]]:
    """Return the shapes of what `forward` keeps."""
    batch, length, channels = u.shape
    groups = max(x.shape[2] if x.dim() == 4 else 1 for x in (B, C))
    blocks = groups * -(-(channels // groups) // LANES)
    chunks = -(-length // CHUNK) if cu_seqlens is None else length // CHUNK + cu_seqlens.shape[0] - 1
    return [(batch, blocks, chunks, A.shape[1] * (2 if A.is_complex() else 1), LANES)]


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

    Args: as `mamba_seq.kernels.selective_state_update`, checked.
    """
    if A.is_complex():
        return _complex_update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
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
        *_shared(Bs, u),
        *_shared(Cs, u),
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


def _complex_update(
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
    """Do what `selective_state_update` does as a scan over a single step."""
    now, then, gate = (None if x is None else x[:, None] for x in (u, delta, z))
    B, C = (x if is_constant(x, u) else x[:, None] for x in (B, C))
    assert now is not None
    assert then is not None
    y, after, _ = forward(now, then, A, B, C, D, gate, delta_bias, delta_softplus, state, keep_for_backward=False)
    state.copy_(after)
    return y[:, 0]


def _shared(x: Tensor, u: Tensor) -> tuple[int, int, int, int]:
    """Return address, batch stride, channels a row and stride between rows of a B or C of a single step."""
    channels = u.shape[1]
    if is_constant(x, u):
        return x.data_ptr(), 0, 1, x.stride(0)
    if x.dim() == 2 or x.shape[1] == 1:
        return x.data_ptr(), x.stride(0), channels, 0
    return x.data_ptr(), x.stride(0), channels // x.shape[1], x.stride(1)


class _Plan(NamedTuple):
    """Sizes of a call, and where each of its sequences finds its kept states.

    Kept are the states before every CHUNK steps of a sequence, counted from its start, (B, blocks, chunks, N, 16); of
    sequences that are packed the chunks lie one behind the other.
    """

    batch: int
    length: int
    groups: int
    width: int
    """Channels of a group."""
    states: int
    rows: int
    """Real numbers of a channel's state."""
    bounds: list[int] | None
    chunks: int
    used: int
    """How many of the chunks there are: with packed sequences, room is made for as many as there could be."""
    places: list[int]
    """Where the chunks of every sequence begin, for block 0."""

    @classmethod
    def make(cls, u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None) -> "_Plan":
        batch, length, channels = u.shape
        groups = max(x.shape[2] if x.dim() == 4 else 1 for x in (B, C))
        states = A.shape[1]
        rows = 2 * states if A.is_complex() else states
        width = channels // groups
        if cu_seqlens is None:
            chunks = -(-length // CHUNK)
            apart = groups * -(-width // LANES) * chunks
            return cls(
                batch, length, groups, width, states, rows, None, chunks, chunks, [b * apart for b in range(batch)]
            )
        bounds = cu_seqlens.tolist()
        counts = [-(-(end - start) // CHUNK) for start, end in itertools.pairwise(bounds)]
        *places, used = itertools.accumulate(counts, initial=0)
        chunks = length // CHUNK + len(counts)  # the shape must not depend on where the boundaries are
        return cls(batch, length, groups, width, states, rows, bounds, chunks, used, places)

    @property
    def is_complex(self) -> bool:
        return self.rows != self.states

    def scale(self) -> float | Tensor:
        """Return what A is multiplied with for the kernels: see A2 there."""
        if not self.is_complex:
            return LOG2E
        return torch.tensor([LOG2E, 1.0], dtype=_F32, device="cpu").repeat(self.states)

    def as_given(self, x: Tensor) -> Tensor:
        """Bring the rows of a result (..., 2 N) to complex numbers (..., N) where A is complex."""
        return torch.view_as_complex(x.unflatten(-1, (self.states, 2)).contiguous()) if self.is_complex else x

    @property
    def blocks(self) -> int:
        """Blocks of sixteen channels; none reaches over two groups."""
        return self.groups * -(-self.width // LANES)

    @property
    def sequences(self) -> int:
        return len(self.places)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return self.batch, self.blocks, self.chunks, self.rows, LANES

    def cut(self, width: int) -> list[tuple[Segment, list[Piece]]]:
        """Return the segments of a call of which every step needs `width` floats, each with its pieces."""
        if self.bounds is not None:
            return packed_segments(self.bounds, width, CHUNK)
        return [(part, pieces_of(part)) for part in segments(self.batch, self.length, width, CHUNK)]

    def table(self, pieces: list[Piece]) -> Tensor:
        """Return what the kernels read of the pieces of a segment."""
        rows = [(p.item, p.start, p.steps, p.sequence, self.places[p.sequence] + p.before // CHUNK) for p in pieces]
        return torch.tensor(rows, dtype=torch.int64, device="cpu")


def _as_real(x: Tensor) -> Tensor:
    """Lay complex numbers (..., N) out as (..., 2 N): real part, imaginary part; real ones as they are."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x


def _rows(part: Segment, x: Tensor | None) -> Tensor | None:
    """Return a segment of x (B, L, D) in float32 with channels dense."""
    return None if x is None else last_dense(part.of(x))


def _columns(part: Segment, x: Tensor, groups: int) -> Tensor:
    """Return a segment of B or C in float32 transposed, (B, G, N, L) and dense; a constant one over lanes."""
    return _over_lanes(x, groups) if x.dim() == 2 else part.of(x).movedim(1, -1).to(_F32).contiguous()


def _over_blocks(x: Tensor, groups: int, dim: int) -> Tensor:
    """Add up (B, blocks, N, L) over the blocks of every group: (B, L, N), or (B, L, G, N) where `dim` is 4."""
    if dim == 3:
        return x.sum(1).transpose(1, 2)
    return x.unflatten(1, (groups, -1)).sum(2).movedim(-1, 1)


def _pad(x: Tensor | None, groups: int) -> Tensor | None:
    """Pad (D,) with zeros to whole blocks of lanes in every group."""
    if x is None:
        return None
    width = len(x) // groups
    if width % LANES == 0:
        return x.contiguous()
    return torch.nn.functional.pad(x.unflatten(0, (groups, width)), (0, -width % LANES)).flatten().contiguous()


def _unpad(x: Tensor, plan: _Plan) -> Tensor:
    """Take the padding of `_pad` away again."""
    return x.unflatten(0, (plan.groups, -1))[:, : plan.width].reshape(-1)


def _over_lanes(x: Tensor, groups: int) -> Tensor:
    """Bring (..., D, N) to (..., blocks, N, 16), zeros after the last channel of a group."""
    width = x.shape[-2] // groups
    if width % LANES == 0:  # as in most models; what padding costs would be seen on short sequences
        return x.unflatten(-2, (-1, LANES)).transpose(-1, -2).contiguous()
    padded = torch.nn.functional.pad(x.unflatten(-2, (groups, width)), (0, 0, 0, -width % LANES))
    return padded.flatten(-3, -2).unflatten(-2, (-1, LANES)).transpose(-1, -2).contiguous()


def _state_over_lanes(state: Tensor | None, plan: _Plan) -> Tensor:
    """Return a copy of a state (B or S, D, N) as (B or S, blocks, N, 16); zeros for None."""
    if state is None:
        return zeros(plan.sequences, plan.blocks, plan.rows, LANES)
    state = _as_real(state)
    lanes = _over_lanes(state, plan.groups)
    return lanes.clone() if lanes.data_ptr() == state.data_ptr() else lanes


def _from_lanes(x: Tensor, plan: _Plan) -> Tensor:
    """Bring (S, blocks, N, 16) back to (S, D, N)."""
    if plan.width % LANES == 0:
        return x.transpose(-1, -2).flatten(1, 2)
    channels = x.transpose(-1, -2).flatten(1, 2).unflatten(1, (plan.groups, -1))
    return channels[:, :, : plan.width].flatten(1, 2).contiguous()


def _total(x: Tensor, plan: _Plan) -> Tensor:
    """Add up (S, blocks, N, 16) over the sequences and bring the sum to (D, N)."""
    return _from_lanes(x.sum(0, keepdim=True), plan)[0]


def _workers(updates: int) -> int:
    return 1 if updates < _SERIAL_UPDATES else worker_count()
