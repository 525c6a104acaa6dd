"""Runs step programs: tiles of sequences over threads.

Shapes: B sequences, n positions, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_seq.kernels._drawing import Drawing
from mamba_seq.kernels._numba import run_kernel, worker_count
from mamba_seq.kernels.step_program import _cpu_kernels as kernels
from mamba_seq.kernels.step_program.builder import Builder

MOST_IN_TILE = 16
"""Sequences that go through the weights together: more save no time, fewer leave weights to be read again."""
SPREAD = 16
"""Floats between rows beyond a multiple of a page: rows a page apart would share their places in the cache."""
PAGE = 1024


class StepProgram:
    """The program of a network for B sequences, with their memory.

    Attributes:
        memory: a row a sequence (B, floats); zeros to begin with.
        position: of all sequences.

    Args:
        builder: with all phases.
        sequences: B; of a guided drawing, pairs of them, each of a token that is drawn for both.
        V: vocabulary of the tokens that are drawn.
        drawing: how.
        tokens: read first (B,) int64.
        indices: the counter of the random numbers of each sequence (B,) int64.
        position: of the first token.
    """

    def __init__(
        self,
        builder: Builder,
        sequences: int,
        V: int,
        drawing: Drawing,
        tokens: Tensor,
        indices: Tensor,
        position: int = 0,
    ) -> None:
        self.position = position
        self._weights = builder.weights
        self._rows = torch.tensor(builder.rows, dtype=torch.int64)
        self._starts = torch.tensor([*builder.starts, len(builder.rows)], dtype=torch.int64)
        floats = -(-builder.floats // PAGE) * PAGE + SPREAD
        self.memory = torch.zeros((sequences, floats), dtype=torch.float32)
        self.tokens = tokens.to(torch.int64).clone()
        self._indices = indices.to(torch.int64).contiguous()
        self._seed = drawing.seed
        temperature, k, p = drawing.temperature, drawing.top_k, drawing.top_p
        inverse = 0.0 if temperature == 0 else 1 / temperature
        self._group = drawing.rows
        settings = [inverse, min(k or V, V), 1.0 if p is None else p, temperature == 0, drawing.leaves_out(V), V]
        settings += [1.0 if drawing.guidance is None else drawing.guidance, self._group == 2]
        self._settings = torch.tensor(settings, dtype=torch.float32)
        self._scratch_floats = 4 * (V + 16)

    def run(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw the next tokens: (B, n) int64, and the log-probability of each (B, n) float32; of pairs, B / 2 rows."""
        B, group = len(self.tokens), self._group
        drawn = torch.empty((B // group, count), dtype=torch.int64)
        likelihood = torch.empty((B // group, count), dtype=torch.float32)
        workers = worker_count()
        tile = group * max(1, min(MOST_IN_TILE // group, -(-B // (group * workers))))
        tiles = -(-B // tile)
        scratch = torch.empty((min(workers, tiles), self._scratch_floats), dtype=torch.float32)
        arguments = (
            self._rows.data_ptr(), self._starts.data_ptr(), len(self._starts) - 1, self.memory.data_ptr(),
            self.memory.stride(0), B, tile, self.position, count, self.tokens.data_ptr(), self._indices.data_ptr(),
            self._seed, self._settings.data_ptr(), drawn.data_ptr(), likelihood.data_ptr(),
        )  # fmt: skip
        run_kernel(kernels.run_program, arguments, tiles, scratch)
        self.position += count
        return drawn, likelihood

    def write(self, place: int, values: Tensor) -> None:
        """Put values (B or 1, ...) into every row from a place on."""
        flat = values.detach().float().flatten(1)
        self.memory[:, place : place + flat.shape[1]] = flat

    def read(self, place: int, shape: Sequence[int]) -> Tensor:
        """Return a copy of what stands in every row from a place on (B, *shape)."""
        count = int(torch.Size(shape).numel())
        return self.memory[:, place : place + count].reshape(-1, *shape).clone()
