"""How much memory a training step of a stack of blocks takes, foreseen from its sizes.

n = B L positions, d = d_model, D = expand d, N = d_state, P columns of x_proj's output (rank + 2 N, or rank + 4 N
where states are complex), b bytes of a number in the blocks (2 under bfloat16 autocast, else 4), r bytes of one in the
residual stream (4, or b with `residual_in_fp32` false), W parameters. Bytes are the sum of

    16 W                                            weights, gradients and AdamW's two moments, in float32
    n_layer n (r d + b (2 D + P) + s)               "inner": the residual stream, outputs of in_proj and x_proj, states
    + c b n D                                       and what one block takes in its backward pass
    n_layer n r d + 8 n d + 10 b min(n D, 2^26)     "segments": residual streams, what stands beside blocks, one segment
    n_layer n (r d + b (d + 5 D + P) + s)           "nothing": what autograd keeps
    + 6 b n D

with s = 4 N D / 16 of states. On a GPU s is 4 N D / 128 where 4 N D / 16 comes to more than 1 GiB a block, and with
"inner" already from n D = 2^26 on. Where "inner" keeps the many states, it keeps y too, b D more, and c is 10; else 13,
for y is made again. With `gradient_checkpointing` every k blocks, the first terms are those of k blocks, with the
stream in front of every k-th. 13, 10, 8 and 6 are fitted to what an H200 and a CPU took (docs/training.md).
"""

import dataclasses
import math

from mamba_seq.backbone import SEGMENT_ELEMENTS, Recompute
from mamba_seq.config import MambaConfig
from mamba_seq.inner import SPARSE_FROM

MOST_DENSE_STATES = 1 << 30
"""Bytes of states kept every 16 steps, above which the scan on GPUs keeps one every 128."""
DENSE, SPARSE = 16, 128
IN_BACKWARD = {True: 13.0, False: 10.0}
"""Tensors (B, L, D) of a block's backward pass with "inner", by whether y is made again there."""
AUTOGRAD_BACKWARD = 6.0
BESIDE = 8.0
"""Bytes a position and channel of the residual stream that "segments" takes outside its blocks."""
SEGMENT = 10.0
"""Tensors of a segment's size that "segments" takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A training step.

    Args:
        batch: sequences B that go through the model at once.
        length: positions L of each.
        parameters: of the whole model.
        mixed: whether blocks compute in bfloat16.
        gpu: whether on a GPU, where "auto" is "inner", or a CPU, where it is "nothing".
        checkpoint_every: blocks between two that `Backbone.gradient_checkpointing` keeps; 0 for none.
    """

    batch: int
    length: int
    parameters: int
    mixed: bool
    gpu: bool
    checkpoint_every: int = 0


def training_bytes(config: MambaConfig, step: Step, recompute: Recompute = "auto") -> int:
    """Return the most bytes that a training step takes, weights and optimiser included; see the head of this file."""
    if recompute == "auto":
        recompute = "inner" if step.gpu else "nothing"
    if recompute == "inner" and not config.is_selective:
        recompute = "nothing"
    n = step.batch * step.length
    b = 2 if step.mixed else 4
    residual = n * config.d_model * (4 if config.residual_in_fp32 else b)
    group = min(step.checkpoint_every, config.n_layer)
    if recompute == "segments":
        kept = math.ceil(config.n_layer / max(1, group)) * residual
        kept += int(SEGMENT * b * min(n * config.d_inner, SEGMENT_ELEMENTS)) * max(1, group)
        return 16 * step.parameters + kept + int(BESIDE * n * config.d_model)
    block = residual + _inside(config, step, recompute, b)
    tensors = IN_BACKWARD[_is_sparse(config, step, recompute)] if recompute == "inner" else AUTOGRAD_BACKWARD
    beside = int(tensors * b * n * config.d_inner)
    if group:
        return 16 * step.parameters + math.ceil(config.n_layer / group) * residual + group * block + beside
    return 16 * step.parameters + config.n_layer * block + beside


def _inside(config: MambaConfig, step: Step, recompute: Recompute, b: int) -> int:
    """Return the bytes that one block keeps besides the residual stream."""
    n, channels = step.batch * step.length, config.d_inner
    columns = config.rank + 2 * config.d_state * (2 if config.has_complex_states else 1)
    sparse = _is_sparse(config, step, recompute)
    states = n * _state(config) // (SPARSE if sparse else DENSE)
    if recompute == "nothing":
        return n * b * (config.d_model + 5 * channels + columns) + states
    return n * b * (2 * channels + columns) + states + (0 if sparse else n * b * channels)


def _is_sparse(config: MambaConfig, step: Step, recompute: Recompute) -> bool:
    """Tell whether the scan keeps few states for the backward pass."""
    n = step.batch * step.length
    many = n * _state(config) // DENSE > MOST_DENSE_STATES
    return step.gpu and (many or (recompute == "inner" and n * config.d_inner >= SPARSE_FROM))


def _state(config: MambaConfig) -> int:
    """Return the bytes of a block's state."""
    return 4 * config.d_inner * config.d_state * (2 if config.has_complex_states else 1)
