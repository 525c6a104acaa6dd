"""How two results of an operator are compared, and where each backend runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu", "triton")
# Triton compiles for the GPU when there is one; without one its interpreter takes CPU tensors.
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


RESOLUTION = 1e-6
"""A sum of terms as large as the largest element is no more exact than some roundings of that, however small it is."""


class Tolerance(NamedTuple):
    """Every element: |got - want| <= atol + rtol |want|, or what float32 can tell apart at the largest element.

    The tensor: max |got - want| <= scaled max |want|.
    """

    rtol: float
    atol: float
    scaled: float


def allowed(tolerances: Mapping[str, Tolerance], dtype: str, backend: str) -> dict[str, Tolerance]:
    """Return the tolerances of a type on a backend.

    Triton's interpreter cuts float32 off to bfloat16 where a GPU rounds to nearest, which costs up to twice as much.
    """
    cut_off = dtype == "bf16" and backend == "triton" and DEVICE["triton"] == "cpu"
    return {
        name: t._replace(scaled=2 * t.scaled) if cut_off and t.scaled > 1e-3 else t for name, t in tolerances.items()
    }


def assert_close(
    got: Mapping[str, Tensor | None], want: Mapping[str, Tensor], tolerances: Mapping[str, Tolerance] | Tolerance
) -> None:
    """Compare by name, all tensors before failing: the message shows which gradients are wrong and which are not."""
    found = []
    for name, expected in want.items():
        tolerance = tolerances if isinstance(tolerances, Tolerance) else tolerances[name]
        message = difference(got.get(name), expected.detach(), tolerance)
        if message:
            found.append(f"{name}: {message}")
    if found:
        raise AssertionError("\n".join(found))


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return max |got - want| / max |want|; the difference itself where `want` is zero, NaN where `got` is."""
    got, want = to_double(got.detach().cpu()), to_double(want.detach().cpu())
    if want.numel() == 0:
        return 0.0
    scale = want.abs().max().item()
    return ((got - want).abs().max() / (scale if scale > 1e-12 else 1.0)).item()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: with many small operations on a busy machine, threads wait for each other at each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def to_double(tensor: Tensor) -> Tensor:
    """Return the same numbers in float64 or complex128; integers as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def difference(got: Tensor | None, want: Tensor, tolerance: Tolerance) -> str | None:
    if got is None:
        return "missing"
    if got.shape != want.shape:
        return f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    got, want = to_double(got.detach().cpu()), to_double(want.detach().cpu())
    error = relative_error(got, want)
    distance = (got - want).abs()
    allowed = tolerance.atol + tolerance.rtol * want.abs()
    indistinct = min(RESOLUTION, tolerance.scaled) * want.abs().max() if want.numel() else 0.0
    outside = ~((distance <= allowed) | (distance <= indistinct))  # NaN is outside
    if error <= tolerance.scaled and not outside.any():
        return None
    text = (
        f"relative error {error:.2e} (allowed {tolerance.scaled:.1e}), {int(outside.sum())} of {want.numel()} elements"
    )
    text += f" outside rtol {tolerance.rtol:.0e}, atol {tolerance.atol:.0e}"
    worst = int(distance.nan_to_num(nan=float("inf")).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape))
    return text + f"; at {index} got {got[index].item():.6g}, expected {want[index].item():.6g}"
