"""The scan says the same however it is called, every gradient by name: packed or one by one, padded or alone, whole,
chunk after chunk or step after step; real and complex.

In float32 on the CPU kernels to 1e-5 of the largest element of a tensor, in float64 on the reference to 1e-9.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels.selective_scan import selective_scan, selective_state_update
from tests.kernels.compare import Tolerance, assert_close, one_thread, to_double
from tests.kernels.test_cpu_contract import boundaries, draw

OVER_TIME = ("u", "delta", "z", "B", "C")
BACKENDS = {"cpu": Tolerance(1e-5, 1e-5, 1e-5), "reference": Tolerance(1e-9, 1e-9, 1e-9)}
CUT = [0, 1, 64, 67, 130, 201]
Leaves = dict[str, Tensor]

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"]),
    pytest.mark.parametrize("kind", ["plain", "groups", "constant"]),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def leaves_of(backend: str, complex_A: bool, kind: str, **sizes: int) -> Leaves:
    chosen: dict[str, Any] = {"plain": {}, "groups": {"groups": 3}, "constant": {"constant": "B"}}[kind]
    tensors = draw(201, D=6, complex_A=complex_A, **chosen, **sizes)
    tensors["A"] = tensors["A"] / 4  # remember: what is wrong at a boundary should be seen far behind it
    return {k: (to_double(t) if backend == "reference" else t).requires_grad_() for k, t in tensors.items()}


def run(backend: str, given: Leaves, **extra: Any) -> tuple[Tensor, Tensor]:
    y, state = selective_scan(**given, delta_softplus=True, return_final_state=True, backend=backend, **extra)
    return y, state


def during(given: Leaves, start: int, end: int, batch: slice = slice(None), **others: Tensor) -> Leaves:
    """Return the arguments of some steps of some items."""
    moving = {name: t for name, t in given.items() if name in OVER_TIME and t.dim() > 2}
    return given | {name: t[batch, start:end] for name, t in moving.items()} | others


def by_name(leaves: Leaves, outputs: tuple[Tensor, ...], upstream: list[Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(list(outputs), list(leaves.values()), upstream)
    return {"y": outputs[0], "state": outputs[1]} | {f"d{n}": g for n, g in zip(leaves, found, strict=True)}


def upstream_of(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn_like(t) for t in outputs]


def test_packed_is_one_by_one(backend: str, complex_A: bool, kind: str) -> None:
    leaves = leaves_of(backend, complex_A, kind, batch=1, sequences=len(CUT) - 1)
    packed = run(backend, leaves, cu_seqlens=boundaries(CUT))
    alone = [
        run(backend, during(leaves, a, b, initial_state=leaves["initial_state"][s : s + 1]))
        for s, (a, b) in enumerate(itertools.pairwise(CUT))
    ]
    looped = (torch.cat([y for y, _ in alone], dim=1), torch.cat([state for _, state in alone]))
    upstream = upstream_of(packed)
    assert_close(by_name(leaves, packed, upstream), by_name(leaves, looped, upstream), BACKENDS[backend])


def test_padded_is_alone(backend: str, complex_A: bool, kind: str) -> None:
    """A batch padded to one length on the right; what stands in the padding reaches nothing, forward or backward."""
    leaves = leaves_of(backend, complex_A, kind)
    lengths = (201, 130)
    real = torch.arange(201)[None, :, None] < torch.tensor(lengths)[:, None, None]
    y, state = run(backend, leaves | {"delta": leaves["delta"].masked_fill(~real, -1e4)})
    padded = (y.masked_fill(~real, 0), state)
    alone = [
        run(backend, during(leaves, 0, n, slice(b, b + 1), initial_state=leaves["initial_state"][b : b + 1]))
        for b, n in enumerate(lengths)
    ]
    filled = [torch.nn.functional.pad(y, (0, 0, 0, 201 - n)) for (y, _), n in zip(alone, lengths, strict=True)]
    separate = (torch.cat(filled), torch.cat([state for _, state in alone]))
    upstream = upstream_of(padded)
    assert_close(by_name(leaves, padded, upstream), by_name(leaves, separate, upstream), BACKENDS[backend])


def test_chunks_are_the_whole(backend: str, complex_A: bool, kind: str) -> None:
    leaves = leaves_of(backend, complex_A, kind)
    whole = run(backend, leaves)
    state, outputs = leaves["initial_state"], []
    for a, b in itertools.pairwise(CUT):
        y, state = run(backend, during(leaves, a, b, initial_state=state))
        outputs.append(y)
    chunked = (torch.cat(outputs, dim=1), state)
    upstream = upstream_of(whole)
    assert_close(by_name(leaves, chunked, upstream), by_name(leaves, whole, upstream), BACKENDS[backend])


def test_steps_are_the_whole(backend: str, complex_A: bool, kind: str) -> None:
    leaves = {name: t.detach() for name, t in leaves_of(backend, complex_A, kind).items()}
    want = dict(zip(("y", "state"), run(backend, leaves), strict=True))
    state = leaves.pop("initial_state").clone()
    outputs = []
    for t in range(201):
        now = {k: p[:, t] if k in OVER_TIME and p.dim() > 2 else p for k, p in leaves.items()}
        outputs.append(selective_state_update(state, **now, delta_softplus=True, backend=backend))
    assert_close({"y": torch.stack(outputs, dim=1), "state": state}, want, BACKENDS[backend])
