"""Sequence-length warm-up: short windows first, with as many bases a step as later (arXiv 2312.00752, appendix E.3)."""

import itertools
from collections.abc import Sequence

import numpy as np


class LengthWarmup:
    """The longest window of each step, a function of the step alone: a run may stop and go on anywhere in it.

    Args:
        lengths: of the stages, ascending; empty for no warm-up.
        steps: of each stage. After them windows are as long as they are drawn.

    Raises:
        ValueError: lengths that do not ascend, or another number of steps than of lengths.
    """

    def __init__(self, lengths: Sequence[int], steps: Sequence[int]) -> None:
        if len(lengths) != len(steps) or any(n < 1 for n in [*lengths, *steps]):
            raise ValueError(
                f"length_warmup is {list(lengths)} and length_warmup_steps {list(steps)}, expected as many lengths as "
                "numbers of steps, each at least 1"
            )
        if any(b <= a for a, b in itertools.pairwise(lengths)):
            raise ValueError(f"length_warmup is {list(lengths)}, expected lengths that grow")
        self.lengths = list(lengths)
        self.ends: list[int] = np.cumsum(steps, dtype=np.int64).tolist()

    def stage(self, step: int) -> int:
        """Return the number of a step's stage; `len(lengths)` after the warm-up."""
        return int(np.searchsorted(self.ends, step, side="right"))

    def first_step(self, stage: int) -> int:
        """Return the first step of a stage."""
        return self.ends[stage - 1] if stage else 0

    def longest(self, step: int) -> int | None:
        """Return the longest window of a step; None where there is no limit."""
        stage = self.stage(step)
        return self.lengths[stage] if stage < len(self.lengths) else None
