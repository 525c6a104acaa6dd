"""Writes step programs: rows of operations, packed weights, and the places of a sequence's row of memory.

Shapes: M and K widths of vectors, D channels, N state size; `padded` is a width rounded up to sixteen lanes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_seq.kernels._simd import LANES, LOG2E
from mamba_seq.kernels.step_program import _cpu_kernels as kernels

NOTHING = -1
"""The place of a vector that is not there."""
NEVER = -3e38
"""Logit of a token that only fills a panel up."""


class Vector(NamedTuple):
    """A vector of each sequence: a place in its row of memory, and its length."""

    place: int
    length: int

    @property
    def padded(self) -> int:
        """Floats that it takes."""
        return up(self.length)

    def row(self, number: int) -> "Vector":
        """Return another vector of this length, so many behind this one."""
        return Vector(self.place + number * self.padded, self.length)


class Builder:
    """Collects the phases of a period, each a list of operations; `begin_phase` begins one.

    Attributes:
        floats: how long a row of memory is so far.
        rows: of all phases.
        starts: where the phases begin among them.
        weights: what the rows read, kept alive here.
    """

    def __init__(self) -> None:
        self.floats = 0
        self.rows: list[list[int]] = []
        self.starts: list[int] = []
        self.weights: list[Tensor] = []

    def begin_phase(self) -> None:
        """Let what follows be the next phase's."""
        self.starts.append(len(self.rows))

    def segment(self, write: Callable[[], None]) -> list[list[int]]:
        """Return the rows that `write` writes, for `play`, which may put them into several phases."""
        before, self.rows = self.rows, []
        write()
        made, self.rows = self.rows, before
        return made

    def play(self, segment: list[list[int]]) -> None:
        """Add the rows of a segment."""
        self.rows += segment

    def vector(self, length: int, count: int = 1) -> Vector:
        """Give a place for `count` vectors, one behind the other."""
        made = Vector(self.floats, length)
        # a product stores whole panels
        self.floats += -(-count * made.padded // kernels.PANEL) * kernels.PANEL
        return made

    def keep(self, *parts: Tensor) -> int:
        """Lay tensors end to end in float32 and return the address."""
        flat = torch.cat([part.detach().float().flatten() for part in parts]).contiguous()
        self.weights.append(flat)
        return flat.data_ptr()

    def matrix(self, weight: Tensor, bias: Tensor | None = None, fill: float = 0.0) -> tuple[int, int, int, int]:
        """Pack a matrix (outputs, K) and a bias for `linear`: number of inputs, addresses, number of panels.

        Args:
            weight: of as many outputs as there are; K goes by what the input's vector has in memory.
            bias: (outputs,), or None for zeros.
            fill: the bias of outputs that fill up the last panel.
        """
        outputs, K = weight.shape
        panels = -(-outputs // kernels.PANEL)
        spare = panels * kernels.PANEL - outputs
        offset = weight.new_zeros(outputs) if bias is None else bias
        rows = torch.nn.functional.pad(weight.detach().float(), (0, 0, 0, spare))
        packed = rows.view(panels, kernels.PANEL, K).transpose(1, 2)
        padded = torch.nn.functional.pad(offset.detach().float(), (0, spare), value=fill)
        return K, self.keep(packed), self.keep(padded), panels

    def embed(self, table: Tensor, added: Vector, out: Vector) -> None:
        """Out = the row of `table` (V, M) of the sequence's token + added."""
        self._row(kernels.EMBED, self.keep(pad(table)), added.place, out.place, out.padded)

    def norm(self, x: Vector, out: Vector, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        """Out = weight * x / rms(x), or with `bias` given layer normalisation."""
        shift = torch.zeros_like(weight) if bias is None else bias
        end = weight.new_tensor([eps], dtype=torch.float32)
        address = self.keep(pad(weight), pad(shift), pad(torch.ones_like(weight)), end)
        self._row(kernels.NORM, x.place, out.place, address, x.length, x.padded, int(bias is not None))

    def linear(
        self,
        x: Vector,
        matrix: tuple[int, int, int, int],
        out: Vector,
        plus: Vector | None = None,
        more: Vector | None = None,
    ) -> None:
        """Out = matrix x + plus + more; `matrix` is packed for the K floats from x on."""
        K, weight, bias, panels = matrix
        added = (NOTHING if v is None else v.place for v in (plus, more))
        self._row(kernels.LINEAR, x.place, K, weight, bias, out.place, panels, *added)

    def convolution(self, x: Vector, out: Vector, weight: Tensor, bias: Tensor | None, state: Vector) -> None:
        """Out = silu(causal convolution of x by weight (D, K)), K - 1 inputs being kept in `state`."""
        shift = weight.new_zeros(len(weight)) if bias is None else bias
        address = self.keep(pad(weight.t()), pad(shift))
        self._row(kernels.CONVOLUTION, x.place, out.place, address, state.place, weight.shape[1], x.padded)

    def selective(
        self,
        u: Vector,
        z: Vector,
        delta: Vector,
        selection: Vector,
        out: Vector,
        A: Tensor,
        dt_bias: Tensor,
        D: Tensor,
        state: Vector,
        rank: int,
    ) -> None:
        """Advance a selective recurrence of A (D, N), real or complex, gated; B and C follow `rank` floats."""
        if A.is_complex():
            kind, A2 = kernels.COMPLEX, torch.stack([A.real * LOG2E, A.imag], dim=-1)
        else:
            kind, A2 = kernels.SELECTIVE, A * LOG2E
        address = self.keep(in_blocks(A2), pad(dt_bias), pad(D))
        places = (u.place, z.place, delta.place, selection.place, out.place)
        self._row(kind, *places, address, state.place, A.shape[1], u.padded, rank)

    def time_invariant(
        self, u: Vector, z: Vector | None, out: Vector, parameters: tuple[Tensor, Tensor], C: Tensor, D: Tensor,
        state: Vector,
    ) -> None:  # fmt: skip
        """Advance a time-invariant recurrence of the `step_parameters`, gated if z is given."""
        tables = [torch.view_as_real(t) if t.is_complex() else t for t in (*parameters, C)]
        kind = kernels.CONSTANT_COMPLEX if C.is_complex() else kernels.CONSTANT
        address = self.keep(*map(in_blocks, tables), pad(D))
        gate = NOTHING if z is None else z.place
        self._row(kind, u.place, gate, out.place, address, state.place, C.shape[1], u.padded)

    def gelu(self, x: Vector, out: Vector) -> None:
        """Out = x Phi(x)."""
        self._row(kernels.GELU, x.place, out.place, x.padded)

    def glu(self, halves: Vector, out: Vector) -> None:
        """Out = first half * sigmoid(second half)."""
        self._row(kernels.GLU, halves.place, out.place, out.padded)

    def add(self, a: Vector, b: Vector | None, out: Vector) -> None:
        """Out = a + b, or a."""
        self._row(kernels.ADD, a.place, NOTHING if b is None else b.place, out.place, a.padded)

    def draw(self, logits: Vector) -> None:
        """Draw the sequence's next token."""
        self._row(kernels.DRAW, logits.place)

    def _row(self, *words: int) -> None:
        self.rows.append([*words, *[0] * (kernels.WORDS - len(words))])


def up(length: int) -> int:
    """Return a length rounded up to whole lanes."""
    return -(-length // LANES) * LANES


def pad(x: Tensor) -> Tensor:
    """Fill the last axis up with zeros."""
    return torch.nn.functional.pad(x.detach().float(), (0, up(x.shape[-1]) - x.shape[-1]))


def pad_rows(weight: Tensor, parts: Sequence[int]) -> Tensor:
    """Fill the outputs of a matrix (or of a bias) up with zeros, each part by itself."""
    found = []
    for part in weight.detach().float().split(list(parts)):
        spare = up(len(part)) - len(part)
        found.append(torch.cat([part, part.new_zeros((spare, *part.shape[1:]))]))
    return torch.cat(found)


def in_blocks(x: Tensor) -> Tensor:
    """Turn (D, ...) into (blocks, ..., 16), channels last."""
    spare = up(len(x)) - len(x)
    whole = torch.cat([x.detach().float(), x.new_zeros((spare, *x.shape[1:]), dtype=torch.float32)])
    return whole.view(-1, LANES, *x.shape[1:]).movedim(1, -1)
