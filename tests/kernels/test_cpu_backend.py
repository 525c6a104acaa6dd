"""What is particular to the CPU kernels: their mathematics, threads, processes, cache on disk, and bounded pieces."""

import importlib
import math
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mamba_seq.kernels import _numba, _segments, causal_conv1d, selective_scan, selective_state_update
from mamba_seq.kernels._simd import (
    exp,
    exp2,
    floats,
    flush,
    lane_sum,
    load,
    load_part,
    log1p_unit,
    sigmoid,
    softplus,
    store,
    store_part,
)

FUNCTIONS = ("exp2", "exp", "log1p", "softplus", "sigmoid", "silu", "flush")


@numba.njit
def apply_kernel(which, x, y, n, spare):
    x_, y_ = floats(x), floats(y)
    for i in range(0, n, 16):
        v = load_part(x_, i, min(16, n - i), floats(spare))
        if which == 0:
            v = exp2(v)
        elif which == 1:
            v = exp(v)
        elif which == 2:
            v = log1p_unit(v)
        elif which == 3:
            v = softplus(v)
        elif which == 4:
            v = sigmoid(v)
        elif which == 5:
            v = v * sigmoid(v)
        else:
            v = flush(v)
        store_part(y_, i, v, min(16, n - i), floats(spare))


@numba.njit
def sum_kernel(x, y):
    total = lane_sum(load(floats(x), 0))
    store(floats(y), 0, load(floats(x), 0))
    floats(y)[0] = total


def apply(name: str, x: Tensor) -> Tensor:
    y, spare = torch.full_like(x, math.nan), torch.zeros(16)
    apply_kernel(FUNCTIONS.index(name), x.data_ptr(), y.data_ptr(), x.numel(), spare.data_ptr())
    return y


@pytest.mark.parametrize(
    ("name", "low", "high", "expected", "tolerance"),
    [
        ("exp2", -126, 127.9, np.exp2, 2e-7),
        ("exp2", -1e-3, 0, np.exp2, 1e-7),  # the decay near 1, where long memory lives
        ("exp", -87, 88, np.exp, 1.5e-7),
        ("log1p", 0, 1, np.log1p, 2e-7),
        ("softplus", -87, 100, lambda x: np.logaddexp(0, x), 3e-7),
        ("softplus", -2, 2, lambda x: np.logaddexp(0, x), 3e-7),
        ("sigmoid", -87, 100, lambda x: 1 / (1 + np.exp(-x)), 3e-7),
        ("silu", -87, 100, lambda x: x / (1 + np.exp(-x)), 3e-7),
    ],
)
def test_functions_match_numpy_in_float64(name, low, high, expected, tolerance):
    x = torch.linspace(low, high, 300_007)
    truth = expected(x.double().numpy())
    found = apply(name, x).double().numpy()
    wrong = np.abs(found - truth) > tolerance * np.abs(truth)
    assert not wrong.any(), f"{name}({x[wrong.argmax()]}) = {found[wrong.argmax()]}, not {truth[wrong.argmax()]}"


def test_functions_at_the_edges():
    inf, nan = math.inf, math.nan
    far = torch.tensor([-inf, -3e38, -1e4, -128.0, 128.0, 1e4, inf, nan])
    assert apply("exp2", far).tolist()[:-1] == [0, 0, 0, 0, inf, inf, inf]
    assert apply("exp", far).tolist()[:-1] == [0, 0, 0, 0, inf, inf, inf]
    assert apply("softplus", far).tolist()[:-1] == [0, 0, 0, 0, 128, 1e4, inf]
    assert apply("sigmoid", far).tolist()[:-1] == [0, 0, 0, 0, 1, 1, 1]
    assert apply("flush", torch.tensor([1e-31, -1e-31, 1e-29, -1e-29, inf, 0.0])).tolist() == pytest.approx(
        [0, 0, 1e-29, -1e-29, inf, 0]
    )
    for name in FUNCTIONS:
        assert apply(name, far)[-1].isnan(), name
    assert apply("exp2", torch.zeros(1)).item() == 1
    tiny = apply("exp2", torch.linspace(-130, -126, 1001))
    assert ((tiny >= 0) & (tiny <= 2**-126)).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exp", np.exp),
        ("exp2", np.exp2),
        ("softplus", lambda x: np.logaddexp(0, x)),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_functions_at_every_number_around_the_ends_of_float32(name, expected):
    """The exponent of exp was a rounding beyond its bounds at one number each, 88.72284 and -88.029694: NaN there."""
    ends = [n * scale for n in (126, 126.5, 127, 127.5, 128) for scale in (1, math.log(2))]
    bits = torch.tensor(ends + [-end for end in ends]).view(torch.int32)
    x = (bits[:, None] + torch.arange(-5000, 5001, dtype=torch.int32)).flatten().view(torch.float32)
    with np.errstate(over="ignore", under="ignore"):
        truth = expected(x.double().numpy()).astype(np.float32)
        found = apply(name, x).numpy()
        close = np.isclose(found, truth, rtol=4e-7, atol=2.0**-126)  # infinity is close to infinity alone
    assert close.all(), f"{name}({x[close.argmin()]}) = {found[close.argmin()]}, not {truth[close.argmin()]}"


