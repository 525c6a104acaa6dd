"""What every operator refuses, and in which words.

A check names the argument, says what came and what was expected; it runs before any backend sees the tensors, so the
backends may trust shapes and types.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], letters: str) -> None:
    """Raise ValueError unless `tensor` has the shape `expected`, spelled `letters` in the message."""
    if tensor.shape != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {letters} = {expected}")


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless `tensor`'s type is one of `allowed`."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name} has type {str(tensor.dtype).removeprefix('torch.')}, expected {names}")


def check_devices(like: str, device: torch.device, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors lie on `device`, which is that of the argument `like`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, expected {device} like {like}")


class ScanShape(NamedTuple):
    """Sizes of one selective scan, in the letters used everywhere."""

    B: int
    L: int
    D: int
    N: int
    G: int
    S: int
    """Number of packed sequences; B when nothing is packed."""


def parameter_dtypes(u: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the (real, complex) type that parameters and states take beside an input of `u`'s type."""
    return (torch.float64, torch.complex128) if u.dtype == torch.float64 else (torch.float32, torch.complex64)


def check_cu_seqlens(cu_seqlens: Tensor, name: str, B: int) -> int:
    """Check shape and type of packed-sequence boundaries of the input `name` (B, L, D); return their number S."""
    check_dtype("cu_seqlens", cu_seqlens, (torch.int32,))
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected (S+1,) with S of at least 1")
    if B != 1:
        raise ValueError(f"cu_seqlens needs batch 1, but {name} has batch {B}: lay the sequences end to end along L")
    return cu_seqlens.shape[0] - 1


def check_boundaries(cu_seqlens: Tensor, L: int) -> None:
    """Raise ValueError unless the values of `cu_seqlens` cut L steps; they are read, so never while tracing."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != L or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"cu_seqlens must increase strictly from 0 to L = {L}, got {bounds[:8]}")


def check_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> ScanShape:
    """Check every argument of `selective_scan` against the contract and return its sizes."""
    if u.dim() != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (B, L, D)")
    check_dtype("u", u, FLOATS)
    batch, length, channels = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected (D, N) with D = {channels}")
    n_state = A.shape[1]
    real, complex_ = parameter_dtypes(u)
    check_dtype("A", A, (real, complex_))
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None:
            check_shape(name, tensor, (batch, length, channels), "(B, L, D)")
            check_dtype(name, tensor, (u.dtype,))
    groups = _check_projections(u, A, B, C)
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None:
            check_shape(name, tensor, (channels,), "(D,)")
            check_dtype(name, tensor, (real,))
    sequences = batch if cu_seqlens is None else check_cu_seqlens(cu_seqlens, "u", batch)
    if initial_state is not None:
        letters = "(B, D, N)" if cu_seqlens is None else "(S, D, N)"
        check_shape("initial_state", initial_state, (sequences, channels, n_state), letters)
        check_dtype("initial_state", initial_state, (A.dtype,))
    others = {"initial_state": initial_state, "cu_seqlens": cu_seqlens}
    check_devices("u", u.device, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, **others)
    return ScanShape(batch, length, channels, n_state, groups, sequences)


def _check_projections(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> int:
    """Check B and C, each constant (D, N) or input-dependent (B, L, [G,] N); return the number of groups."""
    batch, length, channels = u.shape
    n_state = A.shape[1]
    groups = 0
    for name, tensor in (("B", B), ("C", C)):
        if tensor.dim() == 2:
            check_shape(name, tensor, (channels, n_state), "(D, N)")
            check_dtype(name, tensor, (A.dtype,))
            continue
        found = tensor.shape[2] if tensor.dim() == 4 else 1
        letters = "(B, L, G, N)" if tensor.dim() == 4 else "(B, L, N) or (B, L, G, N) or constant (D, N)"
        expected = (batch, length, found, n_state) if tensor.dim() == 4 else (batch, length, n_state)
        check_shape(name, tensor, expected, letters)
        check_dtype(name, tensor, (A.dtype if A.is_complex() else u.dtype,))
        if found < 1 or channels % found:
            raise ValueError(f"{name} has {found} groups, which do not divide D = {channels}")
        if groups and found != groups:
            raise ValueError(f"C has {found} groups, expected {groups} like B")
        groups = found
    return groups or 1


def check_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> int:
    """Check every argument of `causal_conv1d`; return the number of sequences (B, or S when packed)."""
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, D)")
    check_taps(x, weight, bias, activation)
    batch, _, channels = x.shape
    sequences = batch if cu_seqlens is None else check_cu_seqlens(cu_seqlens, "x", batch)
    if initial_state is not None:
        letters = "(B, D, K-1)" if cu_seqlens is None else "(S, D, K-1)"
        check_shape("initial_state", initial_state, (sequences, channels, weight.shape[1] - 1), letters)
        check_dtype("initial_state", initial_state, (x.dtype,))
    check_devices("x", x.device, weight=weight, bias=bias, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return sequences


def check_taps(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    """Check what the convolution of a sequence x (B, L, D) and of a single step x (B, D) have in common."""
    check_dtype("x", x, FLOATS)
    channels = x.shape[-1]
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected (D, K) with D = {channels}, K at least 2")
    real = parameter_dtypes(x)[0]
    check_dtype("weight", weight, (real, x.dtype) if real != x.dtype else (real,))
    if bias is not None:
        check_shape("bias", bias, (channels,), "(D,)")
        check_dtype("bias", bias, (weight.dtype,))
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}, expected None or 'silu'")
