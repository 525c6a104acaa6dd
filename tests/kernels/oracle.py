"""The scan in float64, parallel over time: neighbours are combined in pairs, so L steps take log2 L levels.

A step is the map h -> a h + b, and two of them in a row are one, (a2 a1, a2 b1 + b2). Combining every two steps leaves
half as many; scanned, they are the states after every second step, and the others are one step from those. Work and
memory are O(L), autograd goes through, and a case of thousands of steps takes milliseconds where the reference takes
seconds. The reference stays the definition: this is held to it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.kernels.selective_scan.reference import read_out


def parallel_scan(
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
    """Return y and the final state; arguments as those of the scan, in float64 or complex128, L at least 1."""
    batch, length, channels = u.shape
    dt = delta if delta_bias is None else delta + delta_bias
    dt = F.softplus(dt) if delta_softplus else dt
    B, C = (_over_channels(p, channels) for p in (B, C))
    a = torch.exp(dt[..., None] * A)  # (B, L, D, N)
    b = (dt * u)[..., None] * B
    if cu_seqlens is None:
        starts = torch.zeros(1, dtype=torch.long, device=u.device)
        ends = starts + length - 1
    else:
        starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long() - 1
    if initial_state is None:
        initial_state = A.new_zeros((batch if cu_seqlens is None else len(starts), *A.shape))
    before = initial_state[:, None] if cu_seqlens is None else initial_state[None]
    b = b.index_add(1, starts, a[:, starts] * before)
    begins = torch.zeros(length, dtype=torch.bool, device=u.device)
    begins[starts] = True
    h = scan_pairs(torch.where(begins[:, None, None], torch.zeros_like(a), a), b)
    y = read_out(h, C)
    y = y if D is None else y + D * u
    y = y if z is None else y * F.silu(z)
    final_state = h[:, -1] if cu_seqlens is None else h[0, ends]
    return y, final_state


def scan_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Return h_t = a_t h_(t-1) + b_t along dimension 1, from a zero state."""
    length = a.shape[1]
    if length == 1:
        return b
    even_a, odd_a, even_b, odd_b = a[:, : length - 1 : 2], a[:, 1::2], b[:, : length - 1 : 2], b[:, 1::2]
    odd = scan_pairs(odd_a * even_a, odd_a * even_b + odd_b)
    # the even steps after the first, each one step from the odd step before it
    reached = odd[:, : (length - 1) // 2]
    even = torch.cat([b[:, :1], a[:, 2::2] * reached + b[:, 2::2]], dim=1)
    whole = torch.stack([even[:, : odd.shape[1]], odd], dim=2).flatten(1, 2)
    return whole if length % 2 == 0 else torch.cat([whole, even[:, -1:]], dim=1)


def _over_channels(parameter: Tensor, channels: int) -> Tensor:
    """Bring B or C to something that broadcasts against (B, L, D, N)."""
    if parameter.dim() == 2:
        return parameter
    parameter = parameter if parameter.dim() == 4 else parameter[:, :, None]
    return parameter.repeat_interleave(channels // parameter.shape[2], dim=2)
