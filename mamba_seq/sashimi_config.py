"""The sizes of a SaShiMi: a U-Net of Mamba blocks at several rates."""

import dataclasses
import itertools
import math
from typing import Literal

from mamba_seq.block_config import BlockConfig, SSMKind, check_kind

BlockKind = Literal["mamba", "s4"]


@dataclasses.dataclass(kw_only=True)
class SaShiMiConfig(BlockConfig):
    """A U-Net that pools a sequence to lower rates and back (SaShiMi, arXiv 2202.09729, section 3.2).

    Levels are counted from the outermost, which runs at the sequence's own rate, to the centre: one more than there
    are pooling factors. With `topology="unet"` there are blocks on the way down and on the way up, in 2 * levels - 1
    stages: with Mamba blocks and no feed-forward layers that is the model of the Mamba paper (arXiv 2312.00752, section
    4.4 and appendix E.4). With `topology="sashimi"` the way down only pools, as in the SaShiMi paper, whose blocks are
    S4 layers (`block="s4"`, `ssm="time-invariant"`), each with a feed-forward layer (`ff=2`).
    """

    architecture: Literal["sashimi"] = "sashimi"
    """Tells this backbone from a plain stack in a config.json."""
    d_model: int
    """Width of the outermost level."""
    n_layer: int | list[int] = 8
    """Blocks of every stage: one figure, or one a level."""
    pool: list[int] = dataclasses.field(default_factory=lambda: [4, 4])
    """Pooling factors, outermost first: how many positions of a level become one of the next."""
    widen: int = 2
    """How many times as wide as a level the next one is."""
    topology: Literal["unet", "sashimi"] = "unet"
    """Blocks on the way down too ("unet"), every one with a connection to its mirror image on the way up; or on the way
    up alone ("sashimi")."""
    ssm: SSMKind | list[SSMKind] = "selective"
    """The recurrence of the blocks, as in MambaConfig: one kind, or one a level."""
    block: BlockKind | list[BlockKind] = "mamba"
    """Mamba blocks, or the S4 layers of SaShiMi ("s4"), whose ssm is time-invariant: one kind, or one a level."""
    ff: int = 0
    """Put a feed-forward layer, this many times as wide inside, behind every block, as SaShiMi has (2); 0 for none, as
    the Mamba paper has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture != "sashimi":
            raise ValueError(f"architecture is {self.architecture!r}, expected 'sashimi'")
        for name in ("d_model", "widen"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if any(factor < 2 for factor in self.pool):
            raise ValueError(f"pool is {self.pool}, expected factors of at least 2")
        if self.topology not in ("unet", "sashimi"):
            raise ValueError(f"topology is {self.topology!r}, expected 'unet' or 'sashimi'")
        if self.ff < 0:
            raise ValueError(f"ff is {self.ff}, expected at least 1, or 0 for no feed-forward layers")
        for name in ("n_layer", "ssm", "block"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != self.levels:
                raise ValueError(
                    f"{name} is {value}, expected {self.levels} entries, one a level: the pooling factors {self.pool} "
                    f"make {self.levels} levels"
                )
        if min(self.layers_of_levels) < 1:
            raise ValueError(f"n_layer is {self.n_layer}, expected at least 1")
        for kind, block in zip(self.kinds_of_levels, self.blocks_of_levels, strict=True):
            check_kind(kind)
            if block not in ("mamba", "s4"):
                raise ValueError(f"block is {block!r}, expected 'mamba' or 's4'")
            if block == "s4" and kind in ("selective", "complex"):
                raise ValueError(f"block is 's4' where ssm is {kind!r}, expected a time-invariant kind, as S4 is")

    @property
    def levels(self) -> int:
        """Number of rates, the sequence's own included."""
        return len(self.pool) + 1

    @property
    def period(self) -> int:
        """Positions of the sequence in one of the centre: after so many, what runs at a step repeats."""
        return math.prod(self.pool)

    @property
    def strides(self) -> list[int]:
        """Positions of the sequence in one of each level, outermost first."""
        return list(itertools.accumulate(self.pool, lambda a, b: a * b, initial=1))

    @property
    def widths(self) -> list[int]:
        """Width of each level, outermost first."""
        return [self.d_model * self.widen**level for level in range(self.levels)]

    @property
    def layers_of_levels(self) -> list[int]:
        """Blocks of a stage of each level, outermost first."""
        return self.n_layer if isinstance(self.n_layer, list) else [self.n_layer] * self.levels

    @property
    def blocks_of_levels(self) -> list[BlockKind]:
        """Mamba or S4, for each level, outermost first."""
        return self.block if isinstance(self.block, list) else [self.block] * self.levels

    @property
    def kinds_of_levels(self) -> list[SSMKind]:
        """The recurrence of each level, outermost first."""
        return self.ssm if isinstance(self.ssm, list) else [self.ssm] * self.levels
