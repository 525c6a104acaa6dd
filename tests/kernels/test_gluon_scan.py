"""The Gluon kernels of the scan: against their plain twin on a GPU, and compiled for one without."""

import json
import os
import subprocess
import sys
import textwrap
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


# Compiling needs no GPU. In a process of its own: in this one Triton may be its interpreter.
COMPILE = """
    import json, re
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource
    from mamba_seq.kernels.selective_scan import _gluon_backward, _gluon_forward, gluon

    FLOAT32 = {"A", "D", "bias", "states", "sums", "kept", "adjoints", "dBC", "weights"}
    ACTIVATIONS = {"u", "delta", "B", "C", "z", "y", "dy", "du", "ddelta", "dz"}
    STRIDES = ("_batch", "_row", "_group", "channels", "width")

    def compiled(kernel, launch, **switches):
        shape = {"N": 16, "SD": launch.SD, "SN": launch.SN, "BLOCK_D": gluon.block_of(launch, 16), "T": gluon.TILE}
        how = {"SOFTPLUS": True, "HAS_Z": True, "STEPS": launch.steps, "num_warps": launch.warps}
        switches = {**shape, **how, **switches}
        names = kernel.arg_names
        kinds = {n: "*fp32" if n in FLOAT32 else "*bf16" if n in ACTIVATIONS else "i32" for n in names}
        signature = {n: "constexpr" if n in switches else kinds[n] for n in names}
        constants = {(names.index(n),): value for n, value in switches.items()}
        aligned = [n for n in names if signature[n].startswith("*") or n.endswith(STRIDES)]
        attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
        source = GluonASTSource(kernel, signature, constants, attributes)
        options = {"num_warps": launch.warps, "maxnreg": launch.registers}
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        loads = re.findall(r"ld\\.global[.\\w]*\\.v4", binary.asm["ptx"])
        return {"shared": binary.metadata.shared, "wide_loads": len(loads)}

    forward, backward = _gluon_forward.scan_chunks, _gluon_backward
    print(json.dumps({
        "summary": compiled(forward, gluon.WIDE, OUTPUTS=False, KEEP=False),
        "outputs": compiled(forward, gluon.WIDE, OUTPUTS=True, KEEP=True),
        "narrow": compiled(forward, gluon.NARROW, OUTPUTS=True, KEEP=False),
        "adjoints": compiled(backward.adjoint_chunks, gluon.WIDE),
        "gradients": compiled(backward.gradients, gluon.GRADIENTS),
    }))
"""


def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILE)], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    kernels = json.loads(ran.stdout)
    for name, kernel in kernels.items():
        assert kernel["shared"] <= 228 * 1024 // 8 - 1024, name  # eight a multiprocessor, and what each reserves
        assert kernel["wide_loads"], name  # rows come in 16 bytes a lane
    assert kernels["summary"]["shared"] < kernels["outputs"]["shared"] < kernels["gradients"]["shared"]
