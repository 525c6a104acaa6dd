"""The selective scan on NVIDIA GPUs, in Gluon: the three phases of `triton.py` in layouts chosen by hand.

It runs what most models are made of: real A, B and C that depend on the input, no packed sequences. `triton.py` hands
these over and runs the rest; it is also the plain twin of this module, the same algorithm without inline assembly and
shared memory, that Triton's interpreter can run. `_gluon_forward.py` and `_gluon_backward.py` say how the kernels work.

The launch settings are measured ones (benchmarks/README.md has the commands), there is no search in front of a user.

States are kept for the backward pass at every tile of its kernel if they are few, else more sparsely, and the backward
pass first fills in those between: 4 bytes an element of u against one more pass of exponentials.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_seq.kernels._launch import Launcher, cdiv, rows
from mamba_seq.kernels.selective_scan import _gluon_backward, _gluon_forward
from mamba_seq.kernels.selective_scan.settings import Launch, settings_for

TILE = 16  # steps of a tile; the backward pass starts each from a kept state
SPARSE = 8  # tiles between kept states where all of them would take too much memory
MOST_KEPT = 1 << 30  # bytes of states kept at every tile

SCAN_CHUNKS = Launcher(_gluon_forward.scan_chunks)
PASS_STATES = Launcher(_gluon_forward.pass_states)
ADJOINT_CHUNKS = Launcher(_gluon_backward.adjoint_chunks)
GRADIENTS_OF_CHUNKS = Launcher(_gluon_backward.gradients)
SUM_PARTIALS = Launcher(_gluon_backward.sum_partials)


def runs(u: Tensor, A: Tensor, B: Tensor, C: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Tell whether this module runs a case of the contract, checked already."""
    if u.numel() == 0 or cu_seqlens is not None or not is_recent_nvidia(u.device):
        return False
    if A.is_complex() or B.dim() == 2 or C.dim() == 2 or A.shape[1] not in (8, 16, 32, 64):
        return False
    groups = B.shape[2] if B.dim() == 4 else 1
    return groups == 1 or u.shape[2] // groups % (512 // A.shape[1]) == 0


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
    sparse: bool = False,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Run the scan as `function.py` says; saved are states (tiles or fewer, B, D, N), few of them if `sparse`."""
    inputs = Inputs.prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    launch, chunk = plan_forward(u, A.shape[1])
    n_chunks = cdiv(u.shape[1], chunk)
    y = u.new_empty(u.shape)
    kept = new_kept(u, A, kept_every(u, A, sparse)) if keep_for_backward else None
    with torch.cuda.device_of(u):
        if n_chunks > 1:
            states = between_chunks(inputs, n_chunks)
            sums = scan(inputs, settings_for(u.device).wide, chunk, states)
            pass_states(states, sums, inputs.A, initial_state, reverse=False)
        else:
            states = around_chunk(inputs, 0, initial_state)
        scan(inputs, launch, chunk, states, y=y, kept=kept)
    return y, alone(states[-1]), () if kept is None else (kept,)


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
    dz: Tensor | None = None,
    y: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients that `function.py` lists, that of z in `dz` (B, L, D) where it is given.

    `y` (B, L, D) is filled with the outputs, once more.
    """
    inputs = Inputs.prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    dy = rows(dy)
    length = u.shape[1]
    launch, chunk = plan_backward(u, A.shape[1])
    n_chunks = cdiv(length, chunk)
    (kept,) = saved
    with torch.cuda.device_of(u):
        every = spacing(kept, length)
        if every > TILE:
            starts, kept = kept, new_kept(u, A, TILE)
            scan(inputs, settings_for(u.device).wide, every, starts, y=y, kept=kept)
        elif y is not None:
            scan(inputs, settings_for(u.device).wide, TILE, kept, y=y)
        if n_chunks > 1:
            adjoints = between_chunks(inputs, n_chunks)
            sums = summarise_adjoints(dy, inputs, chunk, adjoints)
            pass_states(adjoints, sums, inputs.A, dfinal_state, reverse=True)
        else:
            adjoints = around_chunk(inputs, 1, dfinal_state)
        du, ddelta, dz, dB, dC, dA, dD, dbias = compute_gradients(dy, inputs, kept, adjoints, launch, chunk, dz)
    return (
        du,
        ddelta,
        dA,
        dB if B.dim() == 4 else dB[:, :, 0],
        dC if C.dim() == 4 else dC[:, :, 0],
        None if D is None else dD,
        dz,
        None if delta_bias is None else dbias,
        None if initial_state is None else alone(adjoints[0]),
    )


