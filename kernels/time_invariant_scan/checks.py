"""What the time-invariant operator refuses, before anything is computed."""

from torch import Tensor

from mamba_seq.kernels._checks import FLOATS, check_devices, check_dtype, check_shape, parameter_dtypes
from mamba_seq.kernels.time_invariant_scan.discretisation import DISCRETISATIONS

METHODS = ("convolution", "recurrence")


def check_time_invariant_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    discretisation: str,
    method: str | None,
) -> int:
    """Check every argument of `time_invariant_scan` against the contract and return the length L."""
    if u.dim() != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (B, L, D)")
    if method is not None:
        _check_name("method", method, METHODS)
    _check_parameters(u, delta, A, B, C, D, z, "(B, L, D)", discretisation)
    _check_state("initial_state", initial_state, u, A)
    return u.shape[1]


def check_time_invariant_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    discretisation: str,
    parameters: tuple[Tensor, Tensor] | None,
) -> None:
    """Check every argument of `time_invariant_update` against the contract."""
    if u.dim() != 2:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (B, D)")
    _check_parameters(u, delta, A, B, C, D, z, "(B, D)", discretisation)
    _check_state("state", state, u, A)
    for i, tensor in enumerate(parameters or ()):
        check_shape(f"parameters[{i}]", tensor, tuple(A.shape), "(D, N)")
        check_dtype(f"parameters[{i}]", tensor, (A.dtype,))
        check_devices("u", u.device, **{f"parameters[{i}]": tensor})


def check_kernel(delta: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, discretisation: str) -> None:
    """Check every argument of `ssm_kernel`."""
    if length < 0:
        raise ValueError(f"length is {length}, expected 0 or more")
    if delta.dim() != 1:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, expected (D,)")
    _check_parameters(delta, delta, A, B, C, None, None, "(D,)", discretisation)


def _check_parameters(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    letters: str,
    discretisation: str,
) -> None:
    """Check u, whose shape is spelled `letters`, and all that is sized or typed after it."""
    _check_name("discretisation", discretisation, DISCRETISATIONS)
    check_dtype("u", u, FLOATS)
    channels = u.shape[-1]
    real, complex_ = parameter_dtypes(u)
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected (D, N) with D = {channels}")
    check_dtype("A", A, (real, complex_))
    for name, tensor in (("B", B), ("C", C)):
        check_shape(name, tensor, tuple(A.shape), "(D, N)")
        check_dtype(name, tensor, (A.dtype,))
    for name, optional in (("delta", delta), ("D", D)):
        if optional is not None:
            check_shape(name, optional, (channels,), "(D,)")
            check_dtype(name, optional, (real,))
    if z is not None:
        check_shape("z", z, tuple(u.shape), letters)
        check_dtype("z", z, (u.dtype,))
    check_devices("u", u.device, delta=delta, A=A, B=B, C=C, D=D, z=z)


def _check_state(name: str, state: Tensor | None, u: Tensor, A: Tensor) -> None:
    if state is not None:
        check_shape(name, state, (u.shape[0], *A.shape), "(B, D, N)")
        check_dtype(name, state, (A.dtype,))
        check_devices("u", u.device, **{name: state})


def _check_name(argument: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{argument} is {name!r}, expected one of {', '.join(map(repr, known))}")
