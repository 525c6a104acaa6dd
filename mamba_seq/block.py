"""The Mamba block: projections, a short causal convolution, a recurrence and a gate (arXiv 2312.00752, figure 3).

    x, z = in_proj(hidden)                      two halves, each (B, L, D), D = expand * d_model
    u = silu(causal_conv1d(x))
    delta_low_rank, B, C = x_proj(u)            selection: delta, B and C are functions of the input (Algorithm 2)
    delta = dt_proj(delta_low_rank)             softplus(delta + dt_bias) inside the scan
    y = selective_scan(u, delta, A, B, C, D) * silu(z)
    hidden = out_proj(y)

With `ssm="complex"` A is complex, and B and C are projected as 2 N real numbers. With `ssm="time-invariant"` delta, B
and C are parameters, and the scan is that of S4D (arXiv 2206.11893). Complex parameters are stored as real ones.

Shapes: B batch, L length, D channels of the scan, N state size, K taps, S packed sequences. Three forms agree to
rounding: the whole sequence, chunk after chunk with the state carried, and `step`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_seq.config import MambaConfig
from mamba_seq.history import continue_at_first, last_inputs
from mamba_seq.inner import NO_STEP, Keep, Layout, Weights, as_complex, inside, is_plain, runs_inside
from mamba_seq.kernels import (
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    time_invariant_update,
)
from mamba_seq.kernels.time_invariant_scan import step_parameters
from mamba_seq.kernels.time_invariant_scan.initialisation import s4d_lin, s4d_real
from mamba_seq.normed import Norm, is_plain_norm, normed, normed_projection
from mamba_seq.padding import check_layout
from mamba_seq.precision import computing_type
from mamba_seq.saving import FLOAT32_PARAMETERS
from mamba_seq.time_invariant import Parameters, scan_packed, scan_padded, scan_whole


class MambaState(NamedTuple):
    """What a block remembers between two calls: constant in the length of the sequence."""

    conv: Tensor
    """The last K - 1 inputs of the convolution, oldest first (B, D, K-1), in the activations' type."""
    ssm: Tensor
    """State of the recurrence (B, D, N), float32, or complex64."""
    discrete: tuple[Tensor, Tensor] | None = None
    """Of a time-invariant block, the `step_parameters` of its weights at the time: they take longer than a step."""


