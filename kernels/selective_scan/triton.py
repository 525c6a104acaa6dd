"""The selective scan on the GPU: a parallel form of the recurrence of `reference.py`, in Triton.

The recurrence is serial over time, and batch times channels often do not fill a GPU: one DNA sequence of a million
bases may have 8 blocks of 32 channels. So the sequence is cut into chunks, and three functions, kept apart, work on
them:

1. `summarise_chunks`: every chunk by itself, from a zero state: its end state, and the sum of its step sizes;
2. `pass_summaries`: over the chunks, state_(c+1) = exp(A sum_c) state_c + end_c. The decay over a whole chunk needs no
   product of decays, only the sum of the step sizes, since A is constant over time;
3. `compute_outputs`: every chunk by itself again, now from the state that truly precedes it.

Every exponential is computed twice in that form, so where batch and channels fill the device on their own, a sequence
is a single chunk, and (1) and (2) fall away. The backward pass has the same three parts in reverse, where what is
passed on is the gradient of the state. Between the two passes only a state every KEPT_EVERY steps is kept.

Sums over channels (dB, dC) are partial sums per block of channels, and sums over time (dA, dD, ddelta_bias) are partial
sums per program, each added up afterwards in a fixed order: no atomics, the same bits at every run.
"""

import functools
from types import ModuleType
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mamba_seq.kernels._dispatch import triton_interpreted
from mamba_seq.kernels.selective_scan import _triton_backward, _triton_forward, _triton_step

BLOCK_D = 32  # channels of a program: one warp, one channel a lane
STEPS = 4  # time steps whose loads and step sizes are computed together
BACKWARD_STEPS = 2  # and whose states the backward pass holds in registers
FORWARD_REGISTERS = 96  # registers a lane; None leaves them to the compiler. Fewer let more programs run at a time
BACKWARD_REGISTERS = 168
KEPT_EVERY = 128  # time steps between the states that the backward pass starts from
MOST_PROGRAMS = 8192  # of the gradients at a time; each has scratch memory for the states of one stretch


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
    """Run the scan as `function.py` says; saved are states (B, ceil(L / kept_every), N, D)."""
    faster = faster_module(u, A, B, C)
    if faster is not None:
        return faster.forward(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, keep_for_backward=keep_for_backward
        )
    inputs = Inputs.prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    cut = plan(u.shape, u.device)
    first = None if initial_state is None else initial_state.transpose(1, 2).contiguous()
    with torch.cuda.device_of(u):
        if cut.n_chunks > 1:
            sums, states = summarise_chunks(inputs, cut)
            pass_summaries(states, sums, inputs.A, first, reverse=False)
        else:
            states = inputs.between_chunks(cut)
            states[:, 0] = 0.0 if first is None else first
        y, kept = compute_outputs(inputs, states, cut, keep_for_backward)
    return y, states[:, -1].transpose(1, 2).contiguous(), kept


def backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    saved: tuple[Tensor, ...],
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
) -> tuple[Tensor | None, ...]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; None for an input that was None."""
    faster = faster_module(u, A, B, C)
    if faster is not None:
        return faster.backward(
            dy, dfinal_state, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state
        )
    inputs = Inputs.prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    cut = plan(u.shape, u.device)
    dy = rows(dy)
    last = None if dfinal_state is None else dfinal_state.transpose(1, 2).contiguous()
    with torch.cuda.device_of(u):
        if cut.n_chunks > 1:
            sums, adjoints = summarise_adjoints(dy, inputs, cut)
            pass_summaries(adjoints, sums, inputs.A, last, reverse=True)
        else:
            adjoints = inputs.between_chunks(cut)
            adjoints[:, -1] = 0.0 if last is None else last
        du, ddelta, dz, dA, dBC, dD, dbias = compute_gradients(dy, inputs, saved[0], adjoints, cut)
    return (
        du,
        ddelta,
        dA.t().contiguous(),
        dBC[:, :, 0].to(B.dtype, memory_format=torch.contiguous_format),
        dBC[:, :, 1].to(C.dtype, memory_format=torch.contiguous_format),
        dD,
        dz,
        dbias,
        None if initial_state is None else adjoints[:, 0].transpose(1, 2).contiguous(),
    )


def faster_module(u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None = None) -> ModuleType | None:
    """Return the module of Gluon kernels where it runs the case."""
    if u.device.type != "cuda":
        return None
    from mamba_seq.kernels.selective_scan import gluon  # not in the interpreter, which has no Gluon

    return gluon if gluon.runs(u, A, B, C, cu_seqlens) else None


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
            y, state, u, delta, A, B, C, contiguous(D), z, contiguous(delta_bias),
            *state.stride(), *u.stride(), *delta.stride(), *A.stride(), *B.stride(), *C.stride(),
            *((0, 0) if z is None else z.stride()), channels,
            N=N, N_PADDED=triton.next_power_of_2(N), HAS_D=D is not None, HAS_Z=z is not None,
            HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, BLOCK_D=block, num_warps=2,
        )  # fmt: skip
    return y


class Plan(NamedTuple):
    """How a scan is cut: `n_chunks` of `chunk` time steps, a program each; the state is kept every `kept_every`."""

    chunk: int
    n_chunks: int
    kept_every: int


def plan(shape: torch.Size, device: torch.device) -> Plan:
    """Cut (B, L, D) so that programs fill the device, with chunks long enough to be worth their summaries."""
    B, L, D = shape
    sequences = B * triton.cdiv(D, BLOCK_D)
    multiprocessors = multiprocessor_count(device)
    kept_every, longest = (16, 32) if triton_interpreted() else (KEPT_EVERY, 2048)
    # with 9 warps or more on every multiprocessor the exponentials of one pass already keep it busy
    if sequences >= 9 * multiprocessors or kept_every >= L:
        return Plan(L, 1, kept_every)
    wanted = sequences * L // (48 * multiprocessors)
    chunk = min(max(2 ** (max(wanted, 1).bit_length() - 1), kept_every), longest)
    return Plan(chunk, triton.cdiv(L, chunk), kept_every)


@functools.cache
def multiprocessor_count(device: torch.device) -> int:
    """Return how many multiprocessors a device has; the interpreter counts as one."""
    return 1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


class Inputs(NamedTuple):
    """A scan's inputs as the kernels want them: channels with unit stride, A as (N, D), B and C float32 and contiguous.

    B and C are read by every block of channels; one conversion here is cheaper than one in each of them.
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
            contiguous(D),
            None if z is None else rows(z),
            contiguous(delta_bias),
            delta_softplus,
        )

    def between_chunks(self, cut: Plan) -> Tensor:
        """Return room for the states, or their gradients, before, between and after chunks: (B, chunks + 1, N, D)."""
        B, _, D = self.u.shape
        return self.u.new_empty((B, cut.n_chunks + 1, self.A.shape[0], D), dtype=torch.float32)

    def z_strides(self) -> tuple[int, int]:
        """Return the strides of z along batch and time; any where there is no gate."""
        return (0, 0) if self.z is None else (self.z.stride(0), self.z.stride(1))

    def switches(self, steps: int) -> dict[str, int | bool]:
        """Return the compile-time arguments that all kernels share."""
        N = self.A.shape[0]
        return {
            "N": N,
            "N_PADDED": triton.next_power_of_2(N),
            "HAS_BIAS": self.delta_bias is not None,
            "SOFTPLUS": self.delta_softplus,
            "BLOCK_D": BLOCK_D,
            "STEPS": steps,
        }

    def programs(self, cut: Plan) -> int:
        """Return the number of programs: one for every block of channels, chunk and batch item."""
        B, _, D = self.u.shape
        return B * cut.n_chunks * triton.cdiv(D, BLOCK_D)


def summarise_chunks(inputs: Inputs, cut: Plan) -> tuple[Tensor, Tensor]:
    """Phase 1: return the sums of step sizes (B, chunks, D), and the end states from zero starts.

    The states are (B, chunks + 1, N, D), that of chunk c at c + 1; entry 0 is for `pass_summaries` to write.
    """
    u = inputs.u
    B, L, D = u.shape
    sums = u.new_empty((B, cut.n_chunks, D), dtype=torch.float32)
    states = inputs.between_chunks(cut)
    _triton_forward.chunk_summaries[(inputs.programs(cut),)](
        u, inputs.delta, inputs.A, inputs.B, inputs.delta_bias, states, sums,
        *u.stride()[:2], *inputs.delta.stride()[:2], L, D, cut.chunk, cut.n_chunks,
        **inputs.switches(STEPS), num_warps=warps(inputs.A.shape[0]),
    )  # fmt: skip
    return sums, states


def pass_summaries(states: Tensor, sums: Tensor, A: Tensor, initial: Tensor | None, reverse: bool) -> None:
    """Phase 2, in place on states (B, chunks + 1, N, D): turn what each chunk adds into what holds between chunks.

    `initial` (B, N, D) is the state before the first chunk; in reverse, the gradient of the state after the last one.
    """
    B, slots, N, D = states.shape
    block = 128
    _triton_forward.pass_states[(triton.cdiv(N * D, block) * B,)](
        states, sums, A, initial, D, slots - 1,
        N=N, HAS_INITIAL=initial is not None, REVERSE=reverse, BLOCK=block, UNROLL=16, num_warps=4,
    )  # fmt: skip


