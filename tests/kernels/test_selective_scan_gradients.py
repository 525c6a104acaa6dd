"""The backward scan of every backend against the reference in float64, every gradient by name."""

from collections.abc import Callable

import pytest
import torch

from mamba_seq.kernels.selective_scan import selective_scan
from tests.kernels.compare import BACKENDS, DEVICE, DTYPES, allowed, assert_close
from tests.kernels.scan_cases import (
    ARGUMENTS,
    BF16,
    CPU_CASES,
    GPU_CASES,
    INTERPRETED_CASES,
    SWITCH_CASES,
    SWITCHES,
    TOLERANCES,
    ScanCase,
    draw_inputs,
    draw_upstream,
    on_device,
    run_scan,
    run_with_gradients,
    truth,
)


def check(case: ScanCase, backend: str) -> None:
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    dy, dfinal_state = draw_upstream(case, inputs)
    upstream = (dy.to(DEVICE[backend]), dfinal_state.to(DEVICE[backend]))
    assert_close(
        run_with_gradients(inputs, upstream, case, backend),
        truth(case),
        allowed(TOLERANCES[case.dtype], case.dtype, backend),
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", SWITCH_CASES, ids=str)
def test_every_switch(case: ScanCase, backend: str) -> None:
    check(case, backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_in_every_type(dtype: str) -> None:
    check(ScanCase(372, dtype=dtype), "reference")


@pytest.mark.parametrize("case", CPU_CASES, ids=str)
def test_cpu(case: ScanCase) -> None:
    check(case, "cpu")


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("case", INTERPRETED_CASES, ids=str)
def test_triton(case: ScanCase) -> None:
    check(case, "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_triton_gpu(case: ScanCase) -> None:
    check(case, "triton")


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_gpu(needs_gpu_memory: Callable[[int], None]) -> None:
    """Offsets need 64 bits: at the end of a huge input the gradients are those of these steps run on their own."""
    needs_gpu_memory(28)
    D, N, tail = 64, 1, 1025
    L = 2**31 // D + tail
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    inputs, dy = (
        {"u": randn(1, L, D), "delta": randn(1, L, D), "B": randn(1, L, N), "C": randn(1, L, N)},
        randn(1, L, D),
    )
    options = {"A": -torch.ones(D, N, device="cuda"), "delta_softplus": True, "backend": "triton"}
    whole = {name: t.requires_grad_() for name, t in inputs.items()}
    got = torch.autograd.grad(selective_scan(**whole, **options), list(whole.values()), dy)

    head = {name: t[:, :-tail].detach() for name, t in inputs.items()}
    middle = selective_scan(**head, **options, return_final_state=True)[1]
    rest = {name: t[:, -tail:].detach().requires_grad_() for name, t in inputs.items()}
    y = selective_scan(**rest, **options, initial_state=middle)
    want = torch.autograd.grad(y, list(rest.values()), dy[:, -tail:])
    names = [f"d{name}" for name in inputs]
    close = {name: BF16[name] for name in names}
    assert_close({n: g[:, -tail:] for n, g in zip(names, got, strict=True)}, dict(zip(names, want, strict=True)), close)
    # a sum takes no memory, and is finite only if every element is
    assert all(torch.isfinite(g.sum(dtype=torch.float32)) for g in got)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_has_no_gradient(backend: str) -> None:
    """Through a step with delta -1e4 and softplus nothing but the read-out and the skip connection sends a gradient."""
    case = ScanCase(35, D=3, N=4, batch=1)
    inputs = draw_inputs(case)
    inputs["delta"] = torch.full_like(inputs["delta"], -1e4)
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(case, inputs))
    got = run_with_gradients(on_device(inputs, DEVICE[backend]), upstream, case, backend)
    for name in ("ddelta", "ddelta_bias", "dA", "dB"):
        assert torch.equal(got[name], torch.zeros_like(got[name])), name


@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.gpu)])
def test_twice_the_same_to_the_bit(backend: str) -> None:
    """No sum that a gradient sees depends on the order in which threads arrive."""
    case = ScanCase(600 if backend != "reference" else 60, D=40, N=5, batch=3)
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(case, inputs))
    first = run_with_gradients(inputs, upstream, case, backend)
    for _ in range(2):
        again = run_with_gradients(inputs, upstream, case, backend)
        for name, value in first.items():
            assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("wanted", [*ARGUMENTS, "A and D", "u and initial_state"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_some_arguments_only(backend: str, wanted: str) -> None:
    case = ScanCase(9, D=3, N=4)
    leaves = on_device(draw_inputs(case), DEVICE[backend])
    names = wanted.split(" and ")
    for name in names:
        leaves[name] = leaves[name].requires_grad_()
    results = run_scan(leaves, case, backend).values()
    upstream = [t.to(DEVICE[backend]) for t in draw_upstream(case, leaves)]
    reached = [(out, up) for out, up in zip(results, upstream, strict=True) if out.requires_grad]
    torch.autograd.backward(*map(list, zip(*reached, strict=True)))
    got = {f"d{name}": t.grad for name, t in leaves.items() if t is not None and t.grad is not None}
    assert set(got) == {f"d{name}" for name in names}
    exact = truth(case)
    assert_close(got, {name: exact[name] for name in got}, TOLERANCES["fp32"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", ["y", "final_state"])
def test_gradient_of_one_output_only(backend: str, output: str) -> None:
    """The other output was asked for and then not used: its gradient is zero, not missing."""
    case = ScanCase(9, D=3, N=4, on=tuple(s for s in SWITCHES if s != "z"))
    inputs = draw_inputs(case)
    dy, dfinal_state = draw_upstream(case, inputs)
    results = {}
    for run in (backend, "reference"):
        leaves = {k: t if t is None else t.detach().clone().requires_grad_() for k, t in inputs.items()}
        moved = on_device(leaves, DEVICE[run])
        out = run_scan(moved, case, run)[output]
        upstream = (dy if output == "y" else dfinal_state).to(out.device)
        given = {name: t for name, t in leaves.items() if t is not None}
        gradients = torch.autograd.grad(out, list(given.values()), upstream, allow_unused=True)
        results[run] = {
            f"d{name}": torch.zeros_like(given[name]) if g is None else g
            for name, g in zip(given, gradients, strict=True)
        }
    assert_close(results[backend], results["reference"], TOLERANCES["fp32"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_graph_without_gradients(backend: str) -> None:
    case = ScanCase(9, D=3, N=4)
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    assert not any(t.requires_grad for t in run_scan(inputs, case, backend).values())
    inputs["A"] = inputs["A"].requires_grad_()
    with torch.no_grad():
        assert not any(t.requires_grad for t in run_scan(inputs, case, backend).values())
