"""The checks of the single step of the scan."""

from torch import Tensor

from mamba_seq.kernels._checks import FLOATS, check_devices, check_dtype, check_shape, parameter_dtypes
from mamba_seq.kernels.selective_scan.reference import is_constant


def check_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Check every argument of `selective_state_update`; raise ValueError naming the first that is wrong."""
    if u.dim() != 2:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (B, D)")
    check_dtype("u", u, FLOATS)
    batch, channels = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected (D, N) with D = {channels}")
    n_state = A.shape[1]
    real, complex_ = parameter_dtypes(u)
    check_dtype("A", A, (real, complex_))
    check_shape("state", state, (batch, channels, n_state), "(B, D, N)")
    check_dtype("state", state, (A.dtype,))
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None:
            check_shape(name, tensor, (batch, channels), "(B, D)")
            check_dtype(name, tensor, (u.dtype,))
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None:
            check_shape(name, tensor, (channels,), "(D,)")
            check_dtype(name, tensor, (real,))
    for name, tensor in (("B", B), ("C", C)):
        _check_projection(name, tensor, u, A)
    check_devices("u", u.device, state=state, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)


def _check_projection(name: str, tensor: Tensor, u: Tensor, A: Tensor) -> None:
    batch, channels = u.shape
    n_state = A.shape[1]
    if tensor.dim() == 3:
        groups = tensor.shape[1]
        check_shape(name, tensor, (batch, groups, n_state), "(B, G, N)")
        if groups < 1 or channels % groups:
            raise ValueError(f"{name} has {groups} groups, which do not divide D = {channels}")
    elif tuple(tensor.shape) not in ((batch, n_state), (channels, n_state)):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected (B, N) = {(batch, n_state)}, (B, G, N), "
            f"or (D, N) = {(channels, n_state)} constant over time"
        )
    constant = is_constant(tensor, u)
    check_dtype(name, tensor, (A.dtype,) if constant or A.is_complex() else (u.dtype,))
