"""The causal convolution on the CPU: stretches of time side by side on threads, compiled by Numba.

Inputs of 16 bits are walked in segments, so that their float32 copies stay small whatever L is. Sums over time are
added up in an order that depends on the shapes alone: results are the same bits on any number of threads.
"""

import torch
from torch import Tensor

from mamba_seq.kernels._numba import run_kernel, worker_count
from mamba_seq.kernels._segments import Segment, address, dense, empty, is_last_dense, last_dense, segments, walk, zeros
from mamba_seq.kernels._simd import LANES
from mamba_seq.kernels.causal_conv1d._cpu_kernels import ROWS, conv_backward, conv_forward, conv_step

_SERIAL_ELEMENTS = 1 << 16
"""B L D below which more threads cost more than they bring."""

_F32 = torch.float32


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, initial_state: Tensor | None
) -> Tensor:
    """Convolve; arguments as `mamba_seq.kernels.causal_conv1d`, checked. Returns y (B, L, D) in x's type."""
    batch, length, channels = x.shape
    K = weight.shape[1]
    taps, offset = _over_lanes(weight), _pad(bias)
    y = empty(batch, length, channels, dtype=x.dtype)
    workers = _workers(x)
    scratch = empty(workers, LANES)
    for part in _parts(x):
        xs, history = last_dense(part.of(x)), _history(x, initial_state, K, part)
        ys = part.of(y) if y.dtype == _F32 else empty(part.batch, part.steps, channels)
        arguments = (
            *walk(xs),
            history.data_ptr(),
            taps.data_ptr(),
            address(offset),
            *walk(ys),
            int(activation == "silu"),
            part.steps,
            channels,
            K,
        )
        run_kernel(conv_forward, arguments, part.batch * -(-part.steps // ROWS), scratch)
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
) -> tuple[Tensor | None, ...]:
    """Differentiate `forward`, recomputing what was before the activation.

    Returns:
        dx, dweight, dbias, dinitial_state, each like its input; None where the input was None.
    """
    batch, length, channels = x.shape
    K = weight.shape[1]
    taps, offset = _over_lanes(weight), _pad(bias)
    dx = empty(batch, length, channels, dtype=x.dtype)
    dhistory = None if initial_state is None else empty(batch, K - 1, channels)
    sums = zeros(K + 1, taps.shape[1])
    workers = _workers(x)
    scratch = empty(workers, (ROWS + K) * LANES)
    for part in _parts(x):
        ahead = part._replace(t1=min(part.t1 + K - 1, length))  # the outputs that the last rows of this part reach
        xs, dys, history = last_dense(ahead.of(x)), last_dense(ahead.of(dy)), _history(x, initial_state, K, part)
        dxs = part.of(dx) if dx.dtype == _F32 else empty(part.batch, part.steps, channels)
        tasks = part.batch * -(-part.steps // ROWS)
        dweights = empty(tasks, *sums.shape)
        arguments = (
            *walk(dys),
            *walk(xs),
            history.data_ptr(),
            taps.data_ptr(),
            address(offset),
            *walk(dxs),
            0 if dhistory is None or part.t0 else dhistory[part.b0 :].data_ptr(),
            dweights.data_ptr(),
            int(activation == "silu"),
            part.steps,
            ahead.steps,
            channels,
            K,
        )
        run_kernel(conv_backward, arguments, tasks, scratch)
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


def _parts(x: Tensor) -> list[Segment]:
    """Cut x only where it has to be copied."""
    batch, length, channels = x.shape
    if is_last_dense(x):
        return [Segment(0, batch, 0, length)]
    return segments(batch, length, channels, ROWS)


def _history(x: Tensor, initial_state: Tensor | None, K: int, part: Segment) -> Tensor:
    """Return the K - 1 rows before a part, oldest first, (B, K-1, D) float32."""
    inside = x[part.b0 : part.b1, max(0, part.t0 - K + 1) : part.t0].to(_F32)
    missing = K - 1 - inside.shape[1]
    if not missing:
        return inside.contiguous()
    if initial_state is None:
        return torch.nn.functional.pad(inside, (0, 0, missing, 0))
    before = initial_state[part.b0 : part.b1, :, K - 1 - missing :].transpose(1, 2).to(_F32)
    return torch.cat([before, inside], dim=1).contiguous()


def _over_lanes(weight: Tensor) -> Tensor:
    """Bring (D, K) to (K, P) float32, P being D rounded up to whole blocks of lanes."""
    return torch.nn.functional.pad(weight.to(_F32), (0, 0, 0, -weight.shape[0] % LANES)).t().contiguous()


def _pad(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else torch.nn.functional.pad(bias.to(_F32), (0, -len(bias) % LANES)).contiguous()


def _workers(x: Tensor) -> int:
    return 1 if x.numel() < _SERIAL_ELEMENTS else worker_count()
