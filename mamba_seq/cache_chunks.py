"""How long a chunk of a sequence may be for its activations to stay in a CPU's cache.

A stack that runs block after block over a long sequence writes every activation to memory and reads it back, and asks
the system for new memory all the time. Without a gradient nothing of it is needed again: `Backbone.forward` then runs
one chunk after another through all its blocks, the state carried, which is the same to rounding.
"""

import torch
from torch import Tensor

from mamba_seq.config import MambaConfig, SaShiMiConfig

CACHE_FLOATS = 1 << 21
"""Floats of activations a thread, 8 MB: of 2 to 16 MB the fastest with 1 MB of second-level cache a core and 32 MB of
third. What is worked on at a time is less, and with shorter chunks what a call costs besides its arithmetic shows."""
STEP = 128
"""Chunks are multiples of this, as the kernels' own tasks are, and no shorter."""

SASHIMI_POSITIONS, SASHIMI_CHUNK = 1 << 14, 1 << 11
"""Positions of all sequences that a SaShiMi runs at a time, and the fewest of each; inner levels have a fraction of
them. Four blocks a stage of width 64 on 2 cores: 1 x 65,536 by 16,384 ran 1.3 times as fast as whole, 8 x 16,000 by
2,048 1.7 times."""


def chunk_length(hidden: Tensor, config: MambaConfig) -> int:
    """Return the length of the chunks that (B, L, d_model) vectors are to be run in; L or more for all at once.

    It depends on sizes and the number of threads alone.
    """
    convolved = not config.is_selective  # by FFT, which is made for all of a sequence at once
    if hidden.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or convolved:
        return max(1, hidden.shape[1])
    # what a block has in memory for a position: both halves of in_proj's output, the convolved input, delta, the scan's
    # output; and the residual stream before and after, normalised
    floats = 5 * config.d_inner + 3 * config.d_model
    positions = CACHE_FLOATS * torch.get_num_threads() // floats
    return max(STEP, positions // max(1, hidden.shape[0]) // STEP * STEP)


def sashimi_chunk_length(hidden: Tensor, config: SaShiMiConfig) -> int:
    """Return the length of the chunks that a SaShiMi is to run (B, L, d_model) vectors in; L or more for all at once.

    It is a multiple of the period, so that every chunk but the last completes its windows.
    """
    convolved = not {"selective", "complex"}.issuperset(config.kinds_of_levels)
    if hidden.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or convolved:
        return max(1, hidden.shape[1])
    positions = max(SASHIMI_CHUNK, SASHIMI_POSITIONS // max(1, hidden.shape[0]))
    return -(-positions // config.period) * config.period