def kept_shapes(u: Tensor, A: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes of what `forward` keeps: the state every few steps, and one more slot as states have."""
    B, L, D = u.shape
    return [(cdiv(L, kept_every(u, A)) + 1, B, D, A.shape[1])]


def plan_forward(u: Tensor, N: int) -> tuple[Launch, int]:
    """Choose how the outputs are computed, and the length of a chunk; the whole length is one where that fills the GPU.

    A single chunk pays every exponential once, but its warps must be enough to hide the latency of a step.
    """
    B, L, D = u.shape
    settings = settings_for(u.device)
    states = B * D * N // 16
    if settings.shortest_chunk >= L:
        return settings.narrow, L
    if states < settings.one_piece:
        return settings.wide, chunk_length(u, N)
    if states < settings.wide_from:
        return (settings.narrow if states < settings.middle_from else settings.middle), L
    return settings.wide, L


def plan_backward(u: Tensor, N: int) -> tuple[Launch, int]:
    """Choose how the gradients are computed, and the length of a chunk."""
    B, L, D = u.shape
    settings = settings_for(u.device)
    states = B * D * N // 16
    if states < settings.gradients_one_piece and settings.shortest_chunk < L:
        return settings.gradients, chunk_length(u, N)
    wide = states > settings.gradients_wide_above or N > 16
    return (settings.gradients if wide else settings.gradients_narrow), L


def chunk_length(u: Tensor, N: int) -> int:
    """Return a length of chunks that gives every multiprocessor several rounds of warps, and few states to pass on."""
    B, L, D = u.shape
    programs = B * cdiv(D, 512 // N) * L
    settings = settings_for(u.device)
    wanted = programs // (settings.rounds * settings.warps * settings.multiprocessors)
    return min(max(2 ** (max(wanted, 1).bit_length() - 1), settings.shortest_chunk), settings.longest_chunk)


@functools.cache  # asked at every call
def is_recent_nvidia(device: torch.device) -> bool:
    """Tell whether a GPU is an NVIDIA one of Ampere or later: what the kernels were compiled for and tried on."""
    # a fake tensor may be on a GPU that is not there
    there = torch.cuda.is_available() and torch.version.hip is None
    return there and torch.cuda.get_device_capability(device) >= (8, 0)


def kept_every(u: Tensor, A: Tensor, sparse: bool = False) -> int:
    """Return the number of steps between the states that the forward pass keeps."""
    B, L, D = u.shape
    return TILE if not sparse and cdiv(L, TILE) * B * D * A.shape[1] * 4 <= MOST_KEPT else SPARSE * TILE


class Inputs(NamedTuple):
    """A scan's inputs as the kernels want them: last axis dense, B and C (B, L, G, N), zeros for no D or bias."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    bias: Tensor
    softplus: bool

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
        D = A.new_zeros(len(A)) if D is None else D
        bias = A.new_zeros(len(A)) if delta_bias is None else delta_bias
        B, C = (rows(x if x.dim() == 4 else x[:, :, None]) for x in (B, C))
        z = None if z is None else rows(z)
        return cls(rows(u), rows(delta), A.contiguous(), B, C, D.contiguous(), z, bias.contiguous(), delta_softplus)

    @property
    def gate(self) -> Tensor:
        """Some tensor to stand for z; it is not read where there is no gate."""
        return self.u if self.z is None else self.z

    def sizes(self, chunk: int) -> tuple[int, int, int, int, int]:
        """Return what kernels are told of the shape: length, channels, channels a group, chunk and their number."""
        _, L, D = self.u.shape
        return L, D, D // self.B.shape[2], chunk, cdiv(L, chunk)

    def switches(self, launch: Launch) -> dict[str, int | bool | None]:
        """Return the compile-time arguments that all kernels share."""
        N = self.A.shape[1]
        return {
            "N": N,
            "SOFTPLUS": self.softplus,
            "HAS_Z": self.z is not None,
            "BLOCK_D": block_of(launch, N),
            "SD": launch.SD,
            "SN": launch.SN,
            "T": TILE,
            "STEPS": launch.steps,
            "num_warps": launch.warps,
            "maxnreg": launch.registers,
        }

    def programs(self, launch: Launch, chunk: int) -> tuple[int]:
        """Return the grid: a program for every block of channels, chunk and item of the batch."""
        B, L, D = self.u.shape
        return (B * cdiv(L, chunk) * cdiv(D, block_of(launch, self.A.shape[1])),)


def scan(
    inputs: Inputs, launch: Launch, chunk: int, states: Tensor, y: Tensor | None = None, kept: Tensor | None = None
) -> Tensor:
    """Phase 1, without y and kept: return the sums of step sizes (B, chunks, D); end states go to states[1:].

    Phase 3: fill y (B, L, D), and the states `kept` on the way (slots, B, D, N), from the states before each chunk.
    """
    u = inputs.u
    B, L, D = u.shape
    summary = y is None and kept is None
    sums = inputs.A.new_empty((B, cdiv(L, chunk), D) if summary else 0)
    every = 0 if kept is None else spacing(kept, L)
    SCAN_CHUNKS(
        inputs.programs(launch, chunk),
        u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.gate, inputs.bias,
        u if y is None else y, states, sums, states if kept is None else kept,
        *u.stride()[:2], *inputs.delta.stride()[:2], *inputs.gate.stride()[:2],
        *inputs.B.stride()[:3], *inputs.C.stride()[:3], *inputs.sizes(chunk), B, every,
        OUTPUTS=y is not None, KEEP=kept is not None, **inputs.switches(launch),
    )  # fmt: skip
    return sums


def pass_states(states: Tensor, sums: Tensor, A: Tensor, initial: Tensor | None, reverse: bool) -> None:
    """Phase 2, in place on states (chunks + 1, B, D, N): turn what each chunk adds into what holds between chunks.

    `initial` (B, D, N) is the state before the first chunk; in reverse, the gradient of the state after the last one.
    """
    slots, B, D, N = states.shape
    block = 128
    PASS_STATES(
        (cdiv(N * D, block) * B,),
        states, sums, A, None if initial is None else initial.contiguous(), D, slots - 1, B,
        N=N, HAS_INITIAL=initial is not None, REVERSE=reverse, BLOCK=block, UNROLL=16, num_warps=4,
    )  # fmt: skip


def summarise_adjoints(dy: Tensor, inputs: Inputs, chunk: int, adjoints: Tensor) -> Tensor:
    """Phase 1 of the backward pass: return the sums of step sizes (B, chunks, D).

    What each chunk's outputs add to the gradient of the state before it goes to adjoints[:-1] (chunks + 1, B, D, N).
    """
    B, L, D = dy.shape
    sums = adjoints.new_empty((B, cdiv(L, chunk), D))
    wide = settings_for(dy.device).wide
    ADJOINT_CHUNKS(
        inputs.programs(wide, chunk),
        dy, inputs.delta, inputs.A, inputs.C, inputs.gate, inputs.bias, adjoints, sums,
        *dy.stride()[:2], *inputs.delta.stride()[:2], *inputs.gate.stride()[:2], *inputs.C.stride()[:3],
        *inputs.sizes(chunk), B, **inputs.switches(wide),
    )  # fmt: skip
    return sums


def compute_gradients(
    dy: Tensor,
    inputs: Inputs,
    kept: Tensor,
    adjoints: Tensor,
    launch: Launch,
    chunk: int,
    dz: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Phase 3 of the backward pass, from the kept states and the gradient of the state after each chunk.

    Returns du, ddelta and dz (B, L, D), dB and dC (B, L, G, N), dA (D, N), dD and ddelta_bias (D,). With a single chunk
    the gradient of the initial state is written to `adjoints`.
    """
    u = inputs.u
    B, L, D = u.shape
    N, G = inputs.A.shape[1], inputs.B.shape[2]
    parts = B * cdiv(L, chunk)
    blocks = cdiv(D, block_of(launch, N))
    du, ddelta = u.new_empty(u.shape), u.new_empty(u.shape)
    if inputs.z is not None and dz is None:
        dz = u.new_empty(u.shape)
    gate = du if dz is None else dz
    partials = adjoints.new_empty((blocks, B, L, 2, N))
    weights = adjoints.new_empty((parts, D * (N + 2)))
    GRADIENTS_OF_CHUNKS(
        inputs.programs(launch, chunk),
        dy, kept, adjoints, u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.gate, inputs.bias,
        du, ddelta, gate, partials, weights,
        *dy.stride()[:2], *u.stride()[:2], *inputs.delta.stride()[:2], *inputs.gate.stride()[:2],
        *inputs.B.stride()[:3], *inputs.C.stride()[:3], *gate.stride()[:2], B, *inputs.sizes(chunk),
        **inputs.switches(launch),
    )  # fmt: skip
    dB, dC = u.new_empty((B, L, G, N)), u.new_empty((B, L, G, N))
    SUM_PARTIALS(
        (cdiv(B * L * 2 * N, 1024), G),
        dB, dC, partials, B * L * 2 * N, G * N, PARTS=blocks // G, N=N, BLOCK=1024, num_warps=4,
    )  # fmt: skip
    dA, dD, dbias = (weights[0] if parts == 1 else weights.sum(0)).split((D * N, D, D))
    return du, ddelta, dz, dB, dC, dA.view(D, N), dD, dbias


def new_kept(u: Tensor, A: Tensor, every: int) -> Tensor:
    """Return room for the state every `every` steps, and one more slot: as the states before chunks have."""
    B, L, D = u.shape
    return A.new_empty((cdiv(L, every) + 1, B, D, A.shape[1]))


def spacing(kept: Tensor, length: int) -> int:
    """Return the number of steps between the states of `kept`."""
    return TILE if len(kept) == cdiv(length, TILE) + 1 else SPARSE * TILE


def between_chunks(inputs: Inputs, n_chunks: int) -> Tensor:
    """Return room for the states, or their gradients, before, between and after chunks: (chunks + 1, B, D, N)."""
    B, _, D = inputs.u.shape
    return inputs.A.new_empty((n_chunks + 1, B, D, inputs.A.shape[1]))


def around_chunk(inputs: Inputs, side: int, known: Tensor | None) -> Tensor:
    """Return the states, or their gradients, around a single chunk (2, B, D, N), zero or `known` on one side of it."""
    if known is None:
        B, _, D = inputs.u.shape
        return inputs.A.new_zeros((2, B, D, inputs.A.shape[1]))
    states = between_chunks(inputs, 1)
    states[side] = known
    return states


def alone(state: Tensor) -> Tensor:
    """Return the state at one end without those of many chunks, which a view of it would keep in memory."""
    return state if state.untyped_storage().nbytes() <= 2 * state.nbytes else state.clone()


def block_of(launch: Launch, N: int) -> int:
    """Return how many channels a program has."""
    return launch.SD * launch.SN * 32 // N * launch.warps
