"""The published state matrices: their numbers, and what they have to do with each other."""

import math
import re

import numpy as np
import pytest
import torch

from mamba_seq.kernels.time_invariant_scan.initialisation import (
    log_uniform_delta,
    s4d_inv,
    s4d_legs,
    s4d_lin,
    s4d_real,
)


@pytest.mark.parametrize("make", [s4d_lin, s4d_inv, s4d_legs, s4d_real])
@pytest.mark.parametrize("n_state", [1, 5, 64])
def test_every_channel_forgets(make: type[s4d_lin], n_state: int) -> None:
    A = make(3, n_state)
    assert A.shape == (3, n_state)
    assert A.is_contiguous()  # a parameter: no two channels in one memory
    assert torch.equal(A, A[:1].expand(3, n_state))
    assert (A.real < 0).all()
    assert A.dtype == (torch.float32 if make is s4d_real else torch.complex64)


def test_published_numbers() -> None:
    half = torch.tensor(-0.5)
    torch.testing.assert_close(s4d_lin(1, 3)[0], torch.complex(half.expand(3), math.pi * torch.arange(3.0)))
    torch.testing.assert_close(s4d_lin(1, 3, frequency=1.0)[0].imag, torch.arange(3.0))
    torch.testing.assert_close(s4d_real(1, 4)[0], torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    # with four conjugate pairs, M = 8: (8 / pi) (8 / (2 n + 1) - 1)
    inverse = torch.tensor([7, 5 / 3, 3 / 5, 1 / 7]) * 8 / math.pi
    torch.testing.assert_close(s4d_inv(1, 4)[0], torch.complex(half.expand(4), inverse))


def hippo_legs(size: int) -> np.ndarray:
    """HiPPO-LegS from its definition (Gu et al. 2020, arXiv 2008.07669, theorem 2), in float64."""
    n, k = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return -np.where(n > k, np.sqrt((2 * n + 1.0) * (2 * k + 1.0)), np.where(n == k, n + 1.0, 0.0))


@pytest.mark.parametrize("n_state", [1, 2, 8, 32])
def test_legs_is_the_normal_part_of_hippo(n_state: int) -> None:
    size = 2 * n_state
    low_rank = np.sqrt(np.arange(size) + 0.5)
    normal = np.linalg.eigvals(hippo_legs(size) + np.outer(low_rank, low_rank))
    expected = sorted(normal[normal.imag > 0], key=lambda a: -a.imag)
    np.testing.assert_allclose(s4d_legs(1, n_state)[0].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_real_is_the_spectrum_of_hippo() -> None:
    expected = np.sort(np.linalg.eigvals(hippo_legs(8)).real)[::-1]
    np.testing.assert_allclose(s4d_real(1, 8)[0].numpy(), expected, rtol=1e-6)


def test_inverse_tends_to_legs() -> None:
    """S4D-Inv is the law that the large frequencies of S4D-LegS follow, the better the more there are."""

    def distance(n_state: int) -> float:
        return (s4d_inv(1, n_state) / s4d_legs(1, n_state) - 1).abs()[0, :4].max().item()

    assert distance(256) < 0.02
    assert distance(256) < distance(64) < distance(16)


def test_step_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = log_uniform_delta(4000, generator=generator)
    assert delta.shape == (4000,)
    assert 1e-3 <= delta.min() < 1.1e-3
    assert 0.09 < delta.max() <= 0.1
    assert abs(delta.log().mean() - math.log(1e-2)) < 0.05
    again = log_uniform_delta(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(delta, again)


@pytest.mark.parametrize(("smallest", "largest"), [(0.0, 0.1), (0.2, 0.1), (-1.0, 1.0)])
def test_step_sizes_from_an_impossible_range(smallest: float, largest: float) -> None:
    message = f"the range of delta is {smallest} to {largest}, expected 0 < smallest <= largest"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        log_uniform_delta(3, smallest, largest)