def test_lanes_are_summed():
    x, y = torch.arange(16.0), torch.zeros(16)
    sum_kernel(x.data_ptr(), y.data_ptr())
    assert y[0] == 120
    assert torch.equal(y[1:], x[1:])


def scan_inputs(B: int = 2, L: int = 300, D: int = 130, N: int = 8, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "u": torch.randn(B, L, D),
        "delta": torch.randn(B, L, D),
        "A": -4 * torch.rand(D, N),
        "B": torch.randn(B, L, N),
        "C": torch.randn(B, L, N),
        "D": torch.randn(D),
        "z": torch.randn(B, L, D),
        "delta_bias": torch.randn(D),
        "initial_state": torch.randn(B, D, N),
    }


def scan_with_gradients(inputs: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, state = selective_scan(**leaves, delta_softplus=True, return_final_state=True, backend="cpu")
    (y.square().sum() + state.sum()).backward()
    return [y, state, *(x.grad for x in leaves.values())]


def conv_with_gradients(x: Tensor, weight: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    y = causal_conv1d(*leaves, activation="silu", backend="cpu")
    y.square().sum().backward()
    return [y, *(leaf.grad for leaf in leaves)]


@pytest.fixture
def threads():
    """Set torch's number of threads, and restore it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_bits_on_any_number_of_threads(threads):
    inputs, x, weight = scan_inputs(), torch.randn(2, 700, 130), torch.randn(130, 4)
    results = []
    for count in (1, 3, 3):
        threads(count)
        results.append(scan_with_gradients(inputs) + conv_with_gradients(x, weight))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segments_do_not_change_the_result(monkeypatch, dtype):
    inputs = scan_inputs(B=3, L=700, D=20)
    for name in ("u", "delta", "B", "C", "z"):
        inputs[name] = inputs[name].to(dtype)
    x, weight = torch.randn(3, 1500, 20).to(dtype), torch.randn(20, 400)
    scan, conv = scan_with_gradients(inputs), conv_with_gradients(x, weight)
    monkeypatch.setattr(_segments, "_ELEMENTS", 1 << 12)
    monkeypatch.setattr(_segments, "_STEPS", 128)
    assert len(_segments.segments(3, 700, 20, 64)) > 6
    assert all(torch.equal(a, b) for a, b in zip(scan, scan_with_gradients(inputs), strict=True))
    for a, b in zip(conv, conv_with_gradients(x, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4 * b.abs().max().item())


def test_segments_cover_everything_once():
    for batch, length, channels in ((1, 1, 1), (3, 5000, 1536), (100, 1000, 64), (1, 100_001, 256)):
        seen = torch.zeros(batch, length, dtype=torch.int64)
        for part in _segments.segments(batch, length, channels, 64):
            assert part.t0 % 64 == 0
            assert part.batch * part.steps * channels <= max(1 << 22, 1024 * channels)
            part.of(seen[..., None]).add_(1)
        assert (seen == 1).all()


def test_a_batch_of_nothing():
    y, state, *gradients = scan_with_gradients(scan_inputs(B=0, L=70, D=20))
    assert y.shape == (0, 70, 20)
    assert state.shape == (0, 20, 8)
    assert all((x == 0).all() for x in gradients)
    y, _, dweight = conv_with_gradients(torch.randn(0, 70, 20), torch.randn(20, 4))
    assert y.shape == (0, 70, 20)
    assert (dweight == 0).all()


def test_work_runs_on_as_many_threads_as_torch_has(threads):
    for count in (1, 2, 3):
        threads(count)
        barrier = threading.Barrier(count, timeout=60)  # passes only when `count` threads are inside at once
        seen: list[tuple[int, int]] = []

        def work(first: int, last: int, worker: int, barrier=barrier, seen=seen) -> None:
            if not any(number == worker for number, _ in seen):
                barrier.wait()
            seen.append((worker, last - first))

        _numba.run_tasks(work, 40, _numba.worker_count())
        assert {worker for worker, _ in seen} == set(range(count))
        assert sum(size for _, size in seen) == 40


def test_an_error_in_a_task_reaches_the_caller():
    def work(first: int, last: int, worker: int) -> None:
        raise ValueError(f"task {first}")

    with pytest.raises(ValueError, match="task"):
        _numba.run_tasks(work, 5, 3)
    done = []
    _numba.run_tasks(lambda first, last, worker: done.extend(range(first, last)), 5, 3)
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_python_threads_may_call_at_once(threads):
    threads(2)
    cases = [scan_inputs(seed=seed) for seed in range(3)]
    expected = [scan_with_gradients(case) for case in cases]
    found: list[list[Tensor] | None] = [None] * len(cases)

    def call(i: int) -> None:
        for _ in range(5):
            found[i] = scan_with_gradients(cases[i])

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(cases))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    for a, b in zip(expected, found, strict=True):
        assert b is not None
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Scanned(Dataset[Tensor]):
    """A data set that runs the scan in its workers."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return selective_scan(**scan_inputs(seed=index), delta_softplus=True, backend="cpu")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers_forked_after_use_give_the_same(threads):
    threads(2)
    expected = [Scanned()[i] for i in range(4)]  # the parent's pool is running when the workers are forked
    loader = DataLoader(Scanned(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for a, b in zip(expected, loader, strict=True):
        assert torch.equal(a, b)


def _threads_after_fork(connection) -> None:
    torch.set_num_threads(2)
    names: set[str] = set()
    barrier = threading.Barrier(2, timeout=30)

    def work(first: int, last: int, worker: int) -> None:
        barrier.wait()
        names.add(threading.current_thread().name)

    _numba.run_tasks(work, 2, 2)
    connection.send(len(names))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_its_own_threads():
    _numba.run_tasks(lambda first, last, worker: None, 4, 2)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with _numba._pool_lock:  # the fork happens at the worst moment
        child = context.Process(target=_threads_after_fork, args=(theirs,))
        child.start()
    assert ours.poll(60), "the forked process is stuck"
    assert ours.recv() == 2
    child.join(timeout=30)
    assert child.exitcode == 0


SCRIPT = """
import logging
import os
import torch
from mamba_seq.kernels import _numba
from mamba_seq.kernels._numba import compiled
from mamba_seq.kernels._simd import floats

logging.basicConfig(level=logging.INFO, format="%(message)s")
if "CHANGED" in os.environ:  # as if some module of kernels were another
    _numba._stamp_of_modules = lambda: os.environ["CHANGED"]


@compiled
def double(x: int) -> None:
    floats(x)[0] = floats(x)[0] * 2


x = torch.tensor([21.0])
double(x.data_ptr())
print(x.item(), sum(getattr(double.dispatcher.stats, "cache_hits", {}).values()))
"""


def run_script(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    if not script.exists():
        script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


def test_kernels_are_kept_on_disk(tmp_path):
    cache = str(tmp_path / "cache")
    assert run_script(tmp_path, NUMBA_CACHE_DIR=cache).stdout == "42.0 0\n"
    assert run_script(tmp_path, NUMBA_CACHE_DIR=cache).stdout == "42.0 1\n"
    assert run_script(tmp_path, NUMBA_CACHE_DIR=cache, CHANGED="1").stdout == "42.0 0\n"


def test_without_a_folder_to_write_kernels_still_run(tmp_path):
    (tmp_path / "__pycache__").write_text("a file where Numba wants a folder")  # permissions would not stop root
    blocked = str(tmp_path / "__pycache__" / "below")
    done = run_script(tmp_path, NUMBA_CACHE_DIR=blocked, HOME=blocked, XDG_CACHE_HOME=blocked)
    assert done.stdout == "42.0 0\n"
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
    assert "Traceback" not in done.stderr


def test_a_full_disk_does_not_stop_a_kernel(monkeypatch):
    def double(x: int) -> None:
        floats(x)[0] = floats(x)[0] * 2

    def full(address: int) -> None:
        raise OSError(28, "No space left on device")

    kernel = _numba.compiled(double)
    monkeypatch.setitem(kernel.__dict__, "dispatcher", full)
    x = torch.tensor([21.0])
    kernel(x.data_ptr())
    assert x.item() == 42


def test_masked_steps_leave_the_state_alone():
    inputs = scan_inputs(L=140)
    inputs["delta"][:, 70:] = -1e4
    _, state = selective_scan(**inputs, delta_softplus=True, return_final_state=True, backend="cpu")
    cut = {name: x[:, :70] if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
    _, expected = selective_scan(**cut, delta_softplus=True, return_final_state=True, backend="cpu")
    assert torch.equal(state, expected)


def test_nan_stays_in_its_channel_and_after_its_step():
    inputs = scan_inputs(B=1, L=100, D=20)
    expected = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    inputs["delta"][0, 40, 17] = math.nan
    y = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    hit = torch.zeros_like(y, dtype=torch.bool)
    hit[0, 40:, 17] = True
    assert y[hit].isnan().all()
    assert torch.equal(y[~hit], expected[~hit])


def test_a_decaying_state_ends_at_zero_not_in_denormals():
    inputs = scan_inputs(B=1, L=3000, D=16)
    inputs["u"][:, 1:] = 0
    inputs["A"] = torch.full_like(inputs["A"], -1.0)
    _, state = selective_scan(
        **{**inputs, "delta": torch.full_like(inputs["u"], 0.1), "delta_bias": None},
        return_final_state=True,
        backend="cpu",
    )
    assert (state == 0).all()


def test_any_strides():
    inputs = scan_inputs(L=75, D=33)
    strided = dict(inputs)
    for name in ("u", "delta", "B", "C", "z", "initial_state"):
        strided[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    strided["A"] = inputs["A"].t().contiguous().t()
    strided["D"] = torch.stack([inputs["D"]] * 2, dim=1)[:, 0]
    halves = torch.cat([inputs["u"], inputs["z"]], dim=-1)
    strided["u"], _ = halves.chunk(2, dim=-1)
    for a, b in zip(scan_with_gradients(inputs), scan_with_gradients(strided), strict=True):
        assert torch.equal(a, b)
    x, weight = torch.randn(2, 50, 33), torch.randn(33, 4)
    swapped, weight_swapped = x.transpose(1, 2).contiguous().transpose(1, 2), weight.t().contiguous().t()
    for a, b in zip(conv_with_gradients(x, weight), conv_with_gradients(swapped, weight_swapped), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_is_one_number_repeated():
    u = torch.randn(1, 70, 18, requires_grad=True)
    others = {name: x for name, x in scan_inputs(B=1, L=70, D=18).items() if name != "u"}
    selective_scan(u=u, **others, delta_softplus=True, backend="cpu").sum().backward()  # dy has strides of zero
    v = u.detach().clone().requires_grad_()
    y = selective_scan(u=v, **others, delta_softplus=True, backend="cpu")
    y.backward(torch.ones_like(y).contiguous())
    assert torch.equal(u.grad, v.grad)


@pytest.mark.parametrize("shape", [(1, 256, 16), (3, 17, 5), (64, 80, 130)])
def test_steps_follow_the_scan(shape, threads):
    threads(2)
    B, D, N = shape
    inputs = scan_inputs(B=B, L=5, D=D, N=N)
    y, expected = selective_scan(**inputs, delta_softplus=True, return_final_state=True, backend="cpu")
    fixed = {name: inputs[name] for name in ("A", "D", "delta_bias")}
    state = inputs["initial_state"].transpose(1, 2).contiguous().transpose(1, 2)  # any strides, changed in place
    for t in range(5):
        moving = {name: inputs[name][:, t] for name in ("u", "delta", "B", "C", "z")}
        found = selective_state_update(state, **moving, **fixed, delta_softplus=True, backend="cpu")
        torch.testing.assert_close(found, y[:, t], rtol=1e-5, atol=1e-5 * N**0.5)
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)


def test_the_kernels_of_the_cpu_are_what_runs_by_default():
    module = importlib.import_module("mamba_seq.kernels.selective_scan.cpu")
    inputs = scan_inputs(L=10)
    y, _, saved = module.forward(**inputs, delta_softplus=True, keep_for_backward=False)
    assert saved == ()
    assert torch.equal(selective_scan(**inputs, delta_softplus=True), y)
