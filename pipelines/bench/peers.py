"""Whom our operators are timed against: what is installed of it, at the sizes it can do.

Every peer computes the same function on the same values, in its own layout, except FlashAttention: that is causal
attention of the same width, what a Transformer would run in the scan's place. Peers that come as parts (mambapy's
parallel scan) are put together here as their package does it.

Shapes: B batch, L length, D channels of the scan, N state size.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mamba_seq.kernels import causal_conv1d, selective_scan
from mamba_seq.pipelines.bench.blocks import mamba_ssm_block, mambapy_block, transformers_block
from mamba_seq.pipelines.bench.ops import Call, Case, Inputs, by_autograd
from mamba_seq.pipelines.bench.plan import DIRECTIONS

HEAD = 64
LONGEST_LOOP = {"cuda": 4096, "cpu": 16384}
"""Most steps of a loop in Python, where a call takes about a second."""
MOST_SLICED = {"cuda": 1e12, "cpu": 1e10}
"""Most steps times state updates where every step's slice gets a gradient of full length, some 7 seconds on a CPU."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """Somebody else's operator, or another implementation of ours."""

    name: str
    op: str
    make: Callable[[Case, Inputs, str], Call]
    """From a case, its inputs and a direction to the call that is timed; forward calls return y in our layout."""
    module: str | None = None
    """What must be importable."""
    install: str = ""
    """What to do where it is not."""
    cuda_only: bool = False
    directions: tuple[str, ...] = DIRECTIONS
    copies: tuple[int, int] = (0, 0)
    """Copies of (B, L, D, N) in float32 that a forward and a backward pass hold at a time."""
    loops: bool = False
    """Whether it is a loop over the steps in Python."""
    slices: bool = False
    """Whether its backward pass grows with the square of the length, as a loop over slices does."""
    longest: int | None = None
    """Most steps, where more would take many seconds."""
    on_cpu: bool = False
    """Whether it computes on the CPU, wherever the case is."""
    float32_inside: bool = True
    """Whether 16-bit inputs are computed with as ours are; otherwise it is compared in float32 only. No block is, as
    every one rounds elsewhere between its parts."""
    same_function: bool = True

    def missing(self, device: torch.device) -> str | None:
        """Say why this peer cannot run on this machine, and what to install; None when it can."""
        if self.cuda_only and device.type != "cuda":
            return "it runs on CUDA devices only"
        reason = None if self.module is None else import_error(self.module)
        return None if reason is None else f"{reason}; {self.install}"

    def too_much(self, case: Case, direction: str) -> str | None:
        """Say why a case is not for this peer; None when it is."""
        longest = LONGEST_LOOP[case.device.type] if self.loops else self.longest
        if longest is not None and longest < case.L:
            return f"more than {longest:,} steps would take many seconds"
        if self.slices and direction == "backward" and case.L * case.updates > MOST_SLICED[case.device.type]:
            return "its time grows with the square of the length, and would be many seconds"
        needed = self.copies[DIRECTIONS.index(direction)] * 4 * case.updates
        if needed > 0.6 * free_memory(case.device):
            return f"its states would take {needed / 1e9:.0f} GB"
        if not self.same_function and case.D % HEAD:
            return f"{case.D} channels are not heads of {HEAD}"
        if not self.same_function and case.device.type == "cuda" and case.dtype == torch.float32:
            return "it computes in 16 bits only"
        return None


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def import_error(module: str) -> str | None:
    """Say why a package cannot be imported; an extension that was built for another torch is there and cannot."""
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a package raises that does not fit its surroundings
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"{module} is installed and does not import ({reason})"
    return None


def reference_scan(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run our reference: a loop over the steps in torch."""
    return by_autograd(lambda **a: selective_scan(**a, backend="reference"), inputs, direction)


