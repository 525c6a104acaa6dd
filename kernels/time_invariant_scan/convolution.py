"""The time-invariant scan as a convolution: y = K * u with K_t = C Abar^t Bbar, by FFT.

Three products with the powers Abar^t, t = 0 .. L-1: the kernel K; what the initial state adds to y; the final state.
A table of all powers would be (D, N, L). Here t = j T + r, and Abar^t = Abar^(jT) Abar^r: two tables, of J and T powers
with J T >= L, and a matrix product over N (or over r, for the final state). With T about sqrt(L) that is O(D N sqrt(L))
memory, in the backward pass too, and as few exponentials. These are taken in double precision, see `discretisation.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels._checks import parameter_dtypes
from mamba_seq.kernels.time_invariant_scan.checks import check_kernel
from mamba_seq.kernels.time_invariant_scan.discretisation import discretise


def ssm_kernel(delta: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, discretisation: str = "zoh") -> Tensor:
    """Return the convolution kernel K_t = C Abar^t Bbar, 2 Re of it for complex A (S4D, arXiv 2206.11893, section 3).

    Args:
        delta: step size of each channel (D,); float32, or float64 when A is of double precision.
        A: state matrix (D, N), real or complex.
        B: input projection (D, N), in A's type.
        C: output projection (D, N), in A's type.
        length: number of steps L, at least 0.
        discretisation: "zoh" or "euler", as in `time_invariant_scan`.

    Returns:
        K (D, L), real, float32 or float64 like A. Its matrix product follows torch.set_float32_matmul_precision.

    Raises:
        ValueError: for shapes, types, devices or names outside the contract, naming the argument.
    """
    check_kernel(delta, A, B, C, length, discretisation)
    with torch.autocast(A.device.type, enabled=False):
        log_decay, weight = discretise(delta, A, B, discretisation)
        return kernel_of(log_decay, C * weight, length, A.dtype)


def convolution_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    return_final_state: bool,
    discretisation: str,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence as a convolution.

    Args: as `mamba_seq.kernels.time_invariant_scan`, already checked, L at least 1.

    Returns:
        C h_t (B, L, D) in the computing type, before skip and gate, and the final state (B, D, N); an empty tensor in
        its place when it is not asked for.
    """
    x = u.to(parameter_dtypes(u)[0])
    length = u.shape[1]
    log_decay, weight = discretise(delta, A, B, discretisation)
    y = causal_fft_convolution(x, kernel_of(log_decay, C * weight, length, A.dtype))
    if initial_state is not None:
        y = y + response_to_state(log_decay, C, initial_state, length)
    if not return_final_state:
        return y, A.new_zeros(0)
    state = weight * summed_input(log_decay, x, A.dtype)
    if initial_state is not None:
        state = state + torch.exp(length * log_decay) * initial_state
    return y, state.to(A.dtype)


def causal_fft_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve x (B, L, D) with a kernel (D, L), padded with zeros so that the end does not come round to the start."""
    length = x.shape[1]
    if x.numel() == 0:
        return x * kernel.T  # empty, and in the graph; transforms of nothing are an error
    size = fast_transform_size(2 * length - 1)
    product = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(product, n=size)[..., :length].transpose(1, 2)


def kernel_of(log_decay: Tensor, coefficients: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return sum over n of coefficients_n exp(t log_decay_n) for t < length: (D, L), 2 Re for complex."""
    blocks, size = split_length(length, 1)
    starts = coefficients[..., None] * powers(log_decay, size * torch.arange(blocks, device=log_decay.device))
    within = powers(log_decay, torch.arange(size, device=log_decay.device)).to(dtype)
    rows = real_matmul(starts.to(dtype).transpose(1, 2), within)  # (D, J, T)
    return rows.flatten(1)[:, :length]


def response_to_state(log_decay: Tensor, C: Tensor, state: Tensor, length: int) -> Tensor:
    """Return C Abar^(t+1) h_0 for t < length: (B, L, D), 2 Re for complex; h_0 is (B, D, N)."""
    batch, channels, n_state = state.shape
    blocks, size = split_length(length, batch)
    starts = powers(log_decay, 1 + size * torch.arange(blocks, device=log_decay.device)).to(C.dtype)
    within = powers(log_decay, torch.arange(size, device=log_decay.device)).to(C.dtype)
    rows = torch.einsum("bdn,dnj->dbjn", C * state, starts)
    rows = real_matmul(rows.reshape(channels, batch * blocks, n_state), within)
    return rows.reshape(channels, batch, blocks * size)[..., :length].permute(1, 2, 0)


def summed_input(log_decay: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sum over t of Abar^(L-1-t) x_t, (B, D, N): the state that x (B, L, D) leaves, before the weight Bbar."""
    batch, length, channels = x.shape
    n_state = log_decay.shape[1]
    blocks, size = split_length(length, batch)
    across = powers(log_decay, size * torch.arange(blocks - 1, -1, -1, device=x.device)).to(dtype)  # (D, N, J)
    within = powers(log_decay, torch.arange(size - 1, -1, -1, device=x.device)).to(dtype)  # (D, N, T)
    rows = F.pad(x, (0, 0, blocks * size - length, 0)).permute(2, 0, 1).reshape(channels, batch * blocks, size)
    if not within.is_complex():
        ends = rows @ within.mT
    else:
        ends = rows @ torch.cat([within.real, within.imag], dim=1).mT  # x is real: no complex product
        ends = torch.complex(ends[..., :n_state], ends[..., n_state:])
    return torch.einsum("dbjn,dnj->bdn", ends.reshape(channels, batch, blocks, n_state), across)


def powers(log_decay: Tensor, exponents: Tensor) -> Tensor:
    """Return exp(t log_decay) for the exponents t, (D, N, number of exponents), in double precision."""
    return torch.exp(log_decay[..., None] * exponents)


def real_matmul(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply (D, rows, N) by (D, N, T); of a complex product 2 Re, computed without the imaginary part."""
    if not rows.is_complex():
        return rows @ columns
    return 2 * (torch.cat([rows.real, -rows.imag], dim=-1) @ torch.cat([columns.real, columns.imag], dim=-2))


def split_length(length: int, batch: int) -> tuple[int, int]:
    """Return the number of blocks J and their size T, J T >= length.

    Products with a batch have a table of J entries for each of its items and one of T: T is as large as all of those.
    """
    if _is_symbolic(length * batch):
        size = _power_of_two(length * batch, power=2)
        return -(-length // size), size
    size = math.isqrt(max(length * batch - 1, 0)) + 1
    size = min(size, length) if length else 1
    return -(-length // size), size


def fast_transform_size(least: int) -> int:
    """Return the smallest size of at least `least` without prime factors above 5, which transforms are fast for."""
    if _is_symbolic(least):
        return _power_of_two(least)
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        odd = five
        while odd < best:
            best = min(best, odd << (-(-least // odd) - 1).bit_length())
            odd *= 3
        five *= 5
    return best


def _power_of_two(least: int, power: int = 1) -> int:
    """Return the smallest power of two whose own power `power` is at least `least`; comparisons alone, for guards."""
    found = 1
    while found**power < least:
        found *= 2
    return found


def _is_symbolic(size: int) -> bool:
    """Tell whether a program is being compiled for many values of `size`: sizes made from it are then powers of two.

    An exact one would be compiled anew for every length, one of these serves all up to twice or four times as long.
    """
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(size)
