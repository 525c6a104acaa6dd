"""Operators of torch.library: how they are defined, and when they stand in for a direct call.

An operator is opaque to whatever traces a program (torch.compile, torch.export, fake tensors): its fake kernel tells
the shapes of the results, and the implementation runs when the program does. Going through the dispatcher and a
generated autograd node costs some 50 microseconds a call, several times what a step takes; so a plain eager call goes
to the same functions directly.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NAMESPACE = "mamba_seq"

_EXPORTING = threading.local()
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def define(
    name: str, run: Callable[..., Any], fake: Callable[..., Any], mutates: Iterable[str] = ()
) -> Callable[..., Any]:
    """Make `run` the operator torch.ops.mamba_seq.<name>, with the schema that its annotations spell.

    Args:
        name: the operator's name.
        run: computes it on any device, without autograd; its results are contiguous and share no memory with arguments.
        fake: returns empty tensors of the shapes, types and strides that `run` returns.
        mutates: arguments that are changed in place.
    """
    _LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=mutates), tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def differentiable(name: str, setup_context: Callable[..., None], formula: Callable[..., Any]) -> None:
    """Give operator `name` its gradient; the formula calls an operator without one, so there is no second."""
    once: Callable[..., Any] = once_differentiable(formula)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", once, setup_context=setup_context, lib=_LIBRARY)


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Let the scan and the convolution be made of operators that every exported program has, not of this package's.

    For `torch.export`, in this thread; without gradients, and for what a model reads from front to back.
    """
    before = exports()
    _EXPORTING.on = True
    try:
        yield
    finally:
        _EXPORTING.on = before


def exports() -> bool:
    """Tell whether a call has to be made of plain operators."""
    return getattr(_EXPORTING, "on", False)


def is_traced() -> bool:
    """Tell whether a call has to be seen as one operator: while compiling, exporting, or under a dispatch mode."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def on_its_own(tensor: Tensor) -> Tensor:
    """Return a result as operators have to: contiguous, and no part of something that another result lies in too."""
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Tell whether autograd will come back for a gradient of any of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def gradients_of(
    outputs: Iterable[Tensor], upstream: Iterable[Tensor | None], inputs: Iterable[Tensor | None]
) -> list[Tensor]:
    """Return the gradient of every input given, zero where nothing reaches it; in an operator, by autograd."""
    reached = [(out, up) for out, up in zip(outputs, upstream, strict=True) if up is not None and out.requires_grad]
    found = torch.autograd.grad(
        [out for out, _ in reached],
        [t for t in inputs if t is not None],
        [up for _, up in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    return [g.contiguous() for g in found]


def as_leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return the tensors as leaves of a graph of their own."""
    return [None if t is None else t.detach().requires_grad_() for t in tensors]
