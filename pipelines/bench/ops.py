"""What is timed: the scan, the convolution and the whole block, each with its inputs, its bytes and its exponentials.

Shapes: B batch, L length, D channels of the scan, N state size, K convolution taps.
"""

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from mamba_seq.block import Mamba
from mamba_seq.config import MambaConfig
from mamba_seq.kernels import causal_conv1d, selective_scan

TAPS = 4
Call = Callable[[], Any]
Inputs = dict[str, Any]
"""Tensors that want a gradient, by name, and what else a function takes."""


class Case(NamedTuple):
    """One operator at one shape."""

    op: str
    B: int
    L: int
    D: int
    N: int
    dtype: torch.dtype
    device: torch.device

    @property
    def updates(self) -> int:
        """Number of state updates, an exponential each."""
        return self.B * self.L * self.D * self.N


class Op(NamedTuple):
    """How an operator is timed."""

    draw: Callable[[Case], Inputs]
    ours: Callable[[Case, Inputs, str], Call]
    """From a case, its inputs and a direction to the call that is timed."""
    bytes_moved: Callable[[Case, str], int | None]
    """Bytes of inputs and outputs, each once; None where nobody counted."""
    exps: Callable[[Case, str], int | None]
    """Exponentials, each once."""


def scan_inputs(case: Case) -> Inputs:
    """Draw inputs as a model at its initialisation has them: A = -1 to -N, step sizes of 0.001 to 0.1."""
    torch.manual_seed(0)
    _, B, L, D, N, dtype, device = case
    normal = functools.partial(torch.randn, device=device)
    steps = torch.exp(torch.rand(D, device=device) * 4.6 - 6.9)
    tensors = {
        "u": normal(B, L, D).to(dtype),
        "delta": (normal(B, L, D) * 0.5).to(dtype),
        "A": -torch.arange(1.0, N + 1, device=device).repeat(D, 1),
        "B": normal(B, L, N).to(dtype),
        "C": normal(B, L, N).to(dtype),
        "D": normal(D),
        "z": normal(B, L, D).to(dtype),
        "delta_bias": steps + torch.log(-torch.expm1(-steps)),
    }
    return {**{k: v.requires_grad_() for k, v in tensors.items()}, "delta_softplus": True}


def conv_inputs(case: Case) -> Inputs:
    """Draw inputs of the convolution, with bias and SiLU."""
    torch.manual_seed(0)
    normal = functools.partial(torch.randn, device=case.device)
    tensors = {
        "x": normal(case.B, case.L, case.D).to(case.dtype),
        "weight": normal(case.D, TAPS) / 2,
        "bias": normal(case.D),
    }
    return {**{k: v.requires_grad_() for k, v in tensors.items()}, "activation": "silu"}


def block_inputs(case: Case) -> Inputs:
    """Draw a block at its initialisation, with D channels of the scan, and its input (B, L, D / 2)."""
    torch.manual_seed(0)
    block = Mamba(MambaConfig(d_model=case.D // 2, n_layer=1, d_state=case.N)).to(case.device, case.dtype)
    hidden = torch.randn(case.B, case.L, case.D // 2, device=case.device).to(case.dtype)
    return {"hidden": hidden.requires_grad_(), "block": block}


def by_autograd(function: Callable[..., Any], inputs: Inputs, direction: str, *more: Tensor) -> Call:
    """Return a call of the function, or of its backward pass alone.

    Args:
        function: called with the inputs.
        inputs: as drawn.
        direction: "forward" or "backward".
        more: what else a gradient is wanted for, parameters of a module for one.
    """
    if direction == "forward":
        plain = {k: v.detach() if isinstance(v, Tensor) else v for k, v in inputs.items()}

        def forward() -> Tensor:
            with torch.no_grad():
                return function(**plain)

        return forward
    y = function(**inputs)
    dy = torch.randn_like(y)
    wanted = [*(v for v in inputs.values() if isinstance(v, Tensor)), *more]
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def our_scan(case: Case, inputs: Inputs, direction: str) -> Call:
    """Return the call of our scan."""
    return by_autograd(lambda **a: selective_scan(**a, backend=backend(case.device)), inputs, direction)


def our_conv(case: Case, inputs: Inputs, direction: str) -> Call:
    """Return the call of our convolution."""
    return by_autograd(lambda **a: causal_conv1d(**a, backend=backend(case.device)), inputs, direction)


def our_block(case: Case, inputs: Inputs, direction: str) -> Call:
    """Return the call of our block."""
    return module_call(inputs["block"], inputs["hidden"], direction)


def module_call(module: torch.nn.Module, hidden: Tensor, direction: str) -> Call:
    """Return the call of a module on hidden (B, L, d_model), or of its backward pass."""
    return by_autograd(lambda hidden: module(hidden), {"hidden": hidden}, direction, *module.parameters())


def backend(device: torch.device) -> str:
    """Return the compiled backend of a device: a fall-back to the reference must fail here, not be timed."""
    return "triton" if device.type == "cuda" else "cpu"


def _scan_bytes(case: Case, direction: str) -> int:
    # u, delta, z and y, B and C; backward also dy and the gradients
    row = 4 * case.D + 2 * case.N if direction == "forward" else 7 * case.D + 4 * case.N
    return case.B * case.L * row * case.dtype.itemsize


def _conv_bytes(case: Case, direction: str) -> int:
    return case.B * case.L * case.D * (2 if direction == "forward" else 3) * case.dtype.itemsize


OPS: Final[dict[str, Op]] = {
    "selective_scan": Op(scan_inputs, our_scan, _scan_bytes, lambda case, _: case.updates),
    "causal_conv1d": Op(conv_inputs, our_conv, _conv_bytes, lambda case, _: case.B * case.L * case.D),
    "block": Op(block_inputs, our_block, lambda *_: None, lambda case, _: case.updates),
}
