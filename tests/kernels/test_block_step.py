"""A step of whole blocks against the definition and the separate operators, states changed in place."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels import causal_conv1d_update, selective_state_update
from mamba_seq.kernels._dispatch import triton_interpreted
from mamba_seq.kernels.block_step import block_step
from mamba_seq.kernels.block_step.triton import Launch, Prepared, why_not
from tests.kernels.block_cases import Stack, draw
from tests.kernels.compare import DEVICE, DTYPES, Tolerance, assert_close

TRITON = DEVICE["triton"]
TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-4, 1e-5),
    "fp16": Tolerance(1e-2, 1e-2, 3e-3),
    # states of the convolution are rounded; the interpreter cuts them off, and the next steps see that
    "bf16": Tolerance(1e-1, 1e-1, 2e-2 if TRITON == "cuda" else 5e-2),
}


def results(stack: Stack, out: Tensor) -> dict[str, Tensor]:
    named = {"out": out}
    for i, (conv, ssm) in enumerate(stack.states):
        named |= {f"conv {i}": conv, f"ssm {i}": ssm}
    return named


def run(stack: Stack, backend: str, steps: int = 3) -> dict[str, Tensor]:
    """Take a few steps from a copy of the states, each from another row of numbers."""
    stack = stack.moved(TRITON if backend == "triton" else "cpu")
    for i in range(steps):
        residual = (stack.residual.float() * (1 + 0.5 * i)).roll(i, dims=1).to(stack.residual.dtype)
        out = block_step(residual, stack.states, stack.blocks, stack.norm, 1e-5, stack.final_norm, backend)
    return results(stack, out)


def truth(stack: Stack, steps: int = 3) -> dict[str, Tensor]:
    """What float64 gives, but for the types that states and stream are kept in."""
    wide = Stack(stack.residual, stack.states, stack.moved(dtype=torch.float64).blocks, stack.norm, None)
    if stack.residual.dtype == torch.float32 and stack.states[0][0].dtype == torch.float32:
        wide = stack.moved(dtype=torch.float64)
        for i in range(steps):
            residual = (stack.residual.float() * (1 + 0.5 * i)).roll(i, dims=1).double()
            out = block_step(residual, wide.states, wide.blocks, wide.norm, 1e-5, wide.final_norm, "reference")
        return results(wide, out)
    return run(stack, "reference", steps)


def check(stack: Stack, dtype: str = "fp32", steps: int = 3) -> None:
    assert_close(run(stack, "triton", steps), truth(stack, steps), TOLERANCES[dtype])


def by_separate_operators(stack: Stack) -> dict[str, Tensor]:
    """The block as its module takes a step, in the type of the weights."""
    stack = stack.moved()
    x = stack.residual
    for block, (conv, ssm) in zip(stack.blocks, stack.states, strict=True):
        if stack.norm == "rms":
            normed = F.rms_norm(x, x.shape[-1:], block.norm_weight, 1e-5)
        else:
            normed = F.layer_norm(x, x.shape[-1:], block.norm_weight, block.norm_bias, 1e-5)
        u, z = F.linear(normed, block.in_weight, block.in_bias).chunk(2, dim=-1)
        u = causal_conv1d_update(u, conv, block.conv_weight, block.conv_bias, "silu", backend="reference")
        N, R = block.A_log.shape[1], block.dt_weight.shape[1]
        low, B, C = F.linear(u, block.x_weight).split((R, N, N), dim=-1)
        delta = F.linear(low, block.dt_weight)
        A = -torch.exp(block.A_log)
        y = selective_state_update(ssm, u, delta, A, B, C, block.D, z, block.dt_bias, True, backend="reference")
        x = x + F.linear(y, block.out_weight, block.out_bias)
    return results(stack, x)


@pytest.mark.parametrize("case", [{}, {"norm": "layer", "bias": True}, {"conv_bias": False, "K": 2}], ids=str)
def test_reference_is_the_separate_operators(case: dict[str, Any]) -> None:
    stack = draw(**case, batch=2, final=False)
    assert_close(run(stack, "reference", 1), by_separate_operators(stack), TOLERANCES["fp32"])


@pytest.mark.parametrize(
    "case",
    [
        {"M": 24, "N": 8, "K": 2},
        {"M": 24, "N": 16, "K": 3, "norm": "layer", "bias": True, "batch": 3},
        {"M": 64, "N": 16, "K": 4, "batch": 3},
        {"M": 100, "N": 24, "K": 5, "R": 5, "conv_bias": False},
        {"M": 100, "N": 5, "R": 3, "norm": "layer"},
        {"M": 7, "N": 3, "K": 3, "R": 1, "expand": 1, "bias": True, "final": False},
        {"M": 200, "N": 16, "layers": 1},
        {"M": 33, "N": 1, "layers": 1, "expand": 3, "final": False},
    ],
    ids=str,
)
def test_sizes(case: dict[str, Any]) -> None:
    check(draw(**case), steps=1 if triton_interpreted() and case["M"] > 50 else 3)


@pytest.mark.parametrize("stream", ["fp32", "same"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_weights_and_streams_of_16_bits(norm: str, dtype: str, stream: str) -> None:
    kind = DTYPES[dtype]
    stack = draw(dtype=kind, stream=kind if stream == "same" else torch.float32, norm=norm, bias=True)
    check(stack, dtype, steps=2)


@pytest.mark.parametrize("channels", [16, 32, 128])
def test_parts_of_any_size(channels: int) -> None:
    """Sums over parts, one of them not full, or one program for all channels."""
    stack = draw(M=36, batch=2).moved(TRITON)
    want = truth(stack.moved(), 1)
    for resident in (False, True):
        if resident and triton_interpreted() and channels < 72:
            continue  # programs that wait for each other
        got = stack.moved(TRITON)
        launch = Launch(channels, 4, resident)
        step = Prepared(got.residual, got.states, got.blocks, got.norm, 1e-5, got.final_norm, launch)
        assert_close(results(got, step(got.residual)), want, TOLERANCES["fp32"])


@pytest.mark.parametrize(
    "case",
    [
        {"M": 24, "N": 8, "batch": 3},
        {"M": 36, "N": 16, "batch": 17, "norm": "layer", "bias": True, "layers": 1},
        {"M": 100, "N": 24, "K": 2, "R": 5, "batch": 2, "conv_bias": False, "final": False, "layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_tiles_of_sequences(dtype: str, case: dict[str, Any]) -> None:
    stack = draw(**case, dtype=DTYPES[dtype]).moved(TRITON)
    want, first = truth(stack.moved(), 1), None
    for resident in (False,) if triton_interpreted() else (False, True):
        got = stack.moved(TRITON)
        launch = Launch(32, 4, resident, 16)
        step = Prepared(got.residual, got.states, got.blocks, got.norm, 1e-5, got.final_norm, launch)
        found = results(got, step(got.residual))
        assert_close(found, want, TOLERANCES[dtype])
        first = first or found
        assert all(torch.equal(found[name], first[name]) for name in found)


def test_states_that_are_views_of_a_cache() -> None:
    stack = draw(batch=2).moved(TRITON)
    want = run(stack, "triton", 1)
    D, N, K = 48, 16, 4
    caches = (torch.full((2, 2, D + 2, N + 3), 9.0, device=TRITON), torch.full((K + 1, D, 2, 2), 9.0, device=TRITON))
    views = [(caches[1][1:K, :, :, i].permute(2, 1, 0), caches[0][:, i, 1:-1, 2:-1]) for i in range(2)]
    for (conv, ssm), (conv_view, ssm_view) in zip(stack.states, views, strict=True):
        conv_view.copy_(conv)
        ssm_view.copy_(ssm)
    out = block_step(stack.residual, views, stack.blocks, stack.norm, 1e-5, stack.final_norm, "triton")
    assert_close(results(stack._replace(states=views), out), want, Tolerance(0, 0, 1e-7))
    for conv_view, ssm_view in views:
        conv_view.fill_(9.0)
        ssm_view.fill_(9.0)
    assert all(torch.equal(cache, torch.full_like(cache, 9.0)) for cache in caches)


def test_strided_stream_and_nothing_else_changes() -> None:
    stack = draw(batch=3).moved(TRITON)
    before = stack.moved(TRITON)
    strided = torch.stack([stack.residual, torch.full_like(stack.residual, float("nan"))], dim=-1)[..., 0]
    want = run(stack, "triton", 1)
    out = block_step(strided, stack.states, stack.blocks, stack.norm, 1e-5, stack.final_norm, "triton")
    assert_close(results(stack, out), want, Tolerance(0, 0, 1e-7))
    for block, old in zip(stack.blocks, before.blocks, strict=True):
        assert all(a is None or torch.equal(a, b) for a, b in zip(block, old, strict=True))


def test_what_the_kernels_do_not_take() -> None:
    stack = draw()
    first = stack.blocks[0]
    other = [first, stack.blocks[1]._replace(D=first.D[:, None][:, 0].double())]
    turned = first._replace(x_weight=first.x_weight.t().contiguous().t())
    strided = (stack.states[1][0], stack.states[1][1].transpose(1, 2).contiguous().transpose(1, 2))
    reasons = {
        "float64 runs on the reference only": (stack.moved(dtype=torch.float64).blocks, stack.states),
        "the blocks are not of one shape and type": (other, stack.states),
        "x_weight is not contiguous": ([turned] * 2, stack.states),
        "conv_weight has not the type": ([first._replace(conv_weight=first.conv_weight.half())] * 2, stack.states),
        "do not lie in memory in one way": (stack.blocks, [stack.states[0], strided]),
    }
    for reason, (blocks, states) in reasons.items():
        assert reason in str(why_not(blocks, states, stack.residual))
    with pytest.raises(RuntimeError, match="cannot run this call: there is no CPU kernel of it"):
        block_step(stack.residual, stack.states, stack.blocks, backend="cpu")
    wide = draw(M=3000, N=1, R=1, expand=1, layers=1).moved(TRITON)
    with pytest.raises(RuntimeError, match="blocks of width 3000 are not small"):
        block_step(wide.residual, wide.states, wide.blocks, backend="triton")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": torch.zeros(1, 2, 24)}, r"residual has shape \(1, 2, 24\), expected \(B, M\)"),
        ({"residual": torch.zeros(1, 20)}, r"norm_weight has shape \(24,\), expected \(M,\) = \(20,\)"),
        ({"states": []}, "states is of 0 blocks, expected 2 like blocks"),
        ({"norm": "batch"}, "norm is 'batch', expected 'rms' or 'layer'"),
        ({"residual": torch.zeros(2, 24)}, r"state of the convolution has shape \(1, 48, 3\), expected"),
    ],
    ids=str,
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    stack = draw()
    given = {"residual": stack.residual, "states": stack.states, "blocks": stack.blocks} | change
    with pytest.raises(ValueError, match=message):
        block_step(**given)
