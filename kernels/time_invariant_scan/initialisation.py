"""State matrices and step sizes to start from: the diagonals of S4D (Gu et al. 2022, arXiv 2206.11893, section 4).

A complex state stands for itself and its conjugate, so N states here are 2 N in the paper's count, and each diagonal
has the half with a positive imaginary part. B starts at 1 and C at standard (complex) normal numbers, as there.
"""

import math

import torch
from torch import Tensor


def s4d_lin(channels: int, n_state: int, frequency: float = math.pi) -> Tensor:
    """Return S4D-Lin, A_n = -1/2 + i pi n: the frequencies of a Fourier series over a time of 2.

    Args:
        channels: D; every channel gets the same row.
        n_state: N, the number of complex states.
        frequency: distance of neighbouring frequencies in radians; pi in S4D, 1 in Mamba's complex models (Mamba, arXiv
            2312.00752, section 3.6: A_n = -1/2 + n i).

    Returns:
        A (D, N) complex64.
    """
    return _rows(torch.complex(_half(n_state), frequency * _index(n_state)), channels)


def s4d_inv(channels: int, n_state: int) -> Tensor:
    """Return S4D-Inv, A_n = -1/2 + i (M / pi) (M / (2 n + 1) - 1) with M = 2 N: what S4D-LegS tends to for large N.

    Args:
        channels: D; every channel gets the same row.
        n_state: N, the number of complex states.

    Returns:
        A (D, N) complex64, the largest frequency first.
    """
    size = 2 * n_state
    return _rows(torch.complex(_half(n_state), size / math.pi * (size / (2 * _index(n_state) + 1) - 1)), channels)


def s4d_legs(channels: int, n_state: int) -> Tensor:
    """Return S4D-LegS: the eigenvalues of the normal part of the HiPPO-LegS matrix of size 2 N (that of DSS).

    HiPPO-LegS plus a matrix of rank 1 is -1/2 times the identity plus the skew-symmetric matrix with the elements
    -sqrt((2 n + 1) (2 k + 1)) / 2 below the diagonal; its eigenvalues come in conjugate pairs.

    Args:
        channels: D; every channel gets the same row.
        n_state: N, the number of complex states.

    Returns:
        A (D, N) complex64, the largest frequency first.
    """
    root = torch.sqrt(2 * _index(2 * n_state) + 1)
    below = torch.tril(-torch.outer(root, root) / 2, diagonal=-1)
    frequencies = torch.linalg.eigvalsh(1j * (below - below.mT)).flip(0)[:n_state]  # ascending, in pairs of +-
    return _rows(torch.complex(_half(n_state), frequencies), channels)


def s4d_real(channels: int, n_state: int) -> Tensor:
    """Return S4D-Real, A_n = -(n + 1): the eigenvalues of the HiPPO-LegS matrix itself, and Mamba's start.

    Args:
        channels: D; every channel gets the same row.
        n_state: N, the number of real states.

    Returns:
        A (D, N) float32.
    """
    return _rows(-(_index(n_state) + 1), channels)


def log_uniform_delta(
    channels: int, smallest: float = 1e-3, largest: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Draw step sizes (D,) float32 whose logarithm is uniform; the range of S4D and of Mamba is 0.001 to 0.1.

    Raises:
        ValueError: unless 0 < smallest <= largest.
    """
    if not 0 < smallest <= largest:
        raise ValueError(f"the range of delta is {smallest} to {largest}, expected 0 < smallest <= largest")
    part = torch.rand(channels, generator=generator)
    return torch.exp(math.log(smallest) + part * (math.log(largest) - math.log(smallest)))


def _index(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64)


def _half(n_state: int) -> Tensor:
    return torch.full((n_state,), -0.5, dtype=torch.float64)


def _rows(diagonal: Tensor, channels: int) -> Tensor:
    """Repeat a diagonal (N,) for every channel, in single precision, as memory of its own: parameters are trained."""
    return diagonal.to(torch.complex64 if diagonal.is_complex() else torch.float32).repeat(channels, 1)
