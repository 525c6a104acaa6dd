"""Check the Triton kernels of the scan and the convolution on a GPU against the reference, then time them.

    PYTHONPATH=. python benchmarks/gpu_scan_check.py [check] [time] [tune]

Without arguments: check and time. The check prints every quantity beyond its tolerance and goes on; the exit code is 1
when there was one. `tune` times the launch settings that `kernels/selective_scan/triton.py` fixes. The figures of
mamba_ssm were recorded on an NVIDIA H200 on another day (commit e9594ce, its own (B, D, L) layout), not in this run.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mamba_seq.kernels.causal_conv1d import triton as conv
from mamba_seq.kernels.causal_conv1d.reference import causal_conv1d_reference, causal_conv1d_update_reference
from mamba_seq.kernels.selective_scan import triton as scan
from mamba_seq.kernels.selective_scan.reference import selective_scan_reference, selective_state_update_reference

DEVICE = "cuda"
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# relative to the norm; 16-bit results carry the rounding of their type
TOLERANCE = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 5e-3}
GRADIENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")

# B, L, D -> milliseconds of mamba_ssm's forward and backward
RECORDED = {
    (8, 2048, 1536): (0.449, 1.773),
    (64, 2048, 256): (0.591, 2.368),
    (1, 131072, 512): (1.466, 7.377),
    (1, 1048576, 256): (10.12, 25.43),
    (1, 1048576, 128): (10.13, 24.01),
    (32, 16000, 256): (4.295, 14.46),
}


class Case(NamedTuple):
    """One scan to check."""

    B: int
    L: int
    D: int
    N: int
    dtype: str = "fp32"
    skip: bool = True
    gate: bool = True
    bias: bool = True
    softplus: bool = True
    state: bool = True
    slices: bool = False


CASES = (
    *(Case(2, L, 48, 16) for L in (1, 3, 63, 129, 372, 1134, 2049)),
    *(Case(2, L, 100, 16, "bf16", slices=True) for L in (1, 129, 2049)),
    *(Case(3, L, 64, 16, "fp16", slices=True) for L in (63, 372)),
    Case(1, 1134, 33, 1),
    Case(2, 372, 100, 1, skip=False, gate=False, bias=False, softplus=False, state=False),
    Case(2, 1134, 48, 8, gate=False),
    Case(2, 372, 48, 8, "bf16", bias=False, state=False),
    Case(2, 129, 48, 12, softplus=False),
    Case(2, 1134, 100, 64),
    Case(1, 372, 48, 64, "bf16", gate=False, slices=True),
    Case(700, 63, 96, 16),  # enough programs for a single chunk a sequence
    Case(80, 372, 512, 16, "bf16", skip=False, slices=True),
)


def main() -> int:
    """Run what the arguments ask for and return the exit code."""
    if not torch.cuda.is_available():
        print("This script needs a CUDA device.")
        return 1
    asked = set(sys.argv[1:]) or {"check", "time"}
    if unknown := asked - {"check", "time", "tune"}:
        print(f"Unknown: {' '.join(sorted(unknown))}; expected check, time or tune.")
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    began = time.time()
    failures = 0
    if "check" in asked:
        failures = check()
        print(f"{failures} failures; {time.time() - began:.0f} s so far", flush=True)
    if "time" in asked:
        report_times()
    if "tune" in asked:
        tune()
    print(f"{time.time() - began:.0f} s")
    return 1 if failures else 0


def check() -> int:
    """Compare with the reference; return the number of failures."""
    failures = 0
    checks: Iterator[tuple[str, Callable[[], dict[str, tuple[float, float]]]]] = itertools.chain(
        ((str(case), lambda case=case: check_scan(case)) for case in CASES),
        ((str(case), lambda case=case: check_conv(*case)) for case in conv_cases()),
        ((f"step {case}", lambda case=case: check_steps(*case)) for case in ((1, 48, 16), (5, 100, 64), (64, 256, 16))),
        (("more than 2^31 elements", check_large),),
    )
    for name, run in checks:
        began = time.time()
        try:
            errors = run()
            torch.cuda.synchronize()
        except Exception as problem:  # a compiler's or a launch's failure is a finding like any other
            print(f"FAILED  {name}: {type(problem).__name__}: {str(problem)[-1500:]}", flush=True)
            failures += 1
            continue
        wrong = {key: value for key, (value, limit) in errors.items() if not value <= limit}
        worst = max(errors, key=lambda key: errors[key][0] / max(errors[key][1], 1e-30))
        mark = "FAILED " if wrong else "ok     "
        shown = " ".join(f"{key}={value:.1e}" for key, value in wrong.items()) or f"{worst}={errors[worst][0]:.1e}"
        print(f"{mark} {name}  {shown}  ({time.time() - began:.1f} s, compiling included)", flush=True)
        failures += len(wrong)
    return failures


def check_scan(case: Case) -> dict[str, tuple[float, float]]:
    """Return (error, tolerance) of the outputs and of every gradient, and whether two runs agree in every bit."""
    inputs = make_inputs(case)
    given = arguments(inputs, case.softplus)
    y, final_state, saved = scan.forward(*given, keep_for_backward=True)
    y_alone, final_alone, _ = scan.forward(*given, keep_for_backward=False)
    dy, dfinal = torch.randn_like(y), torch.randn_like(final_state)
    gradients = scan.backward(dy, dfinal, saved, *given)
    again = scan.backward(dy, dfinal, saved, *given)

    exact = {k: None if v is None else v.double().detach().requires_grad_() for k, v in inputs.items()}
    y_ref, final_ref = selective_scan_reference(*arguments(exact, case.softplus))
    wanted = [k for k in GRADIENTS if exact[k] is not None]
    loss = (y_ref * dy.double()).sum() + (final_ref * dfinal.double()).sum()
    references = dict(zip(wanted, torch.autograd.grad(loss, [exact[k] for k in wanted]), strict=True))

    errors = {"y": compare(y, y_ref), "final_state": compare(final_state, final_ref)}
    same = all(a is None or torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    errors["y, nothing kept"] = compare(y_alone, y_ref)
    errors["final_state, nothing kept"] = compare(final_alone, final_ref)
    errors["bits differ between runs"] = (0.0 if same else 1.0, 0.0)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        if name in references:
            errors[f"d{name}"] = compare(gradient, references[name])
        else:
            errors[f"d{name} is None"] = (0.0 if gradient is None else 1.0, 0.0)
    return errors


def make_inputs(case: Case) -> dict[str, Tensor | None]:
    """Draw a scan's inputs; with `slices`, u and z are halves of one tensor, and B and C slices of another."""
    B, L, D, N = case[:4]
    torch.manual_seed(L)
    dtype = TYPES[case.dtype]
    real = {"device": DEVICE, "dtype": torch.float32}
    if case.slices:
        uz = torch.randn(B, L, 2 * D, **real).to(dtype)
        projected = torch.randn(B, L, 5 + 2 * N, **real).to(dtype)
        u, z, Bs, Cs = uz[..., :D], uz[..., D:], projected[..., 5 : 5 + N], projected[..., 5 + N :]
    else:
        u, z = (torch.randn(B, L, D, **real).to(dtype) for _ in range(2))
        Bs, Cs = (torch.randn(B, L, N, **real).to(dtype) for _ in range(2))
    delta = torch.randn(B, L, D, **real)
    bias = torch.rand(D, **real) - 4
    if not case.softplus:
        delta, bias = 0.1 * delta.abs(), 0.01 * bias.abs()
    return {
        "u": u,
        "delta": delta.to(dtype),
        "A": -torch.exp(torch.randn(D, N, **real)),
        "B": Bs,
        "C": Cs,
        "D": torch.randn(D, **real) if case.skip else None,
        "z": z if case.gate else None,
        "delta_bias": bias if case.bias else None,
        "initial_state": torch.randn(B, D, N, **real) if case.state else None,
    }


