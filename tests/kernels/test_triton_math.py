"""The functions that Triton kernels share: turns by large angles, a precise softplus, a multiply-add rounded once."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_seq.kernels._triton_math import fma, precise_softplus, turn
from tests.kernels.compare import DEVICE

SIZE = 4096


@triton.jit
def turn_kernel(x, y, cosine, sine, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    c, s = turn(tl.load(x + at), tl.load(y + at))
    tl.store(cosine + at, c)
    tl.store(sine + at, s)


@triton.jit
def fma_kernel(x, y, z, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    tl.store(out + at, fma(tl.load(x + at), tl.load(y + at), tl.load(z + at)))


@triton.jit
def softplus_kernel(x, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    tl.store(out + at, precise_softplus(tl.load(x + at)))


def turned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = x.to(DEVICE["triton"]), y.to(DEVICE["triton"])
    cosine, sine = torch.empty_like(x), torch.empty_like(x)
    turn_kernel[(1,)](x, y, cosine, sine, SIZE=SIZE)
    return cosine.cpu(), sine.cpu()


@pytest.mark.parametrize("largest", [1e-3, 3.2, 50.0, 1e4, 1e6])
def test_turns_are_those_of_the_exact_product(largest: float) -> None:
    """The product of two float32 numbers, which itself is none: its rounding alone would be off by 0.03 at 1e6."""
    x = torch.linspace(0.01, 3, SIZE)
    y = torch.linspace(-largest / 3, largest / 3, SIZE).flip(0)[torch.randperm(SIZE)]
    cosine, sine = turned(x, y)
    angle = x.double() * y.double()
    torch.testing.assert_close(cosine.double(), angle.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sine.double(), angle.sin(), rtol=0, atol=1e-6)
    assert ((sine.double() ** 2 + cosine.double() ** 2).sqrt() - 1).mean().abs() < 5e-9  # no drift of a state's size


def test_softplus_to_the_last_place() -> None:
    """Down to where exp(x) leaves the normal numbers: nothing of a small step is lost to 1 + exp(x)."""
    x = torch.linspace(-87, 40, SIZE).to(DEVICE["triton"])
    out = torch.empty_like(x)
    softplus_kernel[(1,)](x, out, SIZE=SIZE)
    wide = x.double()
    exact = wide.clamp(min=0) + torch.log1p(torch.exp(-wide.abs()))
    assert ((out.double() - exact) / exact).abs().max() < 2e-7
    edges = torch.full((SIZE,), float("-inf"), device=x.device)
    edges[:3] = torch.tensor([float("inf"), float("nan"), -200.0])
    softplus_kernel[(1,)](edges, out, SIZE=SIZE)
    assert out[0] == float("inf")
    assert torch.isnan(out[1])
    assert (out[2:] == 0).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_turns_at_the_edges() -> None:
    x = torch.zeros(SIZE)
    x[:6] = torch.tensor([0.0, 1e-30, 1e12, -1e30, float("nan"), float("inf")])
    cosine, sine = turned(x, torch.ones(SIZE))
    assert cosine[:2].tolist() == [1.0, 1.0]
    assert sine[0] == 0.0
    assert torch.isfinite(cosine[:4]).all()
    assert torch.isfinite(sine[:4]).all()
    assert (cosine[2:4].abs() < 1.001).all()
    assert torch.isnan(torch.stack([cosine[4:6], sine[4:6]])).all()
    large = torch.logspace(6.3, 38, SIZE)
    for factor in (1.0, 1e30, -1e30):  # products of up to infinity
        cosine, sine = turned(large, torch.full((SIZE,), factor))
        torch.testing.assert_close(cosine**2 + sine**2, torch.ones(SIZE), rtol=0, atol=1e-6)


def test_a_multiply_add_rounds_once() -> None:
    x, y = torch.rand(SIZE) + 0.5, torch.rand(SIZE) + 0.5
    there = [t.to(DEVICE["triton"]) for t in (x, y, -(x * y), torch.empty(SIZE))]
    fma_kernel[(1,)](*there, SIZE=SIZE)
    lost = x.double() * y.double() - (x * y).double()
    assert torch.equal(there[3].cpu().double(), lost)
