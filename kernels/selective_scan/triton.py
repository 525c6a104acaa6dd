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

The rest of the contract takes the same path. Packed sequences are cut into chunks each from its own start (see
`kernels/_packing.py`), and the second part passes states on within a sequence only. No block of channels reaches over
two groups of B and C. What is constant over time is loaded once, as A is. A complex state is two tiles; its tensors
have the shapes given here with [2,] where real and imaginary part stand.
"""

import functools
from types import ModuleType
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mamba_seq.kernels._dispatch import multiprocessor_count, triton_interpreted
from mamba_seq.kernels._launch import cdiv, contiguous
from mamba_seq.kernels._packing import Packing
from mamba_seq.kernels.selective_scan import _triton_backward, _triton_forward, _triton_step
from mamba_seq.kernels.selective_scan.reference import is_constant

BLOCK_D = 32  # channels of a program: one warp, one channel a lane
STEPS = 4  # time steps whose loads and step sizes are computed together
BACKWARD_STEPS = 2  # and whose states the backward pass holds in registers
FORWARD_REGISTERS = 96  # registers a lane; None leaves them to the compiler. Fewer let more programs run at a time
BACKWARD_REGISTERS = 168
WRITES_INTO = True  # forward takes `sparse`, backward takes `dz` and `y`
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
    cu_seqlens: Tensor | None = None,
    sparse: bool = False,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Run the scan as `function.py` says; saved are states, every few steps, as the module that runs it keeps them.

    `sparse` asks for as few of them as there can be.
    """
    faster = faster_module(u, A, B, C, cu_seqlens)
    if faster is not None:
        return faster.forward(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, keep_for_backward, sparse
        )
    inputs = Inputs.prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    cut = plan(u.shape, u.device, cu_seqlens)
    first = None if initial_state is None else channels_last(initial_state)
    with torch.cuda.device_of(u):
        if cut.n_chunks > 1:
            sums, states = summarise_chunks(inputs, cut)
            pass_summaries(states, sums, inputs.A, first, reverse=False, packing=cut.packing)
        else:
            states = inputs.between_chunks(cut)
            cut.put_before(states, first)
        y, kept = compute_outputs(inputs, states, cut, keep_for_backward)
    return y, states_last(cut.after(states), A), kept


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
    cu_seqlens: Tensor | None = None,
    dz: Tensor | None = None,
    y: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; None for an input that was None.

    That of z is written to `dz` (B, L, D), where it is given; its last axis is dense. `y` (B, L, D) is filled with the
    outputs once more, where `can_repeat`.
    """
    faster = faster_module(u, A, B, C, cu_seqlens)
    if faster is not None:
        return faster.backward(
            dy, dfinal_state, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, dz, y
        )
    assert y is None, "outputs are made again only where can_repeat says so"
    inputs = Inputs.prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    cut = plan(u.shape, u.device, cu_seqlens)
    dy = rows(dy)
    last = None if dfinal_state is None else channels_last(dfinal_state)
    with torch.cuda.device_of(u):
        if cut.n_chunks > 1:
            sums, adjoints = summarise_adjoints(dy, inputs, cut)
            pass_summaries(adjoints, sums, inputs.A, last, reverse=True, packing=cut.packing)
        else:
            adjoints = inputs.between_chunks(cut)
            cut.put_after(adjoints, last)
        du, ddelta, gate, dA, dB, dC, dD, dbias = compute_gradients(dy, inputs, saved[0], adjoints, cut)
    if dz is not None and gate is not None:
        dz.copy_(gate)
    dC = gradient_of_projection(dC, C)
    return (
        du,
        ddelta,
        states_last(dA, A),
        gradient_of_projection(dB, B),
        2 * dC.conj() if C.is_complex() else dC,  # a complex C came as 2 conj(C)
        dD,
        gate if dz is None else dz,
        dbias,
        None if initial_state is None else states_last(cut.before(adjoints), A),
    )


def faster_module(u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None = None) -> ModuleType | None:
    """Return the module of Gluon kernels where it runs the case."""
    if u.device.type != "cuda":
        return None
    from mamba_seq.kernels.selective_scan import gluon  # not in the interpreter, which has no Gluon

    return gluon if gluon.runs(u, A, B, C, cu_seqlens) else None


def kept_shapes(u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, ...]]:
    """Return the shapes of what `forward` keeps; none of packed sequences, whose places follow from the boundaries."""
    faster = faster_module(u, A, B, C, cu_seqlens)
    if faster is not None:
        return faster.kept_shapes(u, A)
    if cu_seqlens is not None:
        return []
    batch, length, channels = u.shape
    parts = (2,) if A.is_complex() else ()
    # not from a plan, whose choices between lengths would be conditions of a compiled program
    return [(batch, cdiv(length, kept_every()), *parts, A.shape[1], channels)]


def can_repeat(u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None, sparse: bool = False) -> bool:
    """Tell whether y is better made again in the backward pass than kept: where the kept states lie far apart.

    States at every tile are more than y is, and only kept where they are few.
    """
    faster = faster_module(u, A, B, C, cu_seqlens)
    return faster is not None and faster.kept_every(u, A, sparse) > faster.TILE


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
    """Advance `state` (B, D, N) in place by one step and return y (B, D).

    B and C are (B, N), (B, G, N), or (D, N) where they are constant over time.
    """
    batch, channels, N = state.shape
    complex_A = A.is_complex()
    B, C = (over_groups(p, u) for p in (B, C))
    by_channel = B.shape[1] > 1 or C.shape[1] > 1
    held = state.resolve_conj()  # itself, but for a view that says "conjugate" where the kernel reads memory
    h, A, B, C = (torch.view_as_real(x.resolve_conj()) if complex_A else x for x in (held, A, B, C))
    y = u.new_empty((batch, channels))
    block = max(1, min(64, 1024 // triton.next_power_of_2(N)))
    with torch.cuda.device_of(u):
        _triton_step.step[(cdiv(channels, block) * batch,)](
            y, h, u, delta, A, B, C, contiguous(D), z, contiguous(delta_bias),
            *h.stride()[:3], *u.stride(), *delta.stride(), *A.stride()[:2], *B.stride()[:3], *C.stride()[:3],
            *((0, 0) if z is None else z.stride()), channels, channels // B.shape[1], channels // C.shape[1],
            N=N, N_PADDED=triton.next_power_of_2(N), PARTS=1 + complex_A, BY_CHANNEL=by_channel, HAS_D=D is not None,
            HAS_Z=z is not None, HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, BLOCK_D=block, num_warps=2,
        )  # fmt: skip
    if state.is_conj():
        state.copy_(held)
    return y


def over_groups(parameter: Tensor, u: Tensor) -> Tensor:
    """Return B or C of one step as (B, G, N), a view; a constant one is (B, D, N), the same for every batch item."""
    if is_constant(parameter, u):
        return parameter.expand(u.shape[0], -1, -1)
    return parameter if parameter.dim() == 3 else parameter[:, None]


class Plan(NamedTuple):
    """How a scan is cut: `n_chunks` of `chunk` time steps, a program each; the state is kept every `kept_every`.

    Tensors of what holds between chunks are (B, chunks + 1, ...). Of packed sequences they are (1, P + S, ...), where
    those of a sequence lie together: they have P pieces in all, one chunk or less each, and one more place each.
    """

    chunk: int
    n_chunks: int
    kept_every: int
    packing: Packing | None = None

    def chunks(self, batch: int) -> int:
        """Return the number of chunks of all sequences."""
        return batch * self.n_chunks if self.packing is None else len(self.packing.pieces)

    def places_between(self, batch: int) -> tuple[int, int]:
        """Return the two sizes of what holds between chunks."""
        if self.packing is None:
            return batch, self.n_chunks + 1
        return 1, len(self.packing.pieces) + self.packing.sequences

    def places_kept(self, batch: int, length: int) -> tuple[int, int]:
        """Return the two sizes of what is kept every `kept_every` steps."""
        if self.packing is None:
            return batch, cdiv(length, self.kept_every)
        return 1, length // self.kept_every + len(self.packing.pieces)

    def before(self, states: Tensor) -> Tensor:
        """Return what holds before the first step of every sequence (B or S, ...), from what holds between chunks."""
        return states[:, 0] if self.packing is None else states[0, self._first_places(self.packing)]

    def after(self, states: Tensor) -> Tensor:
        """Return what holds after the last step of every sequence (B or S, ...), from what holds between chunks."""
        return states[:, -1] if self.packing is None else states[0, self._last_places(self.packing)]

    def put_before(self, states: Tensor, values: Tensor | None) -> None:
        """Set what holds before the first step of every sequence; None for zero."""
        self._put(states, 0, None if self.packing is None else self._first_places(self.packing), values)

    def put_after(self, states: Tensor, values: Tensor | None) -> None:
        """Set what holds after the last step of every sequence; None for zero."""
        self._put(states, -1, None if self.packing is None else self._last_places(self.packing), values)

    @staticmethod
    def _put(states: Tensor, slot: int, places: Tensor | None, values: Tensor | None) -> None:
        if places is None:
            states[:, slot] = 0.0 if values is None else values
        elif values is None:
            states[0].index_fill_(0, places, 0.0)  # a number put at an index would be copied to the device, waiting
        else:
            states[0, places] = values

    @staticmethod
    def _first_places(packing: Packing) -> Tensor:
        return packing.firsts[:-1] + torch.arange(packing.sequences, device=packing.firsts.device)

    @staticmethod
    def _last_places(packing: Packing) -> Tensor:
        return packing.firsts[1:] + torch.arange(packing.sequences, device=packing.firsts.device)


def plan(shape: torch.Size, device: torch.device, cu_seqlens: Tensor | None = None) -> Plan:
    """Cut (B, L, D) so that programs fill the device, with chunks long enough to be worth their summaries.

    How long packed sequences are, only the device knows: they get chunks as one sequence of their whole length would.
    """
    B, L, D = shape
    sequences = B * cdiv(D, BLOCK_D)
    multiprocessors = multiprocessor_count(device)
    every, longest = kept_every(), 32 if triton_interpreted() else 2048
    # with 9 warps or more on every multiprocessor the exponentials of one pass already keep it busy
    if sequences >= 9 * multiprocessors or every >= L:
        chunk = L
    else:
        wanted = sequences * L // (48 * multiprocessors)
        chunk = min(max(2 ** (max(wanted, 1).bit_length() - 1), every), longest)
    packing = None if cu_seqlens is None else Packing.cut(cu_seqlens, L, chunk)
    return Plan(chunk, cdiv(L, chunk), every, packing)


def kept_every() -> int:
    """Return the number of time steps between the states that are kept for the backward pass."""
    return 16 if triton_interpreted() else KEPT_EVERY


class Inputs(NamedTuple):
    """A scan's inputs as the kernels want them: channels with unit stride, A as ([2,] N, D), B and C float32.

    B and C are (B, G, L, [2,] N) and contiguous, or constant like A; a complex C is 2 conj(C). They are read by every
    block of channels; one conversion here is cheaper than one in each of them.
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
        if C.is_complex():
            C = 2 * C.conj()
        B, C = (channels_last(p) if p.dim() == 2 else groups_first(p) for p in (B, C))
        return cls(
            rows(u),
            rows(delta),
            channels_last(A),
            B,
            C,
            contiguous(D),
            None if z is None else rows(z),
            contiguous(delta_bias),
            delta_softplus,
        )

    @property
    def parts(self) -> int:
        """Real numbers of a state: 2 where A is complex."""
        return self.A.dim() - 1

    @property
    def N(self) -> int:
        """Size of the state."""
        return self.A.shape[-2]

    @property
    def constant(self) -> tuple[bool, bool]:
        """Tell whether B, and whether C, is constant over time."""
        return self.B.dim() == self.A.dim(), self.C.dim() == self.A.dim()

    @property
    def groups(self) -> int:
        """Groups of B and C."""
        return max(1 if constant else p.shape[1] for p, constant in zip((self.B, self.C), self.constant, strict=True))

    @property
    def blocks(self) -> int:
        """Blocks of channels; none reaches over two groups."""
        return self.groups * cdiv(self.u.shape[2] // self.groups, BLOCK_D)

    @property
    def plain(self) -> bool:
        """Tell whether one tile of A and one of the state are all that a lane holds."""
        return self.parts == 1 and not any(self.constant)

    def between_chunks(self, cut: Plan) -> Tensor:
        """Return room for the states, or their gradients, before, between and after chunks: (B, chunks + 1, N, D)."""
        return self.u.new_empty((*cut.places_between(self.u.shape[0]), *self.A.shape), dtype=torch.float32)

    def z_strides(self) -> tuple[int, int]:
        """Return the strides of z along batch and time; any where there is no gate."""
        return (0, 0) if self.z is None else (self.z.stride(0), self.z.stride(1))

    def switches(self, steps: int) -> dict[str, int | bool]:
        """Return the compile-time arguments that all kernels share."""
        return {
            "N": self.N,
            "N_PADDED": triton.next_power_of_2(self.N),
            "PARTS": self.parts,
            "HAS_BIAS": self.delta_bias is not None,
            "SOFTPLUS": self.delta_softplus,
            "BLOCK_D": BLOCK_D,
            "STEPS": steps,
        }

    def programs(self, cut: Plan) -> int:
        """Return the number of programs: one for every block of channels, chunk and batch item."""
        return cut.chunks(self.u.shape[0]) * self.blocks


def summarise_chunks(inputs: Inputs, cut: Plan) -> tuple[Tensor, Tensor]:
    """Phase 1: return the sums of step sizes (B, chunks, [2,] D), and the end states from zero starts.

    The states are (B, chunks + 1, [2,] N, D), that of chunk c at c + 1; entry 0 is for `pass_summaries` to write.
    Beside a complex A the sums have a second part, what rounding has taken from the first.
    """
    u = inputs.u
    B, L, D = u.shape
    sums = u.new_empty((cut.chunks(B), inputs.parts, D), dtype=torch.float32)
    states = inputs.between_chunks(cut)
    _triton_forward.chunk_summaries[(inputs.programs(cut),)](
        u, inputs.delta, inputs.A, inputs.B, inputs.delta_bias, states, sums, pieces(cut),
        *u.stride()[:2], *inputs.delta.stride()[:2], L, D, inputs.groups, cut.chunk, cut.n_chunks,
        PACKED=cut.packing is not None, B_CONSTANT=inputs.constant[0],
        **inputs.switches(STEPS), num_warps=warps(inputs.parts * inputs.N),
    )  # fmt: skip
    return sums, states


def pass_summaries(
    states: Tensor, sums: Tensor, A: Tensor, initial: Tensor | None, reverse: bool, packing: Packing | None = None
) -> None:
    """Phase 2, in place on states (B, chunks + 1, [2,] N, D): turn what chunks add into what holds between them.

    `initial` (B or S, [2,] N, D) is the state before the first chunk; in reverse, the gradient of the state after the
    last one.
    """
    batch, slots = states.shape[:2]
    N, D = A.shape[-2:]
    block = 128
    sequences = batch if packing is None else packing.sequences
    _triton_forward.pass_states[(cdiv(N * D, block) * sequences,)](
        states, sums, A, initial, None if packing is None else packing.firsts, D, slots - 1,
        N=N, PARTS=A.dim() - 1, PACKED=packing is not None, HAS_INITIAL=initial is not None, REVERSE=reverse,
        BLOCK=block, UNROLL=16, num_warps=4,
    )  # fmt: skip


def compute_outputs(
    inputs: Inputs, states: Tensor, cut: Plan, keep_for_backward: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Phase 3: return y (B, L, D), from the states before each chunk, and the states kept for the backward pass.

    With a single chunk, nobody has computed the final state: it is written to `states` here.
    """
    u, z = inputs.u, inputs.z
    B, L, D = u.shape
    y = u.new_empty((B, L, D))
    kept = None
    if keep_for_backward:
        kept = u.new_empty((*cut.places_kept(B, L), *inputs.A.shape), dtype=torch.float32)
    _triton_forward.outputs[(inputs.programs(cut),)](
        y, states, kept, u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, z, inputs.delta_bias, pieces(cut),
        *u.stride()[:2], *inputs.delta.stride()[:2], *inputs.z_strides(),
        L, D, inputs.groups, cut.chunk, cut.n_chunks, cut.kept_every,
        PACKED=cut.packing is not None, B_CONSTANT=inputs.constant[0], C_CONSTANT=inputs.constant[1],
        HAS_D=inputs.D is not None, HAS_Z=z is not None, KEEP=kept is not None,
        **inputs.switches(STEPS), num_warps=warps(inputs.parts * inputs.N),
        maxnreg=registers(FORWARD_REGISTERS if inputs.plain and inputs.N <= 16 else None, inputs.parts * inputs.N),
    )  # fmt: skip
    return y, () if kept is None else (kept,)


def summarise_adjoints(dy: Tensor, inputs: Inputs, cut: Plan) -> tuple[Tensor, Tensor]:
    """Phase 1 of the backward pass: return the sums of step sizes (B, chunks, [2,] D) and gradients of states.

    They are what each chunk's outputs add to the gradient of the state before it, (B, chunks + 1, [2,] N, D), that of
    chunk c at c; the last entry is for `pass_summaries` to write.
    """
    B, L, D = dy.shape
    sums = dy.new_empty((cut.chunks(B), inputs.parts, D), dtype=torch.float32)
    adjoints = inputs.between_chunks(cut)
    _triton_backward.adjoint_summaries[(inputs.programs(cut),)](
        dy, inputs.delta, inputs.A, inputs.C, inputs.z, inputs.delta_bias, adjoints, sums, pieces(cut),
        *dy.stride()[:2], *inputs.delta.stride()[:2], *inputs.z_strides(),
        L, D, inputs.groups, cut.chunk, cut.n_chunks,
        PACKED=cut.packing is not None, C_CONSTANT=inputs.constant[1], HAS_Z=inputs.z is not None,
        **inputs.switches(STEPS), num_warps=warps(inputs.parts * inputs.N),
    )  # fmt: skip
    return sums, adjoints


def compute_gradients(
    dy: Tensor, inputs: Inputs, kept: Tensor, adjoints: Tensor, cut: Plan
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Phase 3 of the backward pass, from the kept states and the gradient of the state after each chunk.

    Returns du, ddelta and dz (B, L, D), dA ([2,] N, D), dB and dC (B, L, G, [2,] N), or like dA where constant, dD and
    ddelta_bias (D,); float32 but for the first three. With a single chunk the gradient of the initial state is written
    to `adjoints`.
    """
    u, z = inputs.u, inputs.z
    B, L, D = u.shape
    N, parts, chunks = inputs.N, inputs.parts, cut.chunks(B)
    N_padded = triton.next_power_of_2(N)
    du, ddelta = u.new_empty((B, L, D)), u.new_empty((B, L, D))
    dz = None if z is None else u.new_empty((B, L, D))
    partial = functools.partial(u.new_empty, dtype=torch.float32)
    both = (2, N_padded) if parts == 1 else (2, 2, N_padded)
    dBC = None if all(inputs.constant) else partial((inputs.blocks, B, L, *both))
    dA = partial((chunks, 1 + sum(inputs.constant), *inputs.A.shape))
    dD = None if inputs.D is None else partial((chunks, D))
    dbias = None if inputs.delta_bias is None else partial((chunks, D))

    programs = inputs.programs(cut)
    at_once = max(1, min(programs, MOST_PROGRAMS // parts))  # an empty batch has no program
    # a state every BACKWARD_STEPS steps of a stretch, and those of the last steps, which go one by one
    tiles = cut.kept_every // BACKWARD_STEPS + BACKWARD_STEPS - 1
    scratch = partial((at_once, tiles, parts, N_padded, BLOCK_D))
    for first in range(0, programs, at_once):
        _triton_backward.gradients[(min(at_once, programs - first),)](
            dy, kept, adjoints, scratch, u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, z, inputs.delta_bias,
            du, ddelta, dz, dBC, dA, dD, dbias, pieces(cut),
            *dy.stride()[:2], *u.stride()[:2], *inputs.delta.stride()[:2], *inputs.z_strides(),
            B, L, D, inputs.groups, cut.chunk, cut.n_chunks, cut.kept_every, first, tiles,
            PACKED=cut.packing is not None, B_CONSTANT=inputs.constant[0], C_CONSTANT=inputs.constant[1],
            HAS_D=inputs.D is not None, HAS_Z=z is not None,
            **inputs.switches(BACKWARD_STEPS), num_warps=warps(2 * parts * N),
            maxnreg=registers(BACKWARD_REGISTERS if inputs.plain else None, 2 * parts * N),
        )  # fmt: skip
    totals = list(dA.sum(0).unbind(0))
    over_time = None if dBC is None else add_up_blocks(dBC, inputs.groups, N)
    return (
        du,
        ddelta,
        dz,
        totals.pop(0),
        totals.pop(0) if inputs.constant[0] or over_time is None else over_time[..., 0, :],
        totals.pop(0) if inputs.constant[1] or over_time is None else over_time[..., 1, :],
        None if dD is None else dD.sum(0),
        None if dbias is None else dbias.sum(0),
    )


def add_up_blocks(dBC: Tensor, groups: int, N: int) -> Tensor:
    """Add up (blocks, B, L, [2,] 2, N_padded) over the blocks of each group: dB and dC (B, L, G, [2,] 2, N)."""
    return dBC.unflatten(0, (groups, -1)).sum(1)[..., :N].movedim(0, 2)


def pieces(cut: Plan) -> Tensor | None:
    """Return the table of a packed cut's pieces."""
    return None if cut.packing is None else cut.packing.pieces


def channels_last(x: Tensor) -> Tensor:
    """Bring (..., D, N) to contiguous (..., N, D), a complex one to (..., 2, N, D) float32."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj()).movedim(-1, -3)
    return x.transpose(-1, -2).contiguous()


def states_last(x: Tensor, like: Tensor) -> Tensor:
    """Bring (..., N, D) back to contiguous (..., D, N), or (..., 2, N, D) where `like` is complex."""
    x = x.transpose(-1, -2)
    return torch.view_as_complex(x.movedim(-3, -1).contiguous()) if like.is_complex() else x.contiguous()


def gradient_of_projection(x: Tensor, like: Tensor) -> Tensor:
    """Bring the gradient of a B or C, (B, L, G, [2,] N), or ([2,] N, D) where constant, to its shape and type."""
    if like.dim() == 2:
        return states_last(x, like)
    if like.is_complex():
        x = torch.view_as_complex(x.transpose(-1, -2).contiguous())
    return x.reshape(like.shape).to(like.dtype, memory_format=torch.contiguous_format)


def groups_first(x: Tensor) -> Tensor:
    """Bring B or C (B, L, N) or (B, L, G, N) to contiguous (B, G, L, [2,] N) float32."""
    x = (x[:, :, None] if x.dim() == 3 else x).transpose(1, 2)
    x = torch.view_as_real(x.resolve_conj()).transpose(-1, -2) if x.is_complex() else x.float()
    return x.contiguous()


def warps(states: int) -> int:
    """Return how many warps share the states of a block of channels: 32 states a lane fit in its registers."""
    return min(cdiv(triton.next_power_of_2(states), 32), 16)


def registers(wanted: int | None, states: int) -> int | None:
    """Return the registers a lane may have: a multiprocessor has 65,536 for all warps of a program."""
    most = 65536 // (32 * warps(states))
    return wanted if most >= 255 else min(wanted or most, most)


def rows(tensor: Tensor) -> Tensor:
    """Return (B, L, D) with unit stride along D, and rows near enough for 32-bit offsets in a chunk; copy if not."""
    near = abs(tensor.stride(1)) < 2**19
    return tensor if tensor.stride(2) == 1 and near else tensor.contiguous()