def cpu_scan(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run our CPU kernels on copies of the inputs."""
    copies = {k: v.detach().cpu().requires_grad_() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return by_autograd(lambda **a: selective_scan(**a, backend="cpu"), copies, direction)


def plain_scan_call(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run the scan as plain PyTorch can."""
    return by_autograd(plain_scan, inputs, direction)


def plain_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """Run the scan as PyTorch can without a loop: every state in memory, log2 L rounds of doubling; no gradient."""
    dt = F.softplus(delta.float() + delta_bias)
    decay = torch.exp(dt[..., None] * A)
    h = (dt * u.float())[..., None] * B.float()[:, :, None]
    reach = 1
    while reach < h.shape[1]:
        h[:, reach:] = h[:, reach:] + decay[:, reach:] * h[:, :-reach]
        decay[:, reach:] = decay[:, reach:] * decay[:, :-reach]
        reach *= 2
    y = (h * C.float()[:, :, None]).sum(-1) + D * u.float()
    return (y * F.silu(z.float())).to(u.dtype)


def mamba_ssm_scan(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run mamba_ssm's CUDA kernel on the same values in its layout, (B, D, L)."""
    import selective_scan_cuda

    a = {k: v.detach() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    u, delta, z = (a[k].transpose(1, 2).contiguous() for k in ("u", "delta", "z"))
    B, C = (a[k].transpose(1, 2).contiguous()[:, None] for k in ("B", "C"))

    def forward() -> Tensor:
        return selective_scan_cuda.fwd(u, delta, a["A"], B, C, a["D"], z, a["delta_bias"], True)[-1].transpose(1, 2)

    if direction == "forward":
        return forward
    dy = torch.randn_like(u)
    out, x, _ = selective_scan_cuda.fwd(u, delta, a["A"], B, C, a["D"], z, a["delta_bias"], True)
    rest = (a["D"], z, a["delta_bias"], dy, x, out, None, True, False)
    return lambda: selective_scan_cuda.bwd(u, delta, a["A"], B, C, *rest)


def transformers_scan(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run the scan of transformers' Mamba: a loop over the steps, decays and inputs of all of them in memory."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, **rest: Any) -> Tensor:
        u, delta, B, C, z = (tensor.transpose(1, 2) for tensor in (u, delta, B, C, z))
        return mamba_selective_scan(u, delta, A, B, C, D=D, z=z, **rest).transpose(1, 2)

    return by_autograd(scan, inputs, direction)


def mambapy_scan(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run mambapy's parallel scan, with what its block does before and after."""
    from mambapy.pscan import pscan

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor, **_: Any
    ) -> Tensor:
        dt = F.softplus(delta + delta_bias)
        states = pscan(torch.exp(dt[..., None] * A), (dt[..., None] * B[:, :, None]) * u[..., None])
        y = (states @ C[..., None].to(states.dtype))[..., 0] + D * u
        return y * F.silu(z)

    return by_autograd(scan, inputs, direction)


def flash_attention(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run causal attention with as many channels, in heads of 64, on torch's FlashAttention."""
    shape = (case.B, case.D // HEAD, case.L, HEAD)
    drawn = {name: torch.randn(shape, device=case.device).to(case.dtype).requires_grad_() for name in "qkv"}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return by_autograd(attend, drawn, direction)


def torch_conv(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run our reference of the convolution: a grouped F.conv1d."""
    return by_autograd(lambda **a: causal_conv1d(**a, backend="reference"), inputs, direction)


def dao_conv(case: Case, inputs: Inputs, direction: str) -> Call:
    """Run the causal_conv1d package, which mamba_ssm uses, on channels-last tensors."""
    from causal_conv1d import causal_conv1d_fn

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation=activation).transpose(1, 2)

    return by_autograd(convolve, inputs, direction)


_MAMBA_SSM = "pip install mamba-ssm --no-build-isolation (it is compiled: nvcc and a matching torch)"
_TRANSFORMERS = "pip install 'transformers>=5'"
_MAMBAPY = "pip install mambapy"

PEERS: Final[tuple[Peer, ...]] = (
    Peer("mamba_ssm", "selective_scan", mamba_ssm_scan, "selective_scan_cuda", _MAMBA_SSM, cuda_only=True),
    Peer("FlashAttention", "selective_scan", flash_attention, longest=2**20, same_function=False),
    Peer(
        *("transformers", "selective_scan", transformers_scan, "transformers", _TRANSFORMERS),
        copies=(4, 10),
        loops=True,
        slices=True,
        float32_inside=False,
    ),
    Peer(
        *("mambapy", "selective_scan", mambapy_scan, "mambapy", _MAMBAPY),
        copies=(8, 12),
        float32_inside=False,
    ),
    Peer("PyTorch scan", "selective_scan", plain_scan_call, directions=("forward",), copies=(5, 0)),
    Peer("torch loop", "selective_scan", reference_scan, copies=(0, 5), loops=True),
    Peer(
        *("our CPU kernels", "selective_scan", cpu_scan, "numba", "pip install numba"),
        cuda_only=True,  # elsewhere they are ours
        longest=2**17,
        on_cpu=True,
    ),
    Peer("torch conv1d", "causal_conv1d", torch_conv),
    Peer(
        *("causal_conv1d", "causal_conv1d", dao_conv, "causal_conv1d", "pip install causal-conv1d"),
        cuda_only=True,
    ),
    Peer("mamba_ssm", "block", mamba_ssm_block, "mamba_ssm", _MAMBA_SSM, cuda_only=True, float32_inside=False),
    Peer(
        *("transformers", "block", transformers_block, "transformers", _TRANSFORMERS),
        copies=(4, 10),
        loops=True,
        slices=True,
        float32_inside=False,
    ),
    Peer("mambapy", "block", mambapy_block, "mambapy", _MAMBAPY, copies=(8, 12), float32_inside=False),
)