def compute_outputs(
    inputs: Inputs, states: Tensor, cut: Plan, keep_for_backward: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Phase 3: return y (B, L, D), from the states before each chunk, and the states kept for the backward pass.

    With a single chunk, nobody has computed the final state: it is written to `states` here.
    """
    u, z = inputs.u, inputs.z
    B, L, D = u.shape
    N = inputs.A.shape[0]
    y = u.new_empty((B, L, D))
    kept = u.new_empty((B, triton.cdiv(L, cut.kept_every), N, D), dtype=torch.float32) if keep_for_backward else None
    _triton_forward.outputs[(inputs.programs(cut),)](
        y, states, kept, u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, z, inputs.delta_bias,
        *u.stride()[:2], *inputs.delta.stride()[:2], *inputs.z_strides(),
        L, D, cut.chunk, cut.n_chunks, cut.kept_every,
        HAS_D=inputs.D is not None, HAS_Z=z is not None, KEEP=kept is not None,
        **inputs.switches(STEPS), num_warps=warps(N), maxnreg=FORWARD_REGISTERS if N <= 16 else None,
    )  # fmt: skip
    return y, () if kept is None else (kept,)


def summarise_adjoints(dy: Tensor, inputs: Inputs, cut: Plan) -> tuple[Tensor, Tensor]:
    """Phase 1 of the backward pass: return the sums of step sizes (B, chunks, D) and gradients of states.

    They are what each chunk's outputs add to the gradient of the state before it, (B, chunks + 1, N, D), that of chunk
    c at c; the last entry is for `pass_summaries` to write.
    """
    B, L, D = dy.shape
    sums = dy.new_empty((B, cut.n_chunks, D), dtype=torch.float32)
    adjoints = inputs.between_chunks(cut)
    _triton_backward.adjoint_summaries[(inputs.programs(cut),)](
        dy, inputs.delta, inputs.A, inputs.C, inputs.z, inputs.delta_bias, adjoints, sums,
        *dy.stride()[:2], *inputs.delta.stride()[:2], *inputs.z_strides(), L, D, cut.chunk, cut.n_chunks,
        HAS_Z=inputs.z is not None, **inputs.switches(STEPS), num_warps=warps(inputs.A.shape[0]),
    )  # fmt: skip
    return sums, adjoints


def compute_gradients(
    dy: Tensor, inputs: Inputs, kept: Tensor, adjoints: Tensor, cut: Plan
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Phase 3 of the backward pass, from the kept states and the gradient of the state after each chunk.

    Returns du, ddelta and dz (B, L, D), dA (N, D), dB and dC as one (B, L, 2, N), dD and ddelta_bias (D,); float32
    but for the first three. With a single chunk the gradient of the initial state is written to `adjoints`.
    """
    u, z = inputs.u, inputs.z
    B, L, D = u.shape
    N = inputs.A.shape[0]
    N_padded = triton.next_power_of_2(N)
    blocks = triton.cdiv(D, BLOCK_D)
    du, ddelta = u.new_empty((B, L, D)), u.new_empty((B, L, D))
    dz = None if z is None else u.new_empty((B, L, D))
    partial = functools.partial(u.new_empty, dtype=torch.float32)
    dBC = partial((blocks, B, L, 2, N_padded))
    dA = partial((B * cut.n_chunks, N, D))
    dD = None if inputs.D is None else partial((B * cut.n_chunks, D))
    dbias = None if inputs.delta_bias is None else partial((B * cut.n_chunks, D))

    programs = inputs.programs(cut)
    at_once = max(1, min(programs, MOST_PROGRAMS))  # an empty batch has no program
    # a state every BACKWARD_STEPS steps of a stretch, and those of the last steps, which go one by one
    tiles = cut.kept_every // BACKWARD_STEPS + BACKWARD_STEPS - 1
    scratch = partial((at_once, tiles, N_padded, BLOCK_D))
    for first in range(0, programs, at_once):
        _triton_backward.gradients[(min(at_once, programs - first),)](
            dy, kept, adjoints, scratch, u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, z, inputs.delta_bias,
            du, ddelta, dz, dBC, dA, dD, dbias,
            *dy.stride()[:2], *u.stride()[:2], *inputs.delta.stride()[:2], *inputs.z_strides(),
            B, L, D, cut.chunk, cut.n_chunks, cut.kept_every, first, tiles,
            HAS_D=inputs.D is not None, HAS_Z=z is not None,
            **inputs.switches(BACKWARD_STEPS), num_warps=warps(2 * N), maxnreg=BACKWARD_REGISTERS,
        )  # fmt: skip
    return (
        du,
        ddelta,
        dz,
        dA.sum(0),
        dBC.sum(0)[..., :N],
        None if dD is None else dD.sum(0),
        None if dbias is None else dbias.sum(0),
    )


def warps(states: int) -> int:
    """Return how many warps share the states of a block of channels: 32 states a lane fit in its registers."""
    return min(triton.cdiv(triton.next_power_of_2(states), 32), 16)


def rows(tensor: Tensor) -> Tensor:
    """Return (B, L, D) with unit stride along D, and rows near enough for 32-bit offsets in a chunk; copy if not."""
    near = abs(tensor.stride(1)) < 2**19
    return tensor if tensor.stride(2) == 1 and near else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor contiguous, None for None."""
    return None if tensor is None else tensor.contiguous()
