"""What is timed, and at which shapes."""

import dataclasses
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mamba_seq.pipelines.bench.peers import Peer

Shape = tuple[int, int, int]
DIRECTIONS = ("forward", "backward")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

TABLE: list[Shape] = [
    (8, 2048, 1536),
    (64, 2048, 256),
    (8, 16384, 512),
    (1, 131072, 512),
    (1, 1048576, 256),
    (1, 1048576, 128),
    (32, 16000, 256),
]
"""B, L, D on a GPU: the table of the README."""
LENGTHS: list[Shape] = [(1, 2**exponent, 1024) for exponent in range(9, 21)]
"""One sequence of growing length on a GPU: the figure of the Mamba paper (arXiv 2312.00752, figure 8, left)."""
QUICK: list[Shape] = [(8, 2048, 1536), (1, 131072, 512)]
CPU_TABLE: list[Shape] = [(1, 16384, 256), (8, 2048, 256)]
CPU_LENGTHS: list[Shape] = [(1, 2**exponent, 256) for exponent in range(9, 15)]
CPU_QUICK: list[Shape] = [(1, 500, 128)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be timed."""

    ops: tuple[str, ...]
    """Names of `ops.OPS`, in order."""
    shapes: tuple[Shape, ...]
    """B, L, D of each case."""
    dtype: torch.dtype
    """Of the activations."""
    directions: tuple[str, ...] = DIRECTIONS
    """"forward", "backward" or both."""
    N: int = 16
    """State size."""
    peers: tuple[str, ...] = ()
    """Names of the peers; all where empty."""
    quick: bool = False
    """Fewer runs of each, for a first look."""

    def wants(self, peer: "Peer") -> bool:
        """Tell whether a peer is among those asked for."""
        return not self.peers or peer.name in self.peers


def default_dtype(device: torch.device) -> torch.dtype:
    """Return what models run in: bfloat16 on GPUs, float32 on CPUs."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def default_shapes(device: torch.device, quick: bool, lengths: bool) -> list[Shape]:
    """Return the shapes that a device is timed at when none are named."""
    on_gpu = device.type == "cuda"
    if lengths:
        shapes = LENGTHS if on_gpu else CPU_LENGTHS
        return shapes[:4] if quick else shapes
    if quick:
        return QUICK if on_gpu else CPU_QUICK
    return TABLE if on_gpu else CPU_TABLE
