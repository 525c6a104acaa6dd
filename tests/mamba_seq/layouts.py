"""The same sequences through a backbone in different layouts: alone, packed, padded, in chunks."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_seq import Backbone, MambaConfig, MambaState

KINDS = ("selective", "complex", "time-invariant", "time-invariant-real")
LAYOUTS = ("packed", "left", "right", "chunks")


def random_backbone(ssm: str = "selective", **fields: object) -> Backbone:
    """Build a small backbone in which no parameter is without effect."""
    torch.manual_seed(0)
    backbone = Backbone(MambaConfig(**{"d_model": 12, "n_layer": 2, "d_state": 5, "ssm": ssm, **fields}))
    for block in backbone.blocks:
        torch.nn.init.uniform_(block.mixer.D, 0.5, 1.5)
    return backbone


class Result(NamedTuple):
    """Of each sequence, alone or not: outputs (L, d_model), and the state of its last block."""

    outputs: list[Tensor]
    states: list[list[MambaState]]


def run(
    backbone: Backbone,
    sequences: list[Tensor],
    before: list[list[MambaState]] | None,
    layout: str,
    chunk_size: int = 17,
) -> Result:
    """Run sequences (L, d_model), each continuing a state if there are any."""
    if layout in ("alone", "chunks"):
        outputs, states = [], []
        for i, sequence in enumerate(sequences):
            state, out = None if before is None else before[i], []
            for chunk in sequence.split(chunk_size if layout == "chunks" else len(sequence)):
                chunk_out, state = backbone(chunk[None], state=state, return_state=True)
                out.append(chunk_out[0])
            outputs.append(torch.cat(out))
            states.append(state)
        return Result(outputs, states)
    lengths = [len(sequence) for sequence in sequences]
    joint = None if before is None else join(before)
    if layout == "packed":
        out, state = backbone(
            torch.cat(sequences)[None],
            state=joint,
            return_state=True,
            cu_seqlens=boundaries(lengths).to(sequences[0].device),
        )
        return Result(list(out[0].split(lengths)), part(state, len(sequences)))
    rows, mask = pad(sequences, layout)
    out, state = backbone(rows, mask, joint, return_state=True)
    return Result([row[kept] for row, kept in zip(out, mask, strict=True)], part(state, len(sequences)))


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def pad(sequences: list[Tensor], side: str, filling: float = 1e3) -> tuple[Tensor, Tensor]:
    """Return sequences (L, ...) in rows, and their mask; there is some padding in every row."""
    width = max(map(len, sequences)) + 6
    rows = sequences[0].new_full((len(sequences), width, *sequences[0].shape[1:]), filling)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool, device=rows.device)
    for i, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        rows[i, place], mask[i, place] = sequence, True
    return rows, mask


def join(states: list[list[MambaState]]) -> list[MambaState]:
    """Return the states of single sequences as those of a batch."""
    blocks = zip(*states, strict=True)
    return [
        MambaState(torch.cat([s.conv for s in block]), torch.cat([s.ssm for s in block]), block[0].discrete)
        for block in blocks
    ]


def part(state: list[MambaState], count: int) -> list[list[MambaState]]:
    """Return the states of a batch as those of single sequences."""
    return [[MambaState(s.conv[i : i + 1], s.ssm[i : i + 1], s.discrete) for s in state] for i in range(count)]


def state_tensors(states: list[list[MambaState]]) -> Iterator[tuple[str, Tensor]]:
    for i, state in enumerate(states):
        for j, block in enumerate(state):
            yield f"conv state of sequence {i}, block {j}", block.conv
            yield f"ssm state of sequence {i}, block {j}", block.ssm


def weighted_sum(tensors: list[Tensor]) -> Tensor:
    """Return a sum in which every element has a weight of its own, the same at every call."""
    generator = torch.Generator().manual_seed(5)
    total: Tensor = torch.zeros(())
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        weights = torch.randn(real.shape, generator=generator, dtype=real.dtype)
        total = total + (real * weights.to(real.device)).sum()
    return total
