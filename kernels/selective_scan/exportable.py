"""The selective scan in operators that every exported program has, for any length: what torch.export and ONNX write.

The operators of `library.py` are this package's own: a program that calls them needs it, and ONNX has no such thing.
Here the sequence is cut into chunks of `CHUNK` steps, a loop over the chunks carries the state (torch's scan, ONNX's
Scan), and inside a chunk the recurrence is a parallel prefix (Hillis and Steele, 1986): log2(CHUNK) rounds that double
how far back each position has looked. Decays are at most 1 and only ever multiplied, so nothing overflows.

Shapes: B batch, L length, D channels, N state size, G groups, T = CHUNK, C chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from mamba_seq.kernels._checks import parameter_dtypes
from mamba_seq.kernels.selective_scan.reference import discretisation_step, over_channels

CHUNK = 16
"""Steps of a chunk, a power of two. Fewer are fewer rounds and more turns of the loop: of 8 to 64, for one sequence and
eight of them, 8 is the fastest in ONNX and 32 and 8 in torch (docs/log.md)."""


def selective_scan_exportable(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `selective_scan_reference` does; no gradient.

    Args: as `mamba_seq.kernels.selective_scan`, already checked.

    Returns:
        y (B, L, D) in u's type, and the final state (B, D, N).

    Raises:
        ValueError: for packed sequences, complex A, or B or C that are constant over time.
    """
    if cu_seqlens is not None or A.is_complex() or B.dim() == 2 or C.dim() == 2:
        raise ValueError(
            "selective_scan is exported for padded sequences, real A, and B and C that depend on the input; "
            "packed sequences, complex or constant ones came"
        )
    real = parameter_dtypes(u)[0]
    batch, length, channels = u.shape
    x = u.to(real)
    dt = discretisation_step(delta, delta_bias, delta_softplus)
    # one chunk more than the sequence fills: a program with sizes that may be 1 would be written for 1 alone
    chunks = length // CHUNK + 2
    missing = chunks * CHUNK - length

    def cut(sequence: Tensor) -> Tensor:
        """Turn (B, L, ...) into (C, B, T, ...); the steps at the end have delta 0, which leaves the state as it is."""
        padded = F.pad(sequence, (0, 0) * (sequence.dim() - 2) + (0, missing))
        return padded.unflatten(1, (chunks, CHUNK)).transpose(0, 1)

    def body(state: Tensor, chunk: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return _one_chunk(state, A, *chunk)

    if initial_state is None:
        initial_state = x.new_zeros((batch, channels, A.shape[1]))
    parameters = (over_channels(p if p.dim() == 4 else p[:, :, None], channels, real) for p in (B, C))
    final_state, out = scan(body, initial_state, tuple(cut(s) for s in (x, dt, *parameters)), dim=0)
    y = out.transpose(0, 1).reshape(batch, chunks * CHUNK, channels)[:, :length]
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype), final_state


def _one_chunk(state: Tensor, A: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run T steps of the recurrence from a state (B, D, N); return the next one and y (B, T, D).

    Args:
        state: before the chunk.
        A: (D, N).
        x: input (B, T, D).
        dt: step sizes (B, T, D).
        B: (B, T, 1 or D, N).
        C: like B.
    """
    decay = torch.exp(dt[..., None] * A)  # (B, T, D, N), over the steps that are gathered so far
    gathered = (dt * x)[..., None] * B
    back = 1
    while back < CHUNK:
        # each position takes in what the one `back` steps before it has gathered; before the chunk is nothing
        gathered = gathered + decay * _moved(gathered, back, 0.0)
        decay = decay * _moved(decay, back, 1.0)
        back *= 2
    states = decay * state[:, None] + gathered
    return states[:, -1].clone(memory_format=torch.contiguous_format), (states * C).sum(-1)


def _moved(steps: Tensor, by: int, front: float) -> Tensor:
    """Move (B, T, D, N) by some steps towards the end, a value coming in in front."""
    return F.pad(steps, (0, 0, 0, 0, by, 0), value=front)[:, :CHUNK]
