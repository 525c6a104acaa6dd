"""Launch settings of the Gluon scan, saved per architecture: nothing is searched for in front of a user.

Those of sm_90 were measured, on an H200 (benchmarks/README.md has the commands). The others are a safe choice that
nobody has measured. They keep sm_90's layouts, since what bounds the scan is alike everywhere: a multiprocessor has
four schedulers, 65,536 registers and 16 special-function lanes on every architecture from sm_80 on (CUDA C++
Programming Guide, arithmetic instructions and technical specifications), so that an exponential costs a warp 8 cycles
of its scheduler. What differs is how many programs are resident, by shared memory (one of `gradients` takes 28 KB):

    sm_80          164 KB   5 programs       sm_90, sm_100   228 KB   8 programs
    sm_86, sm_89   100 KB   3 programs       sm_120          100 KB   3 programs

and how many multiprocessors there are. Fewer resident warps want fewer and longer chunks for one round of them, and a
smaller chip is full with fewer channels. sm_80 also has half the float32 lanes of the others: it is the layout with the
fewest instructions that suits it, and that is `wide` already.
"""

import dataclasses
import functools
from typing import Final, NamedTuple

import torch

from mamba_seq.kernels._dispatch import multiprocessor_count

Capability = tuple[int, int]


class Launch(NamedTuple):
    """How a kernel spreads states over lanes: a lane owns SN states of SD channels."""

    SD: int
    SN: int
    warps: int
    steps: int
    """Steps in one stretch of code."""
    registers: int | None
    """Most registers of a lane; fewer let more warps run at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How the scan is launched on one kind of GPU.

    Thresholds count channels of the whole batch with 16 states each, B D N / 16 with batch B, D channels, N states.
    """

    measured: bool
    """Whether anybody has timed these settings; otherwise they are a safe choice."""
    multiprocessors: int
    """Of the chip that the thresholds are for."""
    wide: Launch
    """Fewest instructions a state."""
    narrow: Launch
    """Four times as many warps, where batch and channels are few."""
    middle: Launch
    """Between those."""
    gradients: Launch
    """Backward, fewest instructions a state."""
    gradients_narrow: Launch
    """Backward, twice as many warps; states of 16 at most."""
    one_piece: int
    """Forward, from here on the whole length is one chunk, which is computed with `narrow`."""
    middle_from: int
    """Forward, from here on with `middle`."""
    wide_from: int
    """Forward, from here on with `wide`."""
    gradients_one_piece: int
    """Backward, from here on the whole length is one chunk."""
    gradients_wide_above: int
    """Backward, above this one chunk is computed with `gradients`, up to it with `gradients_narrow`."""
    warps: int
    """That a multiprocessor holds of the larger kernels."""
    rounds: int
    """Of resident warps that the chunks of a short batch are cut for."""
    shortest_chunk: int
    """Steps; up to so many a sequence is not cut."""
    longest_chunk: int
    """Steps of the longest chunk where a sequence is cut."""

    def scaled(self, multiprocessors: int) -> "Settings":
        """Return the settings for a chip with another number of multiprocessors: it is full with as many each."""
        if multiprocessors == self.multiprocessors:
            return self
        thresholds = {name: getattr(self, name) * multiprocessors // self.multiprocessors for name in THRESHOLDS}
        return dataclasses.replace(self, multiprocessors=multiprocessors, **thresholds)


THRESHOLDS: Final = ("one_piece", "middle_from", "wide_from", "gradients_one_piece", "gradients_wide_above")

MEASURED: Final[Capability] = (9, 0)
_HOPPER = Settings(
    measured=True,
    multiprocessors=132,
    wide=Launch(2, 8, 1, 4, None),
    narrow=Launch(1, 4, 4, 4, None),
    middle=Launch(1, 8, 2, 4, 128),
    gradients=Launch(2, 8, 1, 2, None),
    gradients_narrow=Launch(1, 8, 1, 4, None),
    one_piece=10_000,
    middle_from=14_000,
    wide_from=40_000,
    gradients_one_piece=14_000,
    gradients_wide_above=30_000,
    warps=12,
    rounds=3,
    shortest_chunk=64,
    longest_chunk=512,
)
_AMPERE = dataclasses.replace(_HOPPER, measured=False, warps=8)  # 12 of 228 KB are 8 of 164 KB
_SMALL = dataclasses.replace(_HOPPER, measured=False, warps=5)  # and 5 of 100 KB

TABLE: Final[dict[Capability, Settings]] = {
    (8, 0): _AMPERE,
    (8, 6): _SMALL,
    MEASURED: _HOPPER,
    (10, 0): dataclasses.replace(_HOPPER, measured=False),
    (12, 0): _SMALL,
}
"""By compute capability. Thresholds are those of 132 multiprocessors everywhere; `settings_for` scales them."""


@functools.cache  # asked at every call
def settings_for(device: torch.device) -> Settings:
    """Return the settings for a device, scaled to its multiprocessors.

    Args:
        device: as a tensor has it, with an index. One that is no GPU, or is not there (of a fake tensor), has those of
            the measured architecture.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return TABLE[MEASURED]
    return look_up(torch.cuda.get_device_capability(device)).scaled(multiprocessor_count(device))


def look_up(capability: Capability) -> Settings:
    """Return the settings of an architecture: its own, or those of the nearest below; of the first, if none is."""
    below = [known for known in TABLE if known <= capability]
    return TABLE[max(below, default=min(TABLE))]
