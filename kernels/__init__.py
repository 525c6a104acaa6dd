"""Operators on tensors: the selective scan, the causal convolution, and the single-step form of each.

A folder an operator; in each, `reference.py` is the definition in plain torch, `cpu.py` (Numba) and `triton.py` are the
compiled forms, held to it by the tests. Tensors are channels-last, (B, L, D).
"""

from mamba_seq.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from mamba_seq.kernels.selective_scan import selective_scan, selective_state_update

__all__ = ["causal_conv1d", "causal_conv1d_update", "selective_scan", "selective_state_update"]
