"""One scan three ways: the whole sequence, chunk after chunk carrying the state, and step by step."""

from typing import Any

import pytest
import torch

from mamba_seq.kernels.selective_scan import selective_scan, selective_state_update
from tests.kernels.compare import BACKENDS, DEVICE, Tolerance, assert_close
from tests.kernels.scan_cases import (
    SWITCHES,
    TOLERANCES,
    Inputs,
    ScanCase,
    draw_inputs,
    draw_upstream,
    on_device,
    run_scan,
    run_with_gradients,
)

OVER_TIME = ("u", "delta", "B", "C", "z")
CLOSE = Tolerance(1e-5, 1e-5, 1e-5)
# (backend, case, chunk lengths); a chunk of 0 is what an empty read from a stream gives
RUNS: list[Any] = [
    ("reference", ScanCase(140, D=3, N=4), (1, 2, 0, 63, 64, 10)),
    ("cpu", ScanCase(2049, D=5, N=16), (1, 2, 0, 127, 1000, 129, 790)),
    ("cpu", ScanCase(300, D=17, N=3, draw="mamba"), (299, 1)),
    ("cpu", ScanCase(301, D=3, N=8, draw="remembering", on=("bias", "softplus", "init", "final")), (7,) * 43),
    ("triton", ScanCase(35, D=2, N=3, batch=1), (1, 0, 33, 1)),
    ("triton", ScanCase(6, D=8, N=3, draw="mamba", on=("D", "z", "bias", "softplus", "final")), (3, 3)),
    pytest.param("triton", ScanCase(2049, D=40, N=16), (1, 2, 0, 127, 1000, 129, 790), marks=pytest.mark.gpu),
]


def named(value: Any) -> str:
    return f"{len(value)}-chunks" if isinstance(value, tuple) else str(value)


def run_chunked(inputs: Inputs, case: ScanCase, lengths: tuple[int, ...], backend: str) -> dict[str, torch.Tensor]:
    assert sum(lengths) == case.L
    state, start, outputs = inputs["initial_state"], 0, []
    for length in lengths:
        cut = slice(start, start + length)
        chunk = {k: t[:, cut] if k in OVER_TIME and t is not None else t for k, t in inputs.items()}
        y, state = selective_scan(
            **(chunk | {"initial_state": state}),
            delta_softplus="softplus" in case.on,
            return_final_state=True,
            backend=backend,
        )
        outputs.append(y)
        start += length
    return {"y": torch.cat(outputs, dim=1), "final_state": state}


@pytest.mark.parametrize(("backend", "case", "lengths"), RUNS, ids=named)
def test_chunks(backend: str, case: ScanCase, lengths: tuple[int, ...]) -> None:
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    assert_close(run_chunked(inputs, case, lengths, backend), run_scan(inputs, case, backend), CLOSE)


@pytest.mark.parametrize(("backend", "case", "lengths"), RUNS, ids=named)
def test_gradient_through_chunks(backend: str, case: ScanCase, lengths: tuple[int, ...]) -> None:
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    upstream = tuple(t.to(DEVICE[backend]) for t in draw_upstream(case, inputs))
    whole = run_with_gradients(inputs, upstream, case, backend)
    leaves = {k: t if t is None else t.detach().clone().requires_grad_() for k, t in inputs.items()}
    given = {name: t for name, t in leaves.items() if t is not None}
    results = run_chunked(leaves, case, lengths, backend)
    gradients = torch.autograd.grad(list(results.values()), list(given.values()), upstream)
    chunked = results | {f"d{name}": g for name, g in zip(given, gradients, strict=True)}
    assert_close(chunked, whole, TOLERANCES["fp32"])


@pytest.mark.parametrize(
    ("backend", "case"),
    [("reference", ScanCase(33, D=3, N=4)), ("triton", ScanCase(10, D=3, N=4))]
    + [("cpu", ScanCase(500, D=5, N=16, draw=draw)) for draw in ("published", "mamba", "remembering")]
    + [(backend, ScanCase(10, D=6, N=3, on=on)) for backend in BACKENDS for on in [("init", "final"), ("z", "final")]],
    ids=str,
)
def test_steps(backend: str, case: ScanCase) -> None:
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    whole = run_scan(inputs, case, backend)
    state = inputs["initial_state"]
    state = torch.zeros_like(whole["final_state"]) if state is None else state.clone()
    outputs = []
    for t in range(case.L):
        now = {k: p[:, t] if k in OVER_TIME and p is not None else p for k, p in inputs.items()}
        del now["initial_state"]
        outputs.append(selective_state_update(state, **now, delta_softplus="softplus" in case.on, backend=backend))
    assert_close({"y": torch.stack(outputs, dim=1), "final_state": state}, whole, CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_then_steps(backend: str) -> None:
    """Generation: the prompt in one scan, then a token at a time from its final state."""
    case = ScanCase(21, D=3, N=4, on=tuple(s for s in SWITCHES if s != "init"), draw="mamba")
    inputs = on_device(draw_inputs(case), DEVICE[backend])
    whole = run_scan(inputs, case, backend)
    prompt = {k: p[:, :16] if k in OVER_TIME else p for k, p in inputs.items()}
    y, state = run_scan(prompt, case, backend).values()
    outputs = [y]
    for t in range(16, 21):
        now = {k: p[:, t] if k in OVER_TIME else p for k, p in inputs.items() if k != "initial_state"}
        outputs.append(selective_state_update(state, **now, delta_softplus=True, backend=backend)[:, None])
    assert_close({"y": torch.cat(outputs, dim=1), "final_state": state}, whole, CLOSE)
