"""RMSNorm and LayerNorm: on every backend against torch in float64, every gradient by name; compiled for a GPU."""

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels import layer_norm, rms_norm
from mamba_seq.kernels.norm import function
from tests.kernels.compare import DEVICE, DTYPES, relative_error

TYPES = {"fp32": 4e-6, "fp16": 1e-3, "bf16": 9e-3}
"""Largest error of a tensor relative to its largest element; the interpreter cuts bfloat16 off."""
SIZES = [(1, 24), (63, 100), (1000, 24), (5, 768), (3, 2), (9, 2049)]
LARGE = [(1, 16), (1000, 128), (4097, 256), (777, 768), (63, 1000), (130, 4096), (33, 8192)]


def draw(rows: int, features: int, kind: str, dtype: torch.dtype, weights: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(rows + features)
    names = {"x": dtype, "residual": dtype, "weight": weights} | ({"bias": weights} if kind == "layer" else {})
    shapes = {"x": (1, rows, features), "residual": (1, rows, features)}
    return {name: (torch.randn(shapes.get(name, (features,))) + 0.5).to(t) for name, t in names.items()}


def run(
    tensors: dict[str, Tensor], kind: str, backend: str, dy: Tensor, dsum: Tensor | None, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Return the results and the gradient of every tensor given, by name."""
    device = DEVICE[backend]
    leaves = {name: t.detach().to(device).requires_grad_() for name, t in tensors.items()}
    call: Any = {"layer": layer_norm, "layer without bias": layer_norm, "rms": rms_norm}[kind]
    result = call(**leaves, eps=1e-5, dtype=dtype, backend=backend)
    out = dict(zip(("y", "sum"), result, strict=True)) if "residual" in leaves else {"y": result}
    above = {"y": dy.to(device), "sum": dsum.to(device) if dsum is not None else None}
    used = [name for name in out if above[name] is not None]
    found = torch.autograd.grad([out[n] for n in used], list(leaves.values()), [above[n] for n in used])
    return out | {"d" + name: g for name, g in zip(leaves, found, strict=True)}


def truth(
    tensors: dict[str, Tensor], kind: str, dy: Tensor, dsum: Tensor | None, stored: Tensor | None
) -> dict[str, Tensor]:
    """Return what `run` should, where a sum was stored as it was: that is what is normalised."""
    leaves = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    total, out = leaves["x"], {}
    if stored is not None:
        total = leaves["residual"] + total
        out["sum"] = total
        total = total + (stored.detach().cpu().double() - total.detach())
    shape = leaves["weight"].shape
    if kind == "rms":
        out["y"] = F.rms_norm(total, shape, leaves["weight"], 1e-5)
    else:
        out["y"] = F.layer_norm(total, shape, leaves["weight"], leaves.get("bias"), 1e-5)
    used = [out["y"]] if dsum is None else [out["y"], out["sum"]]
    above = [dy.double()] if dsum is None else [dy.double(), dsum.double()]
    found = torch.autograd.grad(used, list(leaves.values()), above)
    return out | {"d" + name: g for name, g in zip(leaves, found, strict=True)}


def check(
    rows: int, features: int, kind: str, given: str, made: str, weights: str, residual: bool, backend: str
) -> None:
    tensors = draw(rows, features, kind, DTYPES[given], DTYPES[weights])
    if not residual:
        del tensors["residual"]
    dy = torch.randn(1, rows, features).to(DTYPES[made])
    dsum = torch.randn(1, rows, features).to(DTYPES[given]) if residual else None
    got = run(tensors, kind, backend, dy, dsum, DTYPES[made])
    want = truth(tensors, kind, dy, dsum, got.get("sum"))
    types = {"y": made, "dweight": weights, "dbias": weights}
    assert got.keys() == want.keys()
    for name, expected in want.items():
        dtype = types.get(name, given)
        assert got[name].dtype == DTYPES[dtype], name
        assert relative_error(got[name], expected) <= max(TYPES[dtype], 2e-6 * features**0.5), name


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("kind", ["rms", "layer", "layer without bias"])
@pytest.mark.parametrize(("rows", "features"), SIZES)
def test_equals_float64(rows: int, features: int, kind: str, backend: str) -> None:
    check(rows, features, kind, "fp32", "fp32", "fp32", residual=rows % 2 == 1, backend=backend)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(
    ("given", "made", "weights"),
    [("bf16", "bf16", "fp32"), ("bf16", "fp32", "fp32"), ("fp32", "bf16", "bf16"), ("fp16", "fp16", "fp16")],
)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_types_come_and_go_as_they_are(kind: str, given: str, made: str, weights: str, residual: bool) -> None:
    for backend in ("reference", "triton"):
        check(63, 40, kind, given, made, weights, residual, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("given", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("rows", "features"), LARGE)
def test_equals_float64_at_every_size(rows: int, features: int, kind: str, given: str) -> None:
    for residual in (True, False):
        check(rows, features, kind, given, "bf16", "fp32", residual, "triton")


def test_a_sum_of_another_type_than_x() -> None:
    tensors = draw(9, 24, "rms", torch.bfloat16, torch.float32)
    tensors["residual"] = torch.randn(1, 9, 24)
    dy, dsum = torch.randn(1, 9, 24).bfloat16(), torch.randn(1, 9, 24)
    for backend in ("reference", "triton"):
        got = run(tensors, "rms", backend, dy, dsum, None)
        want = truth(tensors, "rms", dy, dsum, got["sum"])
        assert [got[n].dtype for n in ("y", "sum", "dx", "dresidual")] == [torch.bfloat16, torch.float32] * 2
        for name, expected in want.items():
            assert relative_error(got[name], expected) <= 9e-3, name


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_backward_adds_what_passes_by_and_makes_the_rows_again(backend: str) -> None:
    tensors = {name: t.to(DEVICE[backend]) for name, t in draw(63, 24, "layer", torch.float32, torch.float32).items()}
    x, weight, bias = tensors["x"], tensors["weight"], tensors["bias"]
    dy, passing = torch.randn_like(x), torch.randn_like(x)
    y, total = function.run(x, None, weight, bias, 1e-5, True, x.dtype, backend)
    assert total is x
    alone = function.run_backward(dy, None, x, weight, bias, 1e-5, True, backend)
    assert alone[3] is None
    both = function.run_backward(dy, passing, x, weight, bias, 1e-5, True, backend, again=True)
    assert both[3] is not None
    assert relative_error(both[0], alone[0] + passing) <= 1e-6
    assert torch.equal(both[3], y)
    again = function.run_backward(dy, passing, x, weight, bias, 1e-5, True, backend, again=True)
    for first, second in zip(both, again, strict=True):
        assert torch.equal(first, second)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gradients_that_do_not_come(backend: str) -> None:
    tensors = draw(5, 24, "rms", torch.float32, torch.float32)
    x, residual, weight = (t.to(DEVICE[backend]).requires_grad_() for t in tensors.values())
    y, total = rms_norm(x, weight, residual, backend=backend)
    dx, dweight = torch.autograd.grad(total.sum(), [x, weight], retain_graph=True, allow_unused=True)
    assert torch.equal(dx, torch.ones_like(x))
    assert dweight is None or not dweight.any()
    dx, dweight = torch.autograd.grad(y.sum(), [x, weight])
    assert dweight.any()
    assert dx.any()


def test_rows_that_lie_apart() -> None:
    wide = torch.randn(2, 9, 48, device=DEVICE["triton"])
    x, weight = wide[..., :24], torch.randn(24, device=DEVICE["triton"])
    for rows in (x, x[:, ::2], x.transpose(0, 1)):
        want = rms_norm(rows.contiguous(), weight, backend="reference")
        assert relative_error(rms_norm(rows, weight, backend="triton"), want) <= 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", [None, "reference", "triton"])
def test_no_rows(backend: str | None) -> None:
    x = torch.empty(2, 0, 24, device=DEVICE["triton"] if backend == "triton" else "cpu", requires_grad=True)
    y = rms_norm(x, torch.ones(24, device=x.device), backend=backend)
    assert y.shape == x.shape  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(())}, "x has shape \\(\\), expected"),
        ({"x": torch.zeros(3, 24, dtype=torch.int32)}, "x has type int32"),
        ({"weight": torch.zeros(23)}, "weight has shape \\(23,\\), expected \\(features,\\) = \\(24,\\)"),
        ({"weight": torch.zeros(24, dtype=torch.float64)}, "weight has type float64"),
        ({"bias": torch.zeros(1, 24)}, "bias has shape"),
        ({"residual": torch.zeros(2, 24)}, "residual has shape \\(2, 24\\), expected that of x = \\(3, 24\\)"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
        ({"backend": "gpu"}, "backend is 'gpu'"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_norm(**({"x": torch.zeros(3, 24), "weight": torch.zeros(24)} | changes))


def test_a_named_backend_says_why_it_cannot() -> None:
    x = torch.zeros(2, 8193, device=DEVICE["triton"])
    with pytest.raises(RuntimeError, match="8193 features are more than 8192"):
        rms_norm(x, x[0], backend="triton")
    with pytest.raises(RuntimeError, match="float64 runs on the reference only"):
        rms_norm(x.double(), x[0].double(), backend="triton")
    with pytest.raises(RuntimeError, match="the reference is torch's own"):
        rms_norm(x.cpu(), x[0].cpu(), backend="cpu")


# Compiling needs no GPU. In a process of its own: in this one Triton may be its interpreter.
COMPILE = """
    import json, re
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from mamba_seq.kernels.norm import _triton_kernels as kernels, triton as launches

    def compiled(kernel, features, **switches):
        block, tile, warps = launches.shape_of_tile(features)
        how = {"FEATURES": features, "EPS": 1e-5, "CENTRED": True, "HAS_BIAS": True, "BLOCK_R": tile, "BLOCK_F": block}
        switches = {**how, **switches}
        names = kernel.arg_names
        wide = {"partials", "weight", "bias"}
        kinds = {n: "i32" if n == "rows" else "*fp32" if n in wide else "*bf16" for n in names}
        signature = {n: "constexpr" if n in switches else kinds[n] for n in names}
        constants = {(names.index(n),): value for n, value in switches.items()}
        aligned = [n for n in names if signature[n].startswith("*")]
        attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
        source = ASTSource(kernel, signature, constants, attributes)
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        found = {}
        for what, access in (("loads", "ld"), ("stores", "st")):
            widths = re.findall(access + r"\\\\.global[.\\\\w]*?(\\\\.v[24])?\\\\.b32", binary.asm["ptx"])
            found[what] = sorted(set(widths))
        return found

    print(json.dumps({
        f"{kernel.fn.__name__} {features}": compiled(kernel, features, **switches)
        for features in (64, 256, 768)
        for kernel, switches in (
            (kernels.norm, {"HAS_RESIDUAL": True}),
            (kernels.norm_gradients, {"HAS_DTOTAL": True, "AGAIN": True, "SUMS": 2}),
        )
    }))
"""


def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    program = textwrap.dedent(COMPILE).replace("\\\\", "\\")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    for name, found in json.loads(ran.stdout).items():
        assert ".v4" in found["loads"], name  # rows come and go in 16 bytes a lane
        assert ".v4" in found["stores"], name
