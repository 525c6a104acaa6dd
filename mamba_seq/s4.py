"""The S4 layer of SaShiMi: a time-invariant recurrence, a nonlinearity and a gated linear map (arXiv 2202.09729).

    y = S4D(hidden)                             one recurrence of N states a channel (arXiv 2206.11893)
    out, gate = out_proj(gelu(y))               two halves, each (B, L, d_model)
    hidden = out * sigmoid(gate)

SaShiMi's layer has the recurrence of S4, whose A is diagonal plus low rank; this is its diagonal form. Unlike a Mamba
block of the kind "time-invariant" it has no expansion, no convolution and no gate of its input.

Shapes: B batch, L length, N state size.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_seq.block import MambaState, RecurrentLayer, as_complex, inverse_softplus
from mamba_seq.config import MambaConfig
from mamba_seq.kernels import time_invariant_scan, time_invariant_update
from mamba_seq.kernels.time_invariant_scan import step_parameters
from mamba_seq.kernels.time_invariant_scan.initialisation import s4d_lin, s4d_real
from mamba_seq.time_invariant import Parameters


class S4Layer(RecurrentLayer):
    """One S4 layer, without the residual and the normalisation around it; for sequences that fill their tensor.

    Args:
        config: of time-invariant blocks, real or complex; it takes d_model, d_state, dt_min, dt_max and ssm of it.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        assert not config.is_selective
        self.config = config
        shape = (config.d_model, config.d_state)
        pairs = (*shape, 2) if config.has_complex_states else shape
        self.dt_bias = nn.Parameter(torch.empty(config.d_model))
        self.A_log = nn.Parameter(torch.empty(shape))
        if config.has_complex_states:
            self.A_imag = nn.Parameter(torch.empty(shape))
        self.B = nn.Parameter(torch.empty(pairs))
        self.C = nn.Parameter(torch.empty(pairs))
        self.D = nn.Parameter(torch.empty(config.d_model))
        self.out_proj = nn.Linear(config.d_model, 2 * config.d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as S4D, section 4: the same as a time-invariant Mamba block, but for a standard normal D."""
        config = self.config
        log_dt = torch.empty(config.d_model).uniform_(math.log(config.dt_min), math.log(config.dt_max))
        self.dt_bias.copy_(inverse_softplus(log_dt.exp()))
        A = (s4d_lin if config.has_complex_states else s4d_real)(config.d_model, config.d_state)
        self.A_log.copy_((-A.real).log())
        if config.has_complex_states:
            self.A_imag.copy_(A.imag)
        self.B.copy_(torch.tensor([1.0, 0.0]) if config.has_complex_states else torch.tensor(1.0))
        nn.init.normal_(self.C, std=math.sqrt(0.5) if config.has_complex_states else 1.0)
        nn.init.normal_(self.D)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        state: MambaState | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Run the layer over a sequence (B, L, d_model), or over a chunk that continues `state`.

        Args:
            hidden: (B, L, d_model).
            mask: refused, as `cu_seqlens`; they are a block's.
            state: what the layer remembers of the sequence so far; None starts it.
            return_state: also return the state after the chunk.
            cu_seqlens: refused.

        Returns:
            (B, L, d_model), and the state if asked for.
        """
        if mask is not None or cu_seqlens is not None:
            raise ValueError(
                "mask or cu_seqlens came, expected none: an S4 layer takes sequences that fill their tensor"
            )
        before = None if state is None else state.ssm
        y = time_invariant_scan(hidden, *self._recurrence(), initial_state=before, return_final_state=return_state)
        if not return_state:
            return self._mix(cast("Tensor", y))
        y, ssm = cast("tuple[Tensor, Tensor]", y)
        return self._mix(y), MambaState(self._no_inputs(len(hidden)), ssm, self._discrete())

    @torch.no_grad()
    def step(self, hidden: Tensor, state: MambaState) -> Tensor:
        """Advance one position (B, d_model), changing `state` in place; no gradient."""
        return self._mix(time_invariant_update(state.ssm, hidden, *self._recurrence(), parameters=state.discrete))

    def allocate_state(self, batch: int) -> MambaState:
        """Return the state of `batch` sequences before their first position."""
        ssm = self.A_log.new_zeros((batch, *self.A_log.shape))
        if self.config.has_complex_states:
            ssm = torch.complex(ssm, ssm)
        return MambaState(self._no_inputs(batch), ssm, self._discrete())

    def _mix(self, y: Tensor) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y)), dim=-1)

    def _recurrence(self) -> Parameters:
        delta, A = F.softplus(self.dt_bias), -torch.exp(self.A_log)
        if not self.config.has_complex_states:
            return Parameters(delta, A, self.B, self.C, self.D)
        return Parameters(delta, torch.complex(A, self.A_imag), as_complex(self.B), as_complex(self.C), self.D)

    @torch.no_grad()
    def _discrete(self) -> tuple[Tensor, Tensor]:
        delta, A, B, _, _ = self._recurrence()
        return step_parameters(delta, A, B, "zoh")

    def _no_inputs(self, batch: int) -> Tensor:
        """Return the state of a convolution that is not there."""
        return self.out_proj.weight.new_zeros((batch, self.config.d_model, 0))
