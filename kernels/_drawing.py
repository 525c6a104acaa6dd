"""How the next token of a sequence is drawn, for the kernels that do it."""

from typing import NamedTuple


class Drawing(NamedTuple):
    """Temperature, filters and the seed of random numbers that are counted by sequence and position."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = None
    """Only the fewest most probable tokens whose probabilities sum to p, after `top_k`."""
    seed: int = 0
    """0 to 2^63 - 1."""
    guidance: float | None = None
    """How far from what the model says without the class of a sequence, towards and beyond what it says with it: logits
    are without + guidance * (with - without). 1 is with the class, plain; None is what the model's config says."""

    @property
    def rows(self) -> int:
        """Streams of states that a sequence has: guided ones have two, with the class and without it."""
        return 1 if self.guidance in (None, 1) else 2

    def leaves_out(self, V: int) -> bool:
        """Tell whether a filter rules out some of V tokens."""
        fewer = self.top_k is not None and self.top_k < V
        return self.temperature != 0 and (fewer or (self.top_p is not None and self.top_p < 1))