class RecurrentLayer(nn.Module):
    """What layers with a recurrence share: its parameters stay float32 under `.to(bfloat16)` and `.half()`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the layer, keeping what the scan takes in float32 so under `.to(bfloat16)` and `.half()`.

        In 16 bits the decay exp(delta A) of a long memory rounds to 1 or away from it (state-spaces/mamba README,
        Precision).
        """
        own = [p for name, p in self.named_parameters(recurse=False) if name in FLOAT32_PARAMETERS]
        kept = [tensor for p in own for tensor in (p, p.grad) if tensor is not None]

        def keep_float32(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype in (torch.bfloat16, torch.float16) and any(tensor is k for k in kept):
                return tensor.to(applied.device, torch.float32)
            return applied

        super()._apply(keep_float32, recurse)
        return self


class Mamba(RecurrentLayer):
    """One Mamba block, without the residual and the normalisation around it."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        d_model, d_inner, rank = config.d_model, config.d_inner, config.rank
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=config.bias)
        self.conv_weight = nn.Parameter(torch.empty(d_inner, config.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(d_inner)) if config.conv_bias else None
        if config.is_selective:
            numbers = 2 if config.has_complex_states else 1
            self.x_proj = nn.Linear(d_inner, rank + 2 * numbers * config.d_state, bias=False)
            self.dt_proj = nn.Linear(rank, d_inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(d_inner))
        self.A_log = nn.Parameter(torch.empty(d_inner, config.d_state))
        if config.has_complex_states:
            self.A_imag = nn.Parameter(torch.empty(d_inner, config.d_state))
        if not config.is_selective:
            shape = (d_inner, config.d_state, 2) if config.has_complex_states else (d_inner, config.d_state)
            self.B = nn.Parameter(torch.empty(shape))
            self.C = nn.Parameter(torch.empty(shape))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=config.bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as in the papers (Mamba, section 3.6, appendix E; S4D, section 4).

        Delta is log-uniform in [dt_min, dt_max]. A is S4D-Real, -(1..N), or, for complex states, S4D-Lin, -1/2 + i pi
        (0..N-1). Constant B are 1, and C standard (complex) normal.
        """
        config = self.config
        bound = 1 / math.sqrt(config.d_conv)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        if self.conv_bias is not None:
            nn.init.uniform_(self.conv_bias, -bound, bound)
        if config.is_selective:
            nn.init.uniform_(self.dt_proj.weight, -(config.rank**-0.5), config.rank**-0.5)
        log_dt = torch.empty(config.d_inner).uniform_(math.log(config.dt_min), math.log(config.dt_max))
        self.dt_bias.copy_(inverse_softplus(log_dt.exp()))
        if config.has_complex_states:
            A = s4d_lin(config.d_inner, config.d_state)
            self.A_log.copy_((-A.real).log())
            self.A_imag.copy_(A.imag)
        else:
            self.A_log.copy_((-s4d_real(config.d_inner, config.d_state)).log())
        if not config.is_selective:
            self.B.copy_(torch.tensor([1.0, 0.0]) if config.has_complex_states else torch.tensor(1.0))
            nn.init.normal_(self.C, std=math.sqrt(0.5) if config.has_complex_states else 1.0)
        self.D.fill_(1)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        state: MambaState | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
        keep: Keep = "auto",
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Run the block over a sequence, or over a chunk that continues `state`.

        Args:
            hidden: (B, L, d_model).
            mask: bool (B, L), true at real positions. Padding may stand left or right of a sequence, or of a chunk of
                it, not inside; it changes neither the outputs at real positions nor the state.
            state: what the block remembers of the sequence so far; None starts it.
            return_state: also return the state after the last real position.
            cu_seqlens: boundaries (S+1,) int32 of S sequences laid end to end along L with B = 1, strictly increasing
                from 0 to L; nothing passes from one sequence to the next, and states are (S, ...). Not with a mask.
            keep: what a selective block keeps for its backward pass, the rest being computed again there: all that
                autograd does ("autograd"), in_proj's and x_proj's outputs and the scan's states ("little"), or these,
                u, delta and y ("everything"). "auto" is little on CUDA, else autograd, and so is what cannot be kept
                otherwise: time-invariant blocks, float64, a compiled program, padding in a chunk that continues a
                state.

        Returns:
            (B, L, d_model), and the state if asked for. Outputs at masked positions are without meaning.

        Raises:
            ValueError: for a mask of another shape or type, a mask and boundaries, or boundaries that are none.
        """
        check_layout(hidden, mask, cu_seqlens)
        return self._mix(self.in_proj(hidden), mask, state, return_state, cu_seqlens, keep)

    def forward_normed(
        self,
        residual: Tensor,
        norm: Norm,
        mask: Tensor | None,
        state: MambaState | None,
        return_state: bool,
        cu_seqlens: Tensor | None,
        keep: Keep,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, MambaState]]:
        """Do what `forward` does on `norm(residual)`, of which only `residual` (B, L, d_model) is kept where it can.

        Returns the residual stream to add to, as `normed_projection` does, and what `forward` returns.
        """
        if is_plain(self.in_proj) and is_plain_norm(norm) and self._runs_inside(residual, keep, mask, state):
            check_layout(residual, mask, cu_seqlens)
            xz, residual = normed_projection(residual, norm, self.in_proj)
            # float64 weights make another type of the stream's, which runs on the reference
            run = self._inside if xz.dtype != torch.float64 else self._mix
            return residual, run(xz, mask, state, return_state, cu_seqlens, keep)
        hidden = normed(residual, norm, computing_type(residual.device.type, norm.weight))
        return residual, self.forward(hidden, mask, state, return_state, cu_seqlens, keep)

    def _mix(
        self,
        xz: Tensor,
        mask: Tensor | None,
        state: MambaState | None,
        return_state: bool,
        cu_seqlens: Tensor | None,
        keep: Keep,
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Do what `forward` does after in_proj, from its output (B, L, 2 D)."""
        if self._runs_inside(xz, keep, mask, state):
            return self._inside(xz, mask, state, return_state, cu_seqlens, keep)
        x, z = xz.chunk(2, dim=-1)
        conv_state = None if state is None else state.conv.to(x.dtype)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
            if conv_state is not None:
                x, conv_state = continue_at_first(x, conv_state, mask)
        u = cast(
            "Tensor",
            causal_conv1d(x, self.conv_weight, self.conv_bias, "silu", initial_state=conv_state, cu_seqlens=cu_seqlens),
        )
        before = None if state is None else state.ssm
        ssm_state: Tensor | None
        if self.config.is_selective:
            y, ssm_state = self._selective_scan(u, z, mask, before, cu_seqlens)
        elif cu_seqlens is not None:
            y, ssm_state = scan_packed(u, z, self._time_invariant(), cu_seqlens, before, return_state)
        elif mask is not None:
            y, ssm_state = scan_padded(u, z, self._time_invariant(), mask, before, return_state)
        else:
            y, ssm_state = scan_whole(u, z, self._time_invariant(), before, return_state)
        out = self.out_proj(y)
        if not return_state:
            return out
        conv_state = last_inputs(x, self.config.d_conv, conv_state, mask, cu_seqlens)
        return out, MambaState(conv_state, cast("Tensor", ssm_state), self._discrete())

    def _runs_inside(self, like: Tensor, keep: Keep, mask: Tensor | None, state: MambaState | None) -> bool:
        """Tell whether the part after in_proj goes through a backward pass of its own."""
        if not self.config.is_selective or not runs_inside(like, keep, mask, None if state is None else state.conv):
            return False
        learns = like.requires_grad or any(p.requires_grad for p in self.parameters())
        return learns and is_plain(self.x_proj, self.dt_proj, self.out_proj)

    def _inside(
        self,
        xz: Tensor,
        mask: Tensor | None,
        state: MambaState | None,
        return_state: bool,
        cu_seqlens: Tensor | None,
        keep: Keep,
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Do what `_mix` does with a backward pass of its own."""
        weights = Weights(
            self.conv_weight,
            self.conv_bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.A_log,
            self.A_imag if self.config.has_complex_states else None,
            self.D,
            self.dt_bias,
            self.out_proj.weight,
            self.out_proj.bias,
        )
        before = (None, None) if state is None else (state.conv.to(xz.dtype), state.ssm)
        out, conv, ssm = inside(xz, weights, Layout(mask, cu_seqlens, *before), return_state, keep)
        return (out, MambaState(cast("Tensor", conv), ssm)) if return_state else out

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
        if self.config.is_selective:
            delta, B, C = self._select(u)
            y = selective_state_update(
                state.ssm, u, delta, self._state_matrix(), B, C, self.D, z, self.dt_bias, delta_softplus=True
            )
        else:
            y = time_invariant_update(state.ssm, u, *self._time_invariant(), z, parameters=state.discrete)
        return self.out_proj(y)

    def allocate_state(self, batch: int) -> MambaState:
        """Return the state of `batch` sequences, padded or packed, before their first position."""
        weight = self.in_proj.weight
        conv = weight.new_zeros((batch, self.config.d_inner, self.config.d_conv - 1))
        ssm = self.A_log.new_zeros((batch, self.config.d_inner, self.config.d_state))
        if self.config.has_complex_states:
            ssm = torch.complex(ssm, ssm)
        return MambaState(conv, ssm, self._discrete())

    def _selective_scan(
        self, u: Tensor, z: Tensor, mask: Tensor | None, initial_state: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scan the convolved input u (B, L, D), gated by z; return y and the final state."""
        delta, B, C = self._select(u)
        if mask is not None:
            delta = delta.masked_fill(~mask[..., None], NO_STEP)
        return cast(
            "tuple[Tensor, Tensor]",
            selective_scan(
                u,
                delta,
                self._state_matrix(),
                B,
                C,
                self.D,
                z,
                self.dt_bias,
                delta_softplus=True,
                initial_state=initial_state,
                cu_seqlens=cu_seqlens,
                return_final_state=True,
            ),
        )

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make raw delta (..., D), B and C (..., N) from the convolved input (..., D)."""
        projected = self.x_proj(u)
        n_state = (projected.shape[-1] - self.config.rank) // 2
        low_rank, B, C = projected.split((self.config.rank, n_state, n_state), dim=-1)
        if self.config.has_complex_states:
            B, C = as_complex(B.unflatten(-1, (-1, 2))), as_complex(C.unflatten(-1, (-1, 2)))
        return self.dt_proj(low_rank), B, C

    def _state_matrix(self) -> Tensor:
        """Return A (D, N), whose real part is negative."""
        real = -torch.exp(self.A_log)
        return torch.complex(real, self.A_imag) if self.config.has_complex_states else real

    def _time_invariant(self) -> Parameters:
        """Return the parameters of the time-invariant recurrence."""
        B, C = (as_complex(p) if self.config.has_complex_states else p for p in (self.B, self.C))
        return Parameters(F.softplus(self.dt_bias), self._state_matrix(), B, C, self.D)

    @torch.no_grad()
    def _discrete(self) -> tuple[Tensor, Tensor] | None:
        """Return what a step of the time-invariant recurrence needs, which is the same at every step."""
        if self.config.is_selective:
            return None
        delta, A, B, _, _ = self._time_invariant()
        return step_parameters(delta, A, B, "zoh")


def inverse_softplus(x: Tensor) -> Tensor:
    """Return r with softplus(r) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))
