"""Operators on tensors: the selective and the time-invariant scan, the causal convolution, a single-step form of each,
and normalisations.

A folder an operator; in each, `reference.py` is the definition in plain torch, `cpu.py` (Numba) and `triton.py` are the
compiled forms, held to it by the tests. The time-invariant scan is torch throughout, and so are the normalisations on a
CPU. Tensors are channels-last, (B, L, D).
"""

from mamba_seq.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from mamba_seq.kernels.norm import layer_norm, rms_norm
from mamba_seq.kernels.selective_scan import selective_scan, selective_state_update
from mamba_seq.kernels.time_invariant_scan import ssm_kernel, time_invariant_scan, time_invariant_update

__all__ = [
    "causal_conv1d",
    "causal_conv1d_update",
    "layer_norm",
    "rms_norm",
    "selective_scan",
    "selective_state_update",
    "ssm_kernel",
    "time_invariant_scan",
    "time_invariant_update",
]