def arguments(inputs: dict[str, Any], softplus: bool) -> tuple[Any, ...]:
    """Order a scan's inputs as the backends take them."""
    first = [inputs[k] for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    return (*first, softplus, inputs["initial_state"])


def compare(got: Tensor | None, wanted: Tensor) -> tuple[float, float]:
    """Return the error relative to the norm, and what is allowed for the result's type."""
    if got is None or got.shape != wanted.shape:
        return float("inf"), 0.0
    scale = wanted.detach().norm().clamp_min(1e-20)
    return float((got.double() - wanted.detach()).norm() / scale), TOLERANCE[got.dtype]


def conv_cases() -> tuple[tuple[Any, ...], ...]:
    """List (B, L, D, K, type of x, type of weight, bias, activation, state, slices)."""
    return (
        (2, 1, 48, 4, "fp32", "fp32", True, "silu", True, False),
        (2, 2049, 100, 4, "fp32", "fp32", True, "silu", True, True),
        (3, 372, 100, 4, "bf16", "fp32", True, "silu", False, True),
        (1, 1134, 33, 2, "fp32", "fp32", False, None, False, False),
        (2, 129, 256, 3, "fp16", "fp16", True, None, True, False),
        (2, 63, 48, 7, "bf16", "bf16", True, "silu", True, True),
    )


def check_conv(
    B: int, L: int, D: int, K: int, dtype: str, weights: str, bias: bool, activation: str | None, state: bool, cut: bool
) -> dict[str, tuple[float, float]]:
    """Return (error, tolerance) of a convolution, its gradients and its single step."""
    torch.manual_seed(L)
    x = torch.randn(B, L, 2 * D, device=DEVICE).to(TYPES[dtype])[..., D:]
    x = x if cut else x.contiguous()
    weight = torch.randn(D, K, device=DEVICE).to(TYPES[weights])
    offset = torch.randn(D, device=DEVICE).to(TYPES[weights]) if bias else None
    before = torch.randn(B, D, K - 1, device=DEVICE).to(TYPES[dtype]) if state else None
    y = conv.forward(x, weight, offset, activation, before)
    dy = torch.randn_like(y)
    gradients = conv.backward(dy, x, weight, offset, activation, before)
    exact = [None if v is None else v.double().detach().requires_grad_() for v in (x, weight, offset, before)]
    y_ref = causal_conv1d_reference(exact[0], exact[1], exact[2], activation, exact[3])
    references = iter(torch.autograd.grad((y_ref * dy.double()).sum(), [v for v in exact if v is not None]))
    errors = {"y": compare(y, y_ref)}
    for name, gradient, given in zip(("x", "weight", "bias", "state"), gradients, exact, strict=True):
        if given is not None:
            errors[f"d{name}"] = compare(gradient, next(references))
    states = [torch.randn(B, D, K - 1, device=DEVICE).to(x.dtype)]
    states.append(states[0].clone())
    step = conv.causal_conv1d_update(x[:, 0], states[0], weight, offset, activation)
    step_ref = causal_conv1d_update_reference(x[:, 0], states[1], weight, offset, activation)
    errors["step"] = compare(step, step_ref.double())
    errors["state after the step"] = (0.0 if torch.equal(*states) else 1.0, 0.0)
    return errors


def check_steps(B: int, D: int, N: int) -> dict[str, tuple[float, float]]:
    """Return (error, tolerance) of the single step of the scan, from bfloat16 inputs."""
    case = Case(B, 1, D, N, "bf16", slices=True)
    inputs = make_inputs(case)
    given = [inputs[k] for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    given = [v[:, 0] if v is not None and v.dim() == 3 else v for v in given]
    states = [inputs["initial_state"], inputs["initial_state"].double()]
    y = scan.selective_state_update(states[0], *given, True)
    exact = [None if v is None else v.double() for v in given]
    y_ref = selective_state_update_reference(states[1], *exact, True)
    return {"y": compare(y, y_ref), "state": compare(states[0], states[1])}


def check_large() -> dict[str, tuple[float, float]]:
    """Compare the last channels of a scan beyond 32-bit offsets with a scan of those channels alone."""
    B, L, D, N, few = 1, 1_100_000, 2016, 16, 32
    inputs = make_inputs(Case(B, 8, D, N, "bf16", state=False))
    for name in ("u", "delta", "z"):
        inputs[name] = torch.empty(B, L, D, device=DEVICE, dtype=torch.bfloat16).normal_()
    for name in ("B", "C"):
        inputs[name] = torch.randn(B, L, N, device=DEVICE).bfloat16()
    part = dict(inputs)
    for name in ("u", "delta", "z", "D", "delta_bias"):
        part[name] = inputs[name][..., -few:].contiguous()
    part["A"] = inputs["A"][-few:].contiguous()
    errors = {}
    results = []
    dy = torch.empty(B, L, D, device=DEVICE, dtype=torch.bfloat16).normal_()
    for given, gradient in ((arguments(inputs, True), dy), (arguments(part, True), dy[..., -few:])):
        y, _, saved = scan.forward(*given, keep_for_backward=True)
        du, ddelta, dA, *_ = scan.backward(gradient, None, saved, *given)
        results.append((y[..., -few:], du[..., -few:], ddelta[..., -few:], dA[-few:]))
    for name, whole, alone in zip(("y", "du", "ddelta", "dA"), *results, strict=True):
        errors[name] = compare(whole, alone.double())
    return errors


def report_times() -> None:
    """Print milliseconds of forward and backward, and of their parts, beside the recorded figures of mamba_ssm."""
    print("\nSelective scan, bf16, N 16, softplus, bias, D and z; median ms; mamba_ssm as recorded, not in this run")
    print("| B, L, D | forward | mamba_ssm | ratio | backward | mamba_ssm | ratio | chunk | parts f | parts b |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for shape, (recorded_forward, recorded_backward) in RECORDED.items():
        f, b, parts_f, parts_b, chunk = time_scan(shape)
        row = f"| {shape} | {f:.3f} | {recorded_forward:.3f} | {recorded_forward / f:.2f} "
        row += f"| {b:.3f} | {recorded_backward:.3f} | {recorded_backward / b:.2f} | {chunk} "
        print(
            row + f"| {' + '.join(f'{p:.3f}' for p in parts_f)} | {' + '.join(f'{p:.3f}' for p in parts_b)} |",
            flush=True,
        )
    print("\nCausal convolution, bf16, K 4, SiLU and bias; median ms, and GB/s of the bytes it must move")
    print("| B, L, D | forward | GB/s | backward | GB/s |")
    print("|---|---|---|---|---|")
    for shape in RECORDED:
        B, L, D = shape
        x, dy = (torch.randn(B, L, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        weight, bias = torch.randn(D, 4, device=DEVICE), torch.randn(D, device=DEVICE)
        f = bench(lambda: conv.forward(x, weight, bias, "silu", None))  # noqa: B023
        b = bench(lambda: conv.backward(dy, x, weight, bias, "silu", None))  # noqa: B023
        gigabytes = B * L * D * 2e-6
        print(f"| {shape} | {f:.3f} | {2 * gigabytes / f:.0f} | {b:.3f} | {3 * gigabytes / b:.0f} |", flush=True)


def time_scan(shape: tuple[int, int, int]) -> tuple[float, float, list[float], list[float], int]:
    """Return milliseconds of forward and backward, of their three parts each, and the chunk length."""
    given = arguments(make_inputs(Case(*shape, 16, "bf16", state=False)), True)
    y, _, saved = scan.forward(*given, keep_for_backward=True)
    dy = torch.randn_like(y)
    f = bench(lambda: scan.forward(*given, keep_for_backward=False))
    b = bench(lambda: scan.backward(dy, None, saved, *given))

    inputs = scan.Inputs.prepare(*given[:-1])
    cut = scan.plan(torch.Size(shape), dy.device)
    parts_f: list[float] = []
    parts_b: list[float] = []
    states, adjoints = (torch.zeros_like(inputs.between_chunks(cut)) for _ in range(2))
    if cut.n_chunks > 1:
        sums, states = scan.summarise_chunks(inputs, cut)
        parts_f.append(bench(lambda: scan.summarise_chunks(inputs, cut)))
        parts_f.append(bench(lambda: scan.pass_summaries(states, sums, inputs.A, None, reverse=False)))
        parts_b.append(bench(lambda: scan.summarise_adjoints(dy, inputs, cut)))
        parts_b.append(bench(lambda: scan.pass_summaries(adjoints, sums, inputs.A, None, reverse=True)))
    parts_f.append(bench(lambda: scan.compute_outputs(inputs, states, cut, False)))
    parts_b.append(bench(lambda: scan.compute_gradients(dy, inputs, saved[0], adjoints, cut)))
    return f, b, parts_f, parts_b, cut.chunk


def tune() -> None:
    """Time other launch settings: chunk lengths, then steps and registers of the kernels."""
    shapes = ((8, 2048, 1536), (1, 131072, 512), (1, 1048576, 256))
    usual = scan.plan
    for shape in shapes:
        for chunk in (128, 256, 512, 1024, 2048):
            cut = scan.Plan(chunk, triton.cdiv(shape[1], chunk), min(chunk, scan.KEPT_EVERY))
            scan.plan = lambda *_, cut=cut: cut
            show(f"{shape} chunk {chunk}", shape)
    scan.plan = usual
    for steps, registers in ((4, None), (4, 96), (4, 80), (2, None), (8, None), (8, 128)):
        scan.STEPS, scan.FORWARD_REGISTERS = steps, registers
        for shape in shapes[:2]:
            show(f"{shape} forward steps {steps} registers {registers}", shape, backward=False)
    scan.STEPS, scan.FORWARD_REGISTERS = 4, None
    for steps, registers in (
        (2, None),
        (2, 200),
        (2, 168),
        (2, 144),
        (2, 128),
        (4, None),
        (4, 200),
        (1, 168),
        (1, 128),
    ):
        scan.BACKWARD_STEPS, scan.BACKWARD_REGISTERS = steps, registers
        for shape in shapes[:2]:
            show(f"{shape} backward steps {steps} registers {registers}", shape)


def show(name: str, shape: tuple[int, int, int], backward: bool = True) -> None:
    """Print the parts of one setting's time."""
    f, b, parts_f, parts_b, _ = time_scan(shape)
    line = f"{name}: forward {f:.3f} = {' + '.join(f'{p:.3f}' for p in parts_f)}"
    print(line + (f"; backward {b:.3f} = {' + '.join(f'{p:.3f}' for p in parts_b)}" if backward else ""), flush=True)


def bench(run: Callable[[], Any]) -> float:
    """Return the median time of a call in milliseconds."""
    return float(triton.testing.do_bench(run, warmup=10, rep=50, return_mode="median"))


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    raise SystemExit(main())
