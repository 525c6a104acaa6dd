"""The selective scan on the GPU: a parallel form of the recurrence of `reference.py`, in Triton.

The recurrence is serial over time, and batch times channels often do not fill a GPU: one DNA sequence of a million bases
has 8 blocks of 32 channels. So the sequence is cut into chunks, and three functions, kept apart, work on them:

1. `summarise_chunks`: every chunk by itself, from a zero state: its end state, and the sum of its step sizes;
2. `pass_summaries`: over the chunks, state_(c+1) = exp(A sum_c) state_c + end_c. The decay over a whole chunk needs no
   product of decays, only the sum of the step sizes, since A is constant over time;
3. `compute_outputs`: every chunk by itself again, now from the state that truly precedes it.

Every exponential is computed twice in that form, so where batch and channels fill the device on their own, (1) and (2) are
left out and one program goes through all chunks in order (`Plan`). The backward pass has the same three parts in reverse;
there, what is passed on is the gradient of the state. Between the passes only the states at chunk starts are kept.

Sums over channels (dB, dC) are partial sums per block of channels, and sums over time (dA, dD, ddelta_bias) are partial
sums per program, each added up afterwards in a fixed order: no atomics, the same bits at every run.
"""

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mamba_seq.kernels._dispatch import triton_interpreted
from mamba_seq.kernels.selective_scan import _triton_forward, _triton_step

BLOCK_D = 32  # channels of a program: one warp, one channel a lane
STEPS = 4  # time steps whose loads and step sizes are computed together


class Plan(NamedTuple):
    """How a scan is cut."""

    chunk: int
    """Time steps of a chunk."""
    n_chunks: int
    serial: bool
    """One program goes through all chunks of a sequence, instead of one program a chunk."""

    @property
    def chunks_a_program(self) -> int:
        """Chunks that one program of the last phase goes through."""
        return self.n_chunks if self.serial else 1


def plan(shape: torch.Size, device: torch.device) -> Plan:
    """Cut (B, L, D) so that programs fill the device about once, and chunks stay long enough to be worth their states."""
    B, L, D = shape
    rows = B * triton.cdiv(D, BLOCK_D)
    multiprocessors = multiprocessor_count(device)
    serial = rows >= 9 * multiprocessors  # fewer leave a lone warp waiting for itself; measured on an H200
    shortest, longest = (32, 32) if triton_interpreted() else (128, 2048)
    wanted = rows * L // (32 * multiprocessors)
    chunk = min(max(triton.next_power_of_2(max(wanted, 1)), shortest), longest)
    return Plan(chunk, triton.cdiv(L, chunk), serial)


