"""The Mamba block: projections, a short causal convolution, the selective scan and a gate (arXiv 2312.00752, figure 3).

    x, z = in_proj(hidden)                      two halves, each (B, L, D), D = expand * d_model
    u = silu(causal_conv1d(x))
    delta_low_rank, B, C = x_proj(u)            selection: delta, B and C are functions of the input (Algorithm 2)
    delta = dt_proj(delta_low_rank)             softplus(delta + dt_bias) inside the scan
    y = selective_scan(u, delta, A, B, C, D) * silu(z)
    hidden = out_proj(y)

Shapes: B batch, L length, D channels of the scan, N state size, K taps. Three forms agree to rounding: the whole
sequence, chunk after chunk with the state carried, and `step`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mamba_seq.config import MambaConfig
from mamba_seq.kernels import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update

NO_STEP = -1e4
"""A raw delta whose softplus is exactly 0 in float32: the state passes a masked position unchanged."""


class MambaState(NamedTuple):
    """What a block remembers between two calls: constant in the length of the sequence."""

    conv: Tensor
    """The last K - 1 inputs of the convolution, oldest first (B, D, K-1), in the activations' type."""
    ssm: Tensor
    """State of the recurrence (B, D, N), float32."""


class Mamba(nn.Module):
    """One Mamba block, without the residual and the normalisation around it."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        d_model, d_inner, rank = config.d_model, config.d_inner, config.rank
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=config.bias)
        self.conv_weight = nn.Parameter(torch.empty(d_inner, config.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(d_inner)) if config.conv_bias else None
        self.x_proj = nn.Linear(d_inner, rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(d_inner))
        self.A_log = nn.Parameter(torch.empty(d_inner, config.d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=config.bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as in the paper (section 3.6, appendix E): A = -(1..N), delta log-uniform in [dt_min, dt_max]."""
        config = self.config
        bound = 1 / math.sqrt(config.d_conv)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        if self.conv_bias is not None:
            nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.uniform_(self.dt_proj.weight, -(config.rank**-0.5), config.rank**-0.5)
        log_dt = torch.empty(config.d_inner).uniform_(math.log(config.dt_min), math.log(config.dt_max))
        self.dt_bias.copy_(inverse_softplus(log_dt.exp()))
        self.A_log.copy_(torch.arange(1, config.d_state + 1).log().expand_as(self.A_log))
        self.D.fill_(1)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, state: MambaState | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Run the block over a sequence, or over a chunk that continues `state`.

        Args:
            hidden: (B, L, d_model).
            mask: bool (B, L), true at real positions. Padding may stand left or right of a sequence, not inside it, so
                with a `state` that has begun only on the right; it changes neither the outputs at real positions nor
                the state.
            state: what the block remembers of the sequence so far; None starts it.
            return_state: also return the state after the last real position.

        Returns:
            (B, L, d_model), and the state if asked for. Outputs at masked positions are without meaning.

        Raises:
            ValueError: for a mask of another shape or type.
        """
        if mask is not None:
            check_mask(mask, hidden)
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        conv_state = None if state is None else state.conv.to(x.dtype)
        u = cast("Tensor", causal_conv1d(x, self.conv_weight, self.conv_bias, "silu", initial_state=conv_state))
        delta, B, C = self._select(u)
        if mask is not None:
            delta = delta.masked_fill(~mask[..., None], NO_STEP)
        y, ssm_state = selective_scan(
            u,
            delta,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_bias,
            delta_softplus=True,
            initial_state=None if state is None else state.ssm,
            return_final_state=True,
        )
        out = self.out_proj(y)
        if not return_state:
            return out
        return out, MambaState(self._last_inputs(x, conv_state, mask), ssm_state)

    @torch.no_grad()
    def step(self, hidden: Tensor, state: MambaState) -> Tensor:
        """Advance one position, changing `state` in place; no gradient.

        Args:
            hidden: (B, d_model).
            state: from `allocate_state`, or from `forward` with `return_state`.

        Returns:
            (B, d_model).
        """
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        # the state's type was fixed when it was made, perhaps outside the autocast that this step runs in, or inside
        u = causal_conv1d_update(x.to(state.conv.dtype), state.conv, self.conv_weight, self.conv_bias, "silu")
        u = u.to(x.dtype)
        delta, B, C = self._select(u)
        y = selective_state_update(
            state.ssm, u, delta, -torch.exp(self.A_log), B, C, self.D, z, self.dt_bias, delta_softplus=True
        )
        return self.out_proj(y)

    def allocate_state(self, batch: int) -> MambaState:
        """Return the state of `batch` sequences before their first position, on the block's device."""
        weight = self.in_proj.weight
        conv = weight.new_zeros((batch, self.config.d_inner, self.config.d_conv - 1))
        ssm = torch.zeros((batch, self.config.d_inner, self.config.d_state), device=weight.device)
        return MambaState(conv, ssm)

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make raw delta (..., D), B and C (..., N) from the convolved input (..., D)."""
        n_state = self.config.d_state
        low_rank, B, C = self.x_proj(u).split((self.config.rank, n_state, n_state), dim=-1)
        return self.dt_proj(low_rank), B, C

    def _last_inputs(self, x: Tensor, conv_state: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return the K - 1 inputs before each sequence's end (B, D, K-1), which padding on the right puts before L."""
        K = self.config.d_conv
        before = x.new_zeros((x.shape[0], K - 1, x.shape[2])) if conv_state is None else conv_state.transpose(1, 2)
        if mask is None:
            # a copy of the end alone: a slice of the whole would keep the whole in memory
            recent = x[:, max(0, x.shape[1] - K + 1) :]
            return torch.cat([before[:, recent.shape[1] :], recent], dim=1).transpose(1, 2)
        history = torch.cat([before, x], dim=1)  # (B, K-1+L, D)
        position = torch.arange(1, x.shape[1] + 1, device=x.device)
        end = (mask * position).amax(dim=1) if x.shape[1] else mask.new_zeros(len(mask), dtype=torch.long)
        index = end[:, None] + torch.arange(K - 1, device=x.device)  # (B, K-1)
        return history.gather(1, index[..., None].expand(-1, -1, x.shape[2])).transpose(1, 2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Mamba":
        """Move or cast the block, keeping A_log, D and dt_bias in float32 under `.to(bfloat16)` and `.half()`.

        In 16 bits the decay exp(delta A) of a long memory rounds to 1 or away from it (state-spaces/mamba README,
        Precision).
        """
        kept = [tensor for p in (self.A_log, self.D, self.dt_bias) for tensor in (p, p.grad) if tensor is not None]

        def keep_float32(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype in (torch.bfloat16, torch.float16) and any(tensor is k for k in kept):
                return tensor.to(applied.device, torch.float32)
            return applied

        super()._apply(keep_float32, recurse)
        return self


def check_mask(mask: Tensor, hidden: Tensor) -> None:
    """Raise ValueError unless `mask` is bool (B, L) for `hidden` (B, L, d_model): another one might broadcast."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has type {str(mask.dtype).removeprefix('torch.')}, expected bool; pass mask != 0")
    if mask.shape != hidden.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected (B, L) = {tuple(hidden.shape[:2])}")


def inverse_softplus(x: Tensor) -> Tensor:
    """Return r with softplus(r) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))
