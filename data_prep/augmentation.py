"""What happens to a training window of DNA before a model sees it: the other strand, mutations, masked bases."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mamba_seq.data_prep.alphabet import DNA, Codes

Letters = Literal["any", "own"]
"""What a mutated base becomes."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training window.

    Args:
        reverse_complement: Read the other strand with probability 0.5.
        mask_probability: Part of the windows in which some bases become N, so that N is learnt.
        mask_fraction: The most bases of such a window that do; how many is drawn uniformly up to this.
        mutation_fraction: The most bases of a window that become another base, drawn uniformly up to this for each
            window: what a model may learn is then what survives mutation, not the sequence by heart.
        mutation_letters: What such a base becomes, "any" of the three others, or one of the window's "own": the letters
            of the changed bases change places. "any" moves the composition of a window towards equal parts, and so what
            is learnt of compositions is wrong where nothing is mutated.
    """

    reverse_complement: bool = True
    mask_probability: float = 0.1
    mask_fraction: float = 0.05
    mutation_fraction: float = 0.0
    mutation_letters: Letters = "any"

    def __call__(self, codes: Codes, rng: np.random.Generator) -> Codes:
        """The window (L,) as training sees it; the one given is not changed."""
        if self.reverse_complement and rng.random() < 0.5:
            codes = DNA.reverse_complement(codes)
        if self.mutation_fraction:
            mutated = rng.random(len(codes), dtype=np.float32) < rng.uniform(0, self.mutation_fraction)
            if self.mutation_letters == "own":
                where = np.flatnonzero(mutated & (codes < 4))  # N stays N
                codes = codes.copy()
                codes[where] = codes[rng.permutation(where)]
            else:
                shift = rng.integers(1, 4, len(codes), dtype=np.uint8)
                codes = np.where(mutated & (codes < 4), (codes + shift) % 4, codes)
        if rng.random() < self.mask_probability:
            masked = rng.random(len(codes)) < rng.uniform(0, self.mask_fraction)
            codes = np.where(masked, np.uint8(DNA.unknown_code), codes)
        return codes
