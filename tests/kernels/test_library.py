"""The operators of torch.library: opcheck, and torch.compile in one graph, forward and backward, for any length."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from mamba_seq.kernels import (
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    time_invariant_scan,
)
from mamba_seq.kernels._dispatch import implementation
from tests.kernels.compare import Tolerance, assert_close
from tests.kernels.test_cpu_contract import boundaries, draw

OPERATORS = torch.ops.mamba_seq
pytestmark = [
    pytest.mark.usefixtures("_nothing_compiled"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning"),  # in Triton's interpreter
]

Arguments = dict[str, Any]


def scan_arguments(L: int, cut: list[int] | None = None, double: bool = False, **kind: Any) -> Arguments:
    packed = {"batch": 1, "sequences": len(cut) - 1} if cut else {}
    tensors = draw(L, D=6, **packed, **kind)
    if double:
        tensors = {k: t.double() for k, t in tensors.items()}
    leaves: Arguments = {name: t.requires_grad_() for name, t in tensors.items()}
    if cut:
        leaves["cu_seqlens"] = boundaries(cut)
    return leaves | {"delta_softplus": True}


def conv_arguments(L: int, cut: list[int] | None = None, double: bool = False) -> Arguments:
    torch.manual_seed(L)
    dtype = torch.float64 if double else torch.float32
    sequences = len(cut) - 1 if cut else 2
    shapes = {"x": (1 if cut else 2, L, 6), "weight": (6, 4), "bias": (6,), "initial_state": (sequences, 6, 3)}
    leaves: Arguments = {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}
    if cut:
        leaves["cu_seqlens"] = boundaries(cut)
    return leaves | {"activation": "silu"}


def time_invariant_arguments(L: int, complex_A: bool = False) -> Arguments:
    torch.manual_seed(L)
    A = -torch.rand(6, 3)
    A = torch.complex(A, torch.randn(6, 3)) if complex_A else A
    given = {"u": torch.randn(2, L, 6), "delta": torch.rand(6), "A": A}
    given |= {name: torch.randn(6, 3, dtype=A.dtype) for name in "BC"}
    given |= {"initial_state": torch.randn(2, 6, 3, dtype=A.dtype), "D": torch.randn(6), "z": torch.randn(2, L, 6)}
    return {name: t.requires_grad_() for name, t in given.items()}


def with_gradients(function: Callable[..., Any], arguments: Arguments, **extra: Any) -> dict[str, Tensor]:
    """Return both results and the gradient of every float argument by name."""
    y, state = function(**arguments, return_final_state=True, **extra)
    leaves = {name: t for name, t in arguments.items() if isinstance(t, Tensor) and t.requires_grad}
    torch.manual_seed(1)
    upstream = [torch.randn_like(y), torch.randn_like(state)]
    found = torch.autograd.grad([y, state], list(leaves.values()), upstream)
    return {"y": y, "state": state} | {f"d{name}": g for name, g in zip(leaves, found, strict=True)}


CALLS: dict[str, tuple[Callable[..., Any], Callable[[int], Arguments], str | None]] = {
    "scan": (selective_scan, scan_arguments, None),
    "scan-bf16": (selective_scan, lambda L: scan_arguments(L, dtype="bf16"), None),
    "scan-complex-groups": (selective_scan, lambda L: scan_arguments(L, groups=3, complex_A=True), None),
    "scan-constant": (selective_scan, lambda L: scan_arguments(L, constant="BC"), None),
    "scan-one-group": (selective_scan, lambda L: scan_arguments(L, groups=1), None),
    "scan-packed": (selective_scan, lambda L: scan_arguments(L, [0, 1, 4, L]), None),
    "scan-float64": (selective_scan, lambda L: scan_arguments(L, [0, 1, 4, L], double=True), None),
    "scan-reference": (selective_scan, scan_arguments, "reference"),
    "scan-triton": (selective_scan, scan_arguments, "triton"),
    "conv": (causal_conv1d, conv_arguments, None),
    "conv-packed": (causal_conv1d, lambda L: conv_arguments(L, [0, 1, 4, L]), None),
    "conv-float64": (causal_conv1d, lambda L: conv_arguments(L, double=True), None),
    "conv-triton": (causal_conv1d, conv_arguments, "triton"),
}


def on_gpu(arguments: Arguments) -> Arguments:
    return {
        k: t.detach().cuda().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t
        for k, t in arguments.items()
    }


def placed(arguments: Arguments, backend: str | None) -> Arguments:
    return on_gpu(arguments) if backend == "triton" and torch.cuda.is_available() else arguments


def positional(operator: Any, arguments: Arguments, **extra: Any) -> tuple[Any, ...]:
    given = arguments | extra
    return tuple(given.get(argument.name) for argument in operator._schema.arguments)


@pytest.mark.parametrize("call", CALLS)
def test_opcheck(call: str) -> None:
    function, arguments, backend = CALLS[call]
    L = 5 if backend == "triton" or "float64" in call else 65
    given = placed(arguments(L), backend)
    operator = getattr(OPERATORS, function.__name__).default
    torch.library.opcheck(operator, positional(operator, given, backend=backend, keep=True))


@pytest.mark.parametrize("name", ["selective_scan", "causal_conv1d"])
def test_opcheck_of_nothing(name: str) -> None:
    operator = getattr(OPERATORS, name).default
    arguments = {"selective_scan": scan_arguments, "causal_conv1d": conv_arguments}[name](0)
    torch.library.opcheck(operator, positional(operator, arguments, keep=True))


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_opcheck_of_steps(backend: str) -> None:
    whole = {k: t.detach() for k, t in scan_arguments(1).items() if isinstance(t, Tensor)}
    step = {k: t[:, 0] if k in ("u", "delta", "z", "B", "C") else t for k, t in whole.items() if k != "initial_state"}
    step = placed(step | {"state": whole["initial_state"], "delta_softplus": True}, backend)
    operator = OPERATORS.selective_state_update.default
    torch.library.opcheck(operator, positional(operator, step, backend=backend))
    conv = {k: t.detach() for k, t in conv_arguments(1).items() if isinstance(t, Tensor)}
    step = placed(conv | {"x": conv["x"][:, 0], "state": conv.pop("initial_state"), "activation": "silu"}, backend)
    operator = OPERATORS.causal_conv1d_update.default
    torch.library.opcheck(operator, positional(operator, step, backend=backend))


@pytest.mark.parametrize("call", [pytest.param(c, marks=pytest.mark.gpu) if "triton" in c else c for c in CALLS])
def test_one_graph_for_every_length(call: str) -> None:
    """What is compiled for one length serves others, and gives what a plain call gives, gradients included."""
    function, arguments, backend = CALLS[call]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    # the CPU keeps a state every 64 steps, and torch compiles apart what has a dimension of 1
    for L in (9, 5, 8) if backend == "triton" else (130, 65, 1000):
        given = placed(arguments(L), backend)
        want = with_gradients(function, given, backend=backend)
        assert_close(with_gradients(compiled, given, backend=backend), want, Tolerance(1e-6, 1e-6, 1e-6))
    assert counter.frame_count == 1


@pytest.mark.parametrize(("complex_A", "lengths"), [(False, (200, 250)), (True, (200,))], ids=["real", "complex"])
def test_time_invariant_scan(complex_A: bool, lengths: tuple[int, ...]) -> None:
    """Static when complex, else one graph for all lengths with transforms and tables of the same sizes."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(time_invariant_scan, fullgraph=True, backend=counter, dynamic=not complex_A)
    close = Tolerance(1e-4, 1e-4, 1e-5)
    for L in lengths:
        given = time_invariant_arguments(L, complex_A)
        assert_close(with_gradients(compiled, given), with_gradients(time_invariant_scan, given), close)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["selective_scan", "causal_conv1d"])