@functools.cache
def multiprocessor_count(device: torch.device) -> int:
    """Return how many multiprocessors a device has; the interpreter counts as a small one."""
    return 1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Run the scan; arguments, shapes and results as `function.py` says. Saved: states (B, chunks + 1, N, D)."""
    inputs = Inputs.prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    cut = plan(u.shape, u.device)
    first = None if initial_state is None else initial_state.transpose(1, 2).contiguous()
    with torch.cuda.device_of(u):
        if cut.serial:
            states = u.new_empty((u.shape[0], cut.n_chunks + 1, A.shape[1], u.shape[2]), dtype=torch.float32)
            states[:, 0] = 0.0 if first is None else first
        else:
            sums, states = summarise_chunks(inputs, cut)
            pass_summaries(states, sums, inputs.A, first, reverse=False)
        y = compute_outputs(inputs, states, cut)
    final_state = states[:, -1].transpose(1, 2).contiguous()
    return y, final_state, (states,) if keep_for_backward else ()


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Advance `state` (B, D, N) in place by one step and return y (B, D); B and C are (B, N) or (B, 1, N)."""
    B, C = (p[:, 0] if p.dim() == 3 else p for p in (B, C))
    batch, channels, N = state.shape
    y = u.new_empty((batch, channels))
    block = max(1, min(64, 1024 // triton.next_power_of_2(N)))
    with torch.cuda.device_of(u):
        _triton_step.step[(triton.cdiv(channels, block) * batch,)](
            y, state, u, delta, A, B, C, D, z, delta_bias,
            *state.stride(), *u.stride(), *delta.stride(), *A.stride(), *B.stride(), *C.stride(),
            *((0, 0) if z is None else z.stride()), channels,
            N=N, N_PADDED=triton.next_power_of_2(N), HAS_D=D is not None, HAS_Z=z is not None,
            HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, BLOCK_D=block,
            APPROXIMATE=not triton_interpreted(), num_warps=2,
        )  # fmt: skip
    return y


class Inputs(NamedTuple):
    """A scan's inputs as the kernels want them: channels with unit stride, A as (N, D), B and C float32 and contiguous.

    B and C are read by every lane of every block of channels; one conversion here is cheaper than one in each of them.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool

    @classmethod
    def prepare(
        cls,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> "Inputs":
        """Copy only what does not lie as it should; slices along D, as the Mamba block makes them, stay as they are."""
        return cls(
            rows(u),
            rows(delta),
            A.t().contiguous(),
            B.float().contiguous(),
            C.float().contiguous(),
            None if D is None else D.contiguous(),
            None if z is None else rows(z),
            None if delta_bias is None else delta_bias.contiguous(),
            delta_softplus,
        )

    def switches(self) -> dict[str, int | bool]:
        """Return the compile-time arguments that all kernels share."""
        N = self.A.shape[0]
        return {
            "N": N,
            "N_PADDED": triton.next_power_of_2(N),
            "HAS_BIAS": self.delta_bias is not None,
            "SOFTPLUS": self.delta_softplus,
            "BLOCK_D": BLOCK_D,
            "STEPS": STEPS,
            "APPROXIMATE": not triton_interpreted(),
        }


def summarise_chunks(inputs: Inputs, cut: Plan) -> tuple[Tensor, Tensor]:
    """Phase 1: return the sums of step sizes (B, chunks, D), and states (B, chunks + 1, N, D) holding, at c + 1, the end
    state of chunk c from a zero start.
    """
    u = inputs.u
    B, L, D = u.shape
    sums = u.new_empty((B, cut.n_chunks, D), dtype=torch.float32)
    states = u.new_empty((B, cut.n_chunks + 1, inputs.A.shape[0], D), dtype=torch.float32)
    _triton_forward.chunk_summaries[(triton.cdiv(D, BLOCK_D) * cut.n_chunks * B,)](
        u, inputs.delta, inputs.A, inputs.B, inputs.delta_bias, states, sums,
        *u.stride()[:2], *inputs.delta.stride()[:2], L, D, cut.chunk, cut.n_chunks,
        **inputs.switches(), num_warps=warps(inputs.A.shape[0]),
    )  # fmt: skip
    return sums, states


def pass_summaries(states: Tensor, sums: Tensor, A: Tensor, initial: Tensor | None, reverse: bool) -> None:
    """Phase 2, in place on states (B, chunks + 1, N, D): turn what each chunk adds into the states between chunks.

    `initial` (B, N, D) is the state before the first chunk; in reverse, the gradient of the state after the last one.
    """
    B, slots, N, D = states.shape
    block = 128
    _triton_forward.pass_states[(triton.cdiv(N * D, block) * B,)](
        states, sums, A, initial, D, slots - 1,
        N=N, HAS_INITIAL=initial is not None, REVERSE=reverse, BLOCK=block, UNROLL=8,
        APPROXIMATE=not triton_interpreted(), num_warps=4,
    )  # fmt: skip


def compute_outputs(inputs: Inputs, states: Tensor, cut: Plan) -> Tensor:
    """Phase 3: return y (B, L, D) from the states before each chunk; a serial plan also fills in the states after it."""
    u, z = inputs.u, inputs.z
    B, L, D = u.shape
    y = u.new_empty((B, L, D))
    programs = triton.cdiv(D, BLOCK_D) * triton.cdiv(cut.n_chunks, cut.chunks_a_program) * B
    _triton_forward.outputs[(programs,)](
        y, states, u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, z, inputs.delta_bias,
        *u.stride()[:2], *inputs.delta.stride()[:2], *((0, 0) if z is None else z.stride()[:2]),
        L, D, cut.chunk, cut.n_chunks, cut.chunks_a_program,
        HAS_D=inputs.D is not None, HAS_Z=z is not None, STORE_STATES=cut.serial,
        **inputs.switches(), num_warps=warps(inputs.A.shape[0]),
    )  # fmt: skip
    return y


def warps(N: int) -> int:
    """Return the warps that share a program's states: one holds 64 states a channel in its registers."""
    return max(1, triton.next_power_of_2(N) // 64)


def rows(tensor: Tensor) -> Tensor:
    """Return (B, L, D) with unit stride along D, and rows near enough for 32-bit offsets within a chunk; copy if not."""
    near = tensor.stride(1) < 2**19
    return tensor if tensor.stride(2) == 1 and near else tensor.contiguous()
