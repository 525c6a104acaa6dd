"""The forward scan of every backend against the reference in float64: y and the final state.

The backward tests run the forward pass of every case too; here are the passes that keep nothing for a backward.
"""

from collections.abc import Callable

import pytest
import torch

from mamba_seq.kernels.selective_scan import selective_scan
from tests.kernels.compare import BACKENDS, DEVICE, DTYPES, allowed, assert_close
from tests.kernels.scan_cases import (
    CPU_CASES,
    GPU_CASES,
    INTERPRETED_CASES,
    SWITCH_CASES,
    SWITCHES,
    TOLERANCES,
    ScanCase,
    draw_inputs,
    on_device,
    run_scan,
    truth,
)


def check(case: ScanCase, backend: str) -> None:
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    got = run_scan(inputs, case, backend)
    exact = truth(case)
    assert got["y"].dtype == DTYPES[case.dtype]
    assert_close(
        got,
        {name: exact[name] for name in ("y", "final_state") if name in exact},
        allowed(TOLERANCES[case.dtype], case.dtype, backend),
    )
    if "final" in case.on:
        assert got["final_state"].dtype == torch.float32


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


@pytest.mark.parametrize("case", [*INTERPRETED_CASES[::3], ScanCase(33, D=3, N=2, batch=9)], ids=str)
def test_triton(case: ScanCase) -> None:
    check(case, "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES[::3], ids=str)
def test_triton_gpu(case: ScanCase) -> None:
    check(case, "triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_leaves_the_state_alone(backend: str) -> None:
    """A step with delta -1e4 through softplus is no step at all, to the bit: batches are padded with it."""
    case = ScanCase(35, D=3, N=4, batch=1)
    inputs = draw_inputs(case)
    inputs["delta"] = torch.full_like(inputs["delta"], -1e4)
    got = run_scan(on_device(inputs, DEVICE[backend]), case, backend)
    assert torch.equal(got["final_state"].cpu(), inputs["initial_state"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_a_batch_padded(backend: str) -> None:
    """A short sequence padded to the length of its batch ends in the state it has alone."""
    case = ScanCase(39, D=3, N=4, on=tuple(s for s in SWITCHES if s != "z"))
    inputs = draw_inputs(case)
    inputs["delta"][1, 33:] = -1e4
    padded = run_scan(on_device(inputs, DEVICE[backend]), case, backend)
    alone = {k: t[1:, :33] if k in ("u", "delta", "B", "C") else t for k, t in inputs.items()}
    alone["initial_state"] = inputs["initial_state"][1:]
    short = run_scan(on_device(alone, DEVICE[backend]), case, backend)
    torch.testing.assert_close(padded["final_state"][1:], short["final_state"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded["y"][1:, :33], short["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_gpu(needs_gpu_memory: Callable[[int], None]) -> None:
    """Offsets need 64 bits: the end of a huge input equals the same steps run on their own from the state before."""
    needs_gpu_memory(18)
    D, N, tail = 64, 1, 1025
    L = 2**31 // D + tail
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    u, delta, B, C = randn(1, L, D), randn(1, L, D), randn(1, L, N), randn(1, L, N)
    A = -torch.ones(D, N, device="cuda")
    y, state = selective_scan(u, delta, A, B, C, delta_softplus=True, return_final_state=True, backend="triton")
    head, rest = ([t[:, cut] for t in (u, delta, B, C)] for cut in (slice(L - tail), slice(L - tail, None)))

    def run(part: list[torch.Tensor], initial_state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        u, delta, B, C = part
        return selective_scan(
            u, delta, A, B, C, None, None, None, True, initial_state, return_final_state=True, backend="triton"
        )

    middle = run(head, None)[1]
    want_y, want_state = run(rest, middle)
    torch.testing.assert_close(y[:, -tail:], want_y, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state, want_state, rtol=1e-5, atol=1e-5)
