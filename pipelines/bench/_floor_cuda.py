"""A loop of exponentials on a GPU, in Triton."""
# mypy: ignore-errors

from collections.abc import Callable

import torch
import triton
import triton.language as tl

ROUNDS = 4096


def loop_of_exponentials(device: torch.device) -> tuple[Callable[[], object], int]:
    """Return a call, and how many exponentials it takes."""
    out = torch.empty(132 * 64 * 256, device=device)
    return lambda: exponentials[(132 * 64,)](out, ROUNDS, num_warps=8), out.numel() * ROUNDS * 4


@triton.jit
def exponentials(out, rounds):
    at = tl.program_id(0) * 256 + tl.arange(0, 256)
    a = at * 1e-9 - 0.5
    b, c, d = a + 0.1, a + 0.2, a + 0.3
    for _ in range(rounds):
        a, b, c, d = fast_exp2(a), fast_exp2(b), fast_exp2(c), fast_exp2(d)
    tl.store(out + at, a + b + c + d)


@triton.jit
def fast_exp2(x):
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
