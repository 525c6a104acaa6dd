"""What must hold before anything is timed: ours agrees with the reference in float64, and every peer with ours."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor

from mamba_seq.kernels import causal_conv1d, selective_scan
from mamba_seq.kernels.selective_scan.reference import selective_scan_reference
from mamba_seq.pipelines.bench.blocks import block_reference
from mamba_seq.pipelines.bench.ops import OPS, Case, Inputs, backend
from mamba_seq.pipelines.bench.peers import Peer
from mamba_seq.pipelines.bench.plan import Plan
from mamba_seq.pipelines.errors import CheckError

SIZES = ((2, 257, 96), (1, 1000, 64), (64, 65, 256))
"""Shapes that take every way through the kernels, lengths odd."""
CPU_SIZES = ((2, 257, 48), (1, 1000, 16), (3, 63, 96))
log = logging.getLogger("mamba_seq.bench")
ALLOWED = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 1e-2}
"""Largest error relative to the largest element of a tensor; one rounding to 16 bits costs half of what is allowed."""


def check_ours(op: str, plan: Plan, device: torch.device) -> float:
    """Compare outputs and every gradient in float32, and in the type that is timed, with the reference in float64.

    Returns:
        The largest error in float32, relative to the largest element.

    Raises:
        CheckError: when an error is larger than rounding explains.
    """
    worst = 0.0
    # a block in 16 bits rounds between its parts, as no reference does; its parts are checked
    for dtype in dict.fromkeys((torch.float32, torch.float32 if op == "block" else plan.dtype)):
        for shape in SIZES if device.type == "cuda" else CPU_SIZES:
            case = Case(op, *shape, plan.N, dtype, device)
            for name, error in _errors(case).items():
                if not error < ALLOWED[dtype]:
                    size = " x ".join(map(str, shape))
                    raise CheckError(
                        f"{op}: {name} is off by {error:.1e} of its largest element at {size} in {dtype}, "
                        f"allowed are {ALLOWED[dtype]:.0e}: nothing is timed"
                    )
                worst = max(worst, error if dtype == torch.float32 else 0.0)
    return worst


def check_peer(peer: Peer, plan: Plan, device: torch.device) -> None:
    """Compare a peer's output with ours, in float32, on a case that it can do.

    Raises:
        CheckError: when they differ.
    """
    if not peer.same_function:
        return
    case = Case(peer.op, 2, 96, 64, plan.N, torch.float32, device)
    inputs = OPS[peer.op].draw(case)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # or a convolution of torch is off by 1e-3
    try:
        theirs = peer.make(case, inputs, "forward")()
    except RuntimeError as error:
        if plan.dtype == torch.float32 or not peer.float32_inside:
            raise
        # built for the timed type alone: then it is compared in that, at every shape that is timed
        log.info("%s is not compared in float32: %s", peer.name, error)
        return
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    compare(peer.name, OPS[peer.op].ours(case, inputs, "forward")(), theirs, 1e-4)


def compare(peer: str, ours: Tensor, theirs: Tensor, allowed: float = 1e-2) -> None:
    """Refuse to time two things that differ by more than they may, by default what bfloat16 and TF32 explain.

    Raises:
        CheckError: when they differ.
    """
    error = relative_error(theirs.to(ours.device), ours)
    if not error < allowed:
        raise CheckError(f"ours and {peer} differ by {error:.1e} of the largest element: nothing is timed")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error, relative to the largest element, in float32 at least."""
    wide = torch.promote_types(torch.promote_types(found.dtype, expected.dtype), torch.float32)
    found, expected = found.to(wide), expected.to(wide)
    return float((found - expected).abs().max() / expected.abs().max())


def _errors(case: Case) -> dict[str, float]:
    """Run ours and the reference with gradients; return the error of each tensor by name."""
    inputs = OPS[case.op].draw(case)
    wide = {k: _double(v) for k, v in inputs.items()}
    y, expected = _run(case, inputs), _run_reference(case.op, wide)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.double())
    pairs: dict[str, tuple[Any, Any]] = {"y": (y.detach(), expected.detach())}
    for (name, mine), (_, theirs) in zip(_leaves(inputs), _leaves(wide), strict=True):
        pairs[f"d{name}"] = (mine.grad, theirs.grad)
    return {name: relative_error(a, b) for name, (a, b) in pairs.items()}


def _run(case: Case, inputs: Inputs) -> Tensor:
    if case.op == "block":
        return inputs["block"](inputs["hidden"])
    operator = selective_scan if case.op == "selective_scan" else causal_conv1d
    y = operator(**inputs, backend=backend(case.device))
    assert isinstance(y, Tensor)
    return y


def _run_reference(op: str, inputs: Inputs) -> Tensor:
    if op == "selective_scan":
        return selective_scan_reference(**inputs)[0]
    if op == "block":
        return block_reference(**inputs)
    y = causal_conv1d(**inputs, backend="reference")
    assert isinstance(y, Tensor)
    return y


def _double(value: Any) -> Any:
    """Copy a tensor or a module in float64."""
    if isinstance(value, Tensor):
        return value.detach().double().requires_grad_()
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).double()
    return value


def _leaves(inputs: Inputs) -> list[tuple[str, Tensor]]:
    """List what has a gradient: tensors, and parameters of modules."""
    found = []
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            found.append((name, value))
        elif isinstance(value, torch.nn.Module):
            found += list(value.named_parameters())
    return found
