"""The Gluon kernels of the scan against their plain twin, on a GPU. `test_settings.py` compiles them without one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq.kernels._dispatch import implementation
from tests.kernels.compare import relative_error

NAMES = ("du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias", "dinitial_state")

# B, L, D, N, G, type, every switch on, room for states at every tile
CASES = [
    (2, 1000, 96, 16, 1, torch.float32, True, True),
    (1, 63, 40, 16, 1, torch.float32, True, True),
    (1, 1, 32, 16, 1, torch.float32, True, True),
    (2, 2049, 64, 16, 2, torch.float32, True, False),
    (3, 777, 100, 16, 1, torch.bfloat16, True, False),
    (2, 300, 128, 8, 2, torch.float32, True, True),
    (1, 515, 64, 32, 4, torch.float32, True, False),
    (1, 200, 48, 64, 2, torch.float32, True, True),
    (2, 257, 33, 16, 1, torch.float32, False, False),
    (64, 130, 256, 16, 1, torch.bfloat16, True, True),
    (40, 130, 1024, 16, 1, torch.float16, True, False),
    (16, 100, 640, 16, 1, torch.float32, True, True),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("B", "L", "D", "N", "G", "dtype", "full", "room"), CASES)
def test_equals_its_plain_twin_at_every_run(
    monkeypatch: pytest.MonkeyPatch, B: int, L: int, D: int, N: int, G: int, dtype: torch.dtype, full: bool, room: bool
) -> None:
    plain = implementation("selective_scan", "triton")
    arguments, state, dy, dstate = draw(B, L, D, N, G, dtype, full)
    with monkeypatch.context() as patch:
        patch.setattr(plain, "faster_module", lambda *_: None)
        want = run(plain, arguments, state, dy, dstate)
    gluon = plain.faster_module(*(arguments[i] for i in (0, 2, 3, 4)))
    assert gluon is not None
    if not room:
        monkeypatch.setattr(gluon, "MOST_KEPT", 0)
    got, again = (run(gluon, arguments, state, dy, dstate) for _ in range(2))
    for name, expected in want.items():
        assert got[name].dtype == expected.dtype, name
        assert torch.equal(got[name], again[name]), name
        assert relative_error(got[name], expected) < (1e-5 if dtype == torch.float32 else 8e-3), name


@pytest.mark.gpu
@pytest.mark.parametrize(("B", "L", "D"), [(2, 1000, 96), (1, 63, 40), (1, 2049, 64), (24, 130, 1024)])
def test_few_states_and_room_of_the_caller(B: int, L: int, D: int) -> None:
    """With states kept far apart, y once more and dz beside something else in a wider tensor."""
    plain = implementation("selective_scan", "triton")
    arguments, state, dy, dstate = draw(B, L, D, 16, 1, torch.bfloat16, True)
    want = run(plain, arguments, state, dy, dstate)
    y, _, saved = plain.forward(*arguments, state, keep_for_backward=True, sparse=True)
    assert saved[0].nbytes < y.nbytes or L < 128
    room, again = torch.full((B, L, 2 * D), 7.0, dtype=dy.dtype, device="cuda"), torch.full_like(y, float("nan"))
    got = plain.backward(dy, dstate, saved, *arguments, state, dz=room[..., D:], y=again)
    assert relative_error(again, y) < 8e-3  # sums over states in another order
    assert torch.equal(room[..., D:], got[6])
    assert bool((room[..., :D] == 7).all())
    for name, gradient in zip(NAMES, got, strict=True):
        assert relative_error(gradient, want[name]) < 1e-3, name


def draw(
    B: int, L: int, D: int, N: int, G: int, dtype: torch.dtype, full: bool
) -> tuple[tuple[Any, ...], Tensor | None, Tensor, Tensor | None]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda")

    torch.manual_seed(L)
    u, z = normal(B, L, 2 * D).to(dtype).chunk(2, -1)  # slices, as the block has them
    projections = normal(B, L, G, 2 * N).to(dtype).chunk(2, -1)
    B_, C = (p[:, :, 0] if G == 1 else p for p in projections)
    delta = (0.5 * torch.rand(B, L, D, device="cuda")).to(dtype)
    A = -4 * torch.rand(D, N, device="cuda")
    bias = 4 * torch.rand(D, device="cuda") - 6
    rest = (normal(D), z, bias, True) if full else (None, None, None, False)
    states = (normal(B, D, N), normal(B, D, N)) if full else (None, None)
    return (u, delta, A, B_, C, *rest), states[0], normal(B, L, D).to(dtype), states[1]


def run(
    module: Any, arguments: tuple[Any, ...], state: Tensor | None, dy: Tensor, dstate: Tensor | None
) -> dict[str, Tensor]:
    y, final_state, saved = module.forward(*arguments, state, keep_for_backward=True)
    gradients = module.backward(dy, dstate, saved, *arguments, state)
    named = {"y": y, "final_state": final_state, **dict(zip(NAMES, gradients, strict=True))}
    return {name: tensor for name, tensor in named.items() if tensor is not None}