def test_boundaries_are_checked_when_a_graph_runs(name: str) -> None:
    function = {"selective_scan": selective_scan, "causal_conv1d": causal_conv1d}[name]
    given = {"selective_scan": scan_arguments, "causal_conv1d": conv_arguments}[name](13, [0, 5, 13])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for cut in ([0, 5, 13], [0, 12, 13]):
        given["cu_seqlens"] = boundaries(cut)
        assert torch.equal(compiled(**given), function(**given))
    for cut in ([0, 5, 14], [0, 14, 13], [1, 5, 13]):
        given["cu_seqlens"] = boundaries(cut)
        for run in (function, compiled):
            with pytest.raises(ValueError, match=re.escape(f"increase strictly from 0 to L = 13, got {cut}")):
                run(**given)
    assert counter.frame_count == 1


def test_a_named_backend_that_cannot_run_says_why_while_compiling() -> None:
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run this call: float64 runs on the reference only"):
        compiled(**scan_arguments(5, double=True), backend="cpu")


def test_wrong_shapes_are_named_in_eager_mode_and_by_a_graph_that_may_break() -> None:
    given = scan_arguments(5)
    given["D"] = torch.randn(7)
    with pytest.raises(ValueError, match=r"^D has shape \(7,\), expected \(D,\) = \(6,\)$"):
        torch.compile(selective_scan, backend="aot_eager")(**given)


def test_a_backend_that_does_not_tell_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scan_arguments(130)
    want = with_gradients(selective_scan, given)
    monkeypatch.delattr(implementation("selective_scan", "cpu"), "kept_shapes")
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, given), want, Tolerance(0, 0, 0))


