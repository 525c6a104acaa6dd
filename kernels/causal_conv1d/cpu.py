"""The causal convolution on the CPU: stretches of time side by side on threads, compiled by Numba.

Inputs of 16 bits are walked in segments, so that their float32 copies stay small whatever L is. Sums over time are
added up in an order that depends on the shapes alone: results are the same bits on any number of threads.
"""

import functools
import itertools

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
from mamba_seq.kernels._simd import LANES
from mamba_seq.kernels.causal_conv1d._cpu_kernels import ROWS, conv_backward, conv_forward, conv_step

_SERIAL_ELEMENTS = 1 << 16
"""B L D below which more threads cost more than they bring."""

_STRETCHES = 8192
"""Stretches of packed sequences whose partial sums are in memory at a time."""

_F32 = torch.float32


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Convolve; arguments as `mamba_seq.kernels.causal_conv1d`, checked. Returns y (B, L, D) in x's type."""
    batch, length, channels = x.shape
    K = weight.shape[1]
    taps, offset = _over_lanes(weight), _pad(bias)
    y = empty(batch, length, channels, dtype=x.dtype)
    workers = _workers(x)
    scratch = empty(workers, LANES)
    for part, pieces in _parts(x, cu_seqlens):
        xs, history = last_dense(part.of(x)), _history(x, initial_state, K, part, pieces)
        stretches = _stretches(tuple(pieces), tuple(p.steps for p in pieces))
        ys = part.of(y) if y.dtype == _F32 else empty(part.batch, part.steps, channels)
        arguments = (
            *walk(xs),
            history.data_ptr(),
            taps.data_ptr(),
            address(offset),
            *walk(ys),
            int(activation == "silu"),
            stretches.data_ptr(),
            channels,
            K,
        )
        run_kernel(conv_forward, arguments, len(stretches), scratch)
        if y.dtype != _F32:
            part.of(y).copy_(ys)
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
    dx: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Differentiate `forward`, recomputing what was before the activation; dx is written to its argument if given.

    Returns:
        dx, dweight, dbias, dinitial_state, each like its input; None where the input was None.
    """
    batch, length, channels = x.shape
    K = weight.shape[1]
    taps, offset = _over_lanes(weight), _pad(bias)
    dx = empty(batch, length, channels, dtype=x.dtype) if dx is None else dx
    dhistory = None if initial_state is None else empty(len(initial_state), K - 1, channels)
    sums = zeros(K + 1, taps.shape[1])
    workers = _workers(x)
    scratch = empty(workers, (ROWS + K) * LANES)
    for part, pieces in _parts(x, cu_seqlens):
        ahead = part._replace(t1=min(part.t1 + K - 1, length))  # the outputs that the last rows of this part reach
        xs, dys, history = (
            last_dense(ahead.of(x)),
            last_dense(ahead.of(dy)),
            _history(x, initial_state, K, part, pieces),
        )
        dxs = part.of(dx) if dx.dtype == _F32 else empty(part.batch, part.steps, channels)
        table = _stretches(tuple(pieces), tuple(_seen(pieces, part, ahead, cu_seqlens)))
        # sequences of a step or two would need as much memory for their sums as for x: these are added up in between
        for stretches in table.split(max(1, len(table) if cu_seqlens is None else _STRETCHES)):
            dweights = empty(len(stretches), *sums.shape)
            arguments = (
                *walk(dys),
                *walk(xs),
                history.data_ptr(),
                taps.data_ptr(),
                address(offset),
                *walk(dxs),
                0 if dhistory is None else dhistory[pieces[0].sequence :].data_ptr(),
                dweights.data_ptr(),
                int(activation == "silu"),
                stretches.data_ptr(),
                channels,
                K,
            )
            run_kernel(conv_backward, arguments, len(stretches), scratch)
            sums += dweights.sum(0)
        if dx.dtype != _F32:
            part.of(dx).copy_(dxs)
    return (
        dx,
        sums[:K, :channels].t().to(weight.dtype).contiguous(),
        None if bias is None else sums[K, :channels].to(bias.dtype),
        None if dhistory is None else dhistory.transpose(1, 2).to(x.dtype).contiguous(),
    )


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Convolve one step x (B, D), shifting it into `state` (B, D, K-1) in place. Returns y (B, D) in x's type."""
    batch, channels = x.shape
    K = weight.shape[1]
    xs, window, taps = last_dense(x), dense(state), dense(weight)
    offset = None if bias is None else dense(bias)
    y = empty(batch, channels)
    workers = 1 if y.numel() * K < _SERIAL_ELEMENTS else worker_count()
    scratch = empty(workers, 2 * LANES)
    arguments = (
        xs.data_ptr(),
        xs.stride(0),
        window.data_ptr(),
        taps.data_ptr(),
        address(offset),
        y.data_ptr(),
        int(activation == "silu"),
        channels,
        K,
    )
    run_kernel(conv_step, arguments, batch * -(-channels // LANES), scratch)
    if window is not state:
        state.detach().copy_(window)
    return y.to(x.dtype)


def _parts(x: Tensor, cu_seqlens: Tensor | None) -> list[tuple[Segment, list[Piece]]]:
    """Cut x only where it has to be copied; every part comes with its pieces of sequences."""
    batch, length, channels = x.shape
    if cu_seqlens is not None and not is_last_dense(x):
        return packed_segments(cu_seqlens.tolist(), channels, ROWS)
    if cu_seqlens is not None:
        bounds = itertools.pairwise(cu_seqlens.tolist())
        return [(Segment(0, 1, 0, length), [Piece(0, a, b - a, s, 0) for s, (a, b) in enumerate(bounds)])]
    parts = [Segment(0, batch, 0, length)] if is_last_dense(x) else segments(batch, length, channels, ROWS)
    return [(part, pieces_of(part)) for part in parts if part.batch]


@functools.lru_cache(maxsize=8)  # every layer of a model asks for the same
def _stretches(pieces: tuple[Piece, ...], seen: tuple[int, ...]) -> Tensor:
    """Return the table of the kernels: every piece cut into stretches of ROWS steps."""
    whole = torch.tensor([(p.item, p.start, p.steps, p.before == 0) for p in pieces], dtype=torch.int64, device="cpu")
    counts = (whole[:, 2] + ROWS - 1) // ROWS
    which = torch.repeat_interleave(counts)
    starts = (torch.arange(len(which), device="cpu") - (counts.cumsum(0) - counts)[which]) * ROWS
    ends = torch.minimum(starts + ROWS, whole[which, 2])
    visible = torch.tensor(seen, dtype=torch.int64, device="cpu")[which]
    return torch.stack([whole[which, 0], whole[which, 1], starts, ends, visible, which, whole[which, 3]], dim=1)


def _seen(pieces: list[Piece], part: Segment, ahead: Segment, cu_seqlens: Tensor | None) -> list[int]:
    """Return how many steps of every piece's sequence can be read, those after the piece included."""
    if cu_seqlens is None:
        return [ahead.steps] * len(pieces)
    ends = cu_seqlens[1:].tolist()
    return [min(ends[p.sequence], ahead.t1) - part.t0 - p.start for p in pieces]


def _history(x: Tensor, initial_state: Tensor | None, K: int, part: Segment, pieces: list[Piece]) -> Tensor:
    """Return the K - 1 rows before every piece, oldest first, (pieces, K-1, D) float32."""
    first, last = pieces[0].sequence, pieces[-1].sequence + 1
    if initial_state is None:
        before = zeros(last - first, K - 1, x.shape[2])
    else:
        before = initial_state[first:last].transpose(1, 2).to(_F32)
    known = min(K - 1, pieces[0].before)  # only pieces that come first in a part have steps of their own before them
    if not known:
        return before.contiguous()
    going_on = sum(p.before > 0 for p in pieces)
    inside = x[part.b0 : part.b1, part.t0 - known : part.t0].to(_F32)
    return torch.cat([torch.cat([before[:going_on, known:], inside], dim=1), before[going_on:]]).contiguous()


def _over_lanes(weight: Tensor) -> Tensor:
    """Bring (D, K) to (K, P) float32, P being D rounded up to whole blocks of lanes."""
    weight = weight.to(_F32)
    if missing := -weight.shape[0] % LANES:
        weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
    return weight.t().contiguous()


def _pad(bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    missing = -len(bias) % LANES
    return (torch.nn.functional.pad(bias.to(_F32), (0, missing)) if missing else bias.to(_F32)).contiguous()


def _workers(x: Tensor) -> int:
    return 1 if x.numel() < _SERIAL_ELEMENTS else worker_count()
