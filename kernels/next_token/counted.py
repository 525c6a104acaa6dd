"""The launch of what follows a step of clips; see `_triton_counted.py`.

Shapes: B clips, R rows, as many as clips, or of guided ones two a clip, V levels, M width, n samples of a super-step.
"""

import torch
import triton
from torch import Tensor

from mamba_seq.kernels._drawing import Drawing
from mamba_seq.kernels.next_token import _triton_counted
from mamba_seq.kernels.next_token.triton import MOST_ORDERED, MOST_TOKENS, NO_TOP_P, TILE, TYPES, WIDEST

WARPS = 8


def why_not(weight: Tensor, drawing: Drawing) -> str | None:
    """Give the reason that the kernel does not read logits with `weight` (V, M), or None."""
    V, M = weight.shape
    if weight.dtype not in TYPES:
        return "weights of such a type run in separate operators"
    if M > WIDEST or (MOST_ORDERED if drawing.leaves_out(V) else MOST_TOKENS) < V:
        return "the vocabulary or the width is not small"
    return None


class NextLevel:
    """Draws the next level of each clip and embeds it; tensors stay where they are.

    Args:
        tokens: written (R,) int64.
        hidden: written (R, M) float32.
        drawn: written (B, n) int64.
        likelihood: written (B, n) float32.
        positions: (R,) int64, counted up.
        indices: (R,) int64.
        norm: weight, bias (None: of the mean square alone) and eps of the final norm.
        weight: (V, M), of the logits.
        embedding: (V, M), of what is read.
        classes: added to that (R, M), or None.
        drawing: how.
        origin: the position of the first column of `drawn`; a super-step later it is written again.
    """

    def __init__(
        self,
        tokens: Tensor,
        hidden: Tensor,
        drawn: Tensor,
        likelihood: Tensor,
        positions: Tensor,
        indices: Tensor,
        norm: tuple[Tensor, Tensor | None, float],
        weight: Tensor,
        embedding: Tensor,
        classes: Tensor | None,
        drawing: Drawing,
        origin: int,
    ) -> None:
        V, M = weight.shape
        self._written = (tokens, hidden, drawn, likelihood, positions, indices)
        p = NO_TOP_P if drawing.top_p is None or drawing.top_p == 1 else float(drawing.top_p)
        inverse = 0.0 if drawing.temperature == 0 else 1 / drawing.temperature
        guidance = 1.0 if drawing.guidance is None else float(drawing.guidance)
        self._how = (origin, drawn.shape[1], inverse, float(min(drawing.top_k or V, V)), p, guidance, norm[2])
        seed = torch.tensor([drawing.seed & 0xFFFFFFFF, drawing.seed >> 32], dtype=torch.int64, device=weight.device)
        self._read = (*norm[:2], weight.contiguous(), embedding.contiguous(), classes, seed)
        padded, some = triton.next_power_of_2(V), drawing.leaves_out(V)
        self._sizes = {
            "V": V,
            "M": M,
            "V_PADDED": padded,
            "M_PADDED": triton.next_power_of_2(M),
            "CHUNK": max(16, min(triton.next_power_of_2(M), TILE // padded)),
            "DRAWN": drawing.temperature != 0,
            "KEEPS_SOME": some,
            "LAYER_NORM": norm[1] is not None,
            "ROWS": drawing.rows,
        }

    def __call__(self, out: Tensor) -> None:
        """Read the stream (R, M) float32 in front of the final norm, and note what is drawn."""
        with torch.cuda.device_of(out):
            _triton_counted.next_level[(len(out) // self._sizes["ROWS"],)](
                *self._written, out, *self._read, *self._how, **self._sizes, num_warps=WARPS
            )