@pytest.mark.parametrize("cut", [None, [0, 1, 4, 130]])
def test_nothing_is_kept_without_a_gradient(cut: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    forward = implementation("selective_scan", "cpu").forward
    monkeypatch.setattr(
        implementation("selective_scan", "cpu"),
        "forward",
        lambda *a, keep_for_backward, **k: (
            asked.append(keep_for_backward) or forward(*a, keep_for_backward=keep_for_backward, **k)
        ),
    )
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    for run in (selective_scan, compiled):
        given = scan_arguments(130, cut)
        run(**given)
        with torch.no_grad():
            run(**given)
        run(**{k: t.detach() if isinstance(t, Tensor) else t for k, t in given.items()})
    assert asked == [True, False, False] * 2


def test_steps_compiled() -> None:
    def generate(state: Tensor, window: Tensor, x: Tensor, scan: Arguments, conv: Arguments) -> Tensor:
        u = causal_conv1d_update(x, window, **conv)
        return selective_state_update(state, u, **scan)

    whole = {k: t.detach() if isinstance(t, Tensor) else t for k, t in scan_arguments(3).items()}
    conv = {k: t.detach() if isinstance(t, Tensor) else t for k, t in conv_arguments(3).items()}
    window, state, u = conv.pop("initial_state"), whole.pop("initial_state"), whole.pop("u")
    conv.pop("x")
    compiled = torch.compile(generate, fullgraph=True, backend="aot_eager")
    results = []
    for run in (generate, compiled):
        h, w, outputs = state.clone(), window.clone(), []
        for t in range(3):
            now = {k: p[:, t] if k in ("delta", "z", "B", "C") else p for k, p in whole.items()}
            outputs.append(run(h, w, u[:, t], now, conv))
        results.append([*outputs, h, w])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(results[0][-2], state)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
def test_with_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler that torch.compile takes by default, with something of its own around the operators."""

    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no pool of processes for a kernel or two

    def run(x: Tensor, scan: Arguments) -> Tensor:
        return selective_scan(x * x, **scan)

    scan = scan_arguments(63)
    x = scan.pop("u")
    leaves = [x, scan["A"], scan["initial_state"]]
    results = []
    for function in (run, torch.compile(run, fullgraph=True)):
        y = function(x, scan)
        results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    names = ("y", "dx", "dA", "dstate")
    want, got = (dict(zip(names, r, strict=True)) for r in results)
    assert_close(got, want, Tolerance(1e-5, 1e-5, 1e-5))


def test_second_derivatives_on_the_reference_only() -> None:
    given = {k: t for k, t in scan_arguments(2, double=True).items() if k != "delta_softplus"}

    def scan(*tensors: Tensor) -> Any:
        return selective_scan(**dict(zip(given, tensors, strict=True)), delta_softplus=True)

    few = {name: t[:1] if name in ("u", "delta", "z", "B", "C", "initial_state") else t for name, t in given.items()}
    assert torch.autograd.gradgradcheck(scan, tuple(t.detach().requires_grad_() for t in few.values()))
    operator, arguments = OPERATORS.selective_scan.default, scan_arguments(2)
    for y in (selective_scan(**arguments), operator(*positional(operator, arguments, keep=True))[0]):
        (first,) = torch.autograd.grad(y.square().sum(), arguments["A"], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            first.sum().backward()


def test_under_fake_tensors() -> None:
    """Shapes without values: nothing is computed and nothing is read, boundaries included."""
    given = scan_arguments(13, [0, 5, 13])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {k: mode.from_tensor(t) if isinstance(t, Tensor) else t for k, t in given.items()}
        y, state = selective_scan(**fakes, return_final_state=True)
    assert (tuple(y.shape), tuple(state.shape)) == ((1, 13, 6), (2, 6, 3))


def test_autocast_changes_nothing_in_an_operator() -> None:
    """Types are the caller's business, inside autocast too, compiled or not."""
    for function, given in ((selective_scan, scan_arguments(63)), (causal_conv1d, conv_arguments(63))):
        want = with_gradients(function, given)
        with torch.autocast("cpu", torch.bfloat16):
            for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
                assert_close(with_gradients(run, given), want, Tolerance(0, 0, 0))


def test_the_last_inputs_of_packed_sequences() -> None:
    """Without reading the boundaries: every mix of a sequence's own inputs and of those before it."""
    for cut, K in itertools.product(([0, 1, 2, 3], [0, 2, 9], [0, 9]), (2, 4, 7)):
        x, before = torch.arange(9.0)[None, : cut[-1], None], -torch.arange(1.0, (len(cut) - 1) * (K - 1) + 1)
        before = before.view(len(cut) - 1, 1, K - 1)
        weight = torch.ones(1, K)
        _, state = causal_conv1d(x, weight, None, None, before, boundaries(cut), return_final_state=True)
        for s, (a, b) in enumerate(itertools.pairwise(cut)):
            want = torch.cat([before[s], x[0, a:b].T], dim=1)[:, 1 - K :]
            assert torch.equal(state[s], want)
