"""A tiny classifier that tells what it was given: wrong padding, a wrong mask or a wrong strand changes its answer.

Run as a script, it is the command line with that model behind every `-m`, for tests that need a process of their own.
"""

import sys
import time
import types

import torch
from torch import Tensor, nn

LABELS = ["alpha", "beta", "gamma"]
CONTEXT = 64
TAXONOMY = {
    "alpha": "2:D:Bacteria;10:G:Alphabeta;101:S:Alphabeta alpha",
    "beta": "2:D:Bacteria;10:G:Alphabeta;102:S:Alphabeta beta",
    "gamma": "2759:D:Eukaryota;103:S:Gamma gamma",
}
# rows A, C, G, T, N; the two strands of a sequence get different scores
COMPOSITION = [[9.0, 0, 1], [0, 9, 2], [3, 4, 6], [2, 0, 9], [1, 1, 1]]
FIRST = [[0.1, 0, 0.5], [0, 0.3, 0], [0.4, 0, 0], [0, 0.2, 0], [0, 0, 0]]
LAST = [[0, 0, 0.4], [0.6, 0, 0], [0, 0, 0], [0, 0.7, 0], [0, 0, 0]]


class FakeClassifier(nn.Module):
    """Logits from the composition of the real positions and from the first and the last of them."""

    def __init__(self, *, delay: float = 0.0) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(
            task="sequence-classification",
            labels=LABELS,
            context=CONTEXT,
            max_windows=None,
            alphabet="dna",
            calibration=None,
            strand=None,
            complement=[],
            taxonomy=TAXONOMY,
        )
        self.delay = delay
        self.shapes: list[tuple[int, int]] = []
        self.register_buffer("weight", torch.tensor(COMPOSITION))
        self.register_buffer("ends", torch.tensor([FIRST, LAST]))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        assert tokens.dtype == torch.int64, tokens.dtype
        assert int(tokens.min()) >= 0, tokens.min()
        assert int(tokens.max()) < 5, tokens.max()
        if self.delay:
            time.sleep(self.delay)
        self.shapes.append(tuple(tokens.shape))
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        counts = real.sum(dim=1, keepdim=True)
        one_hot = nn.functional.one_hot(tokens, 5).float() * real[..., None]
        composition = one_hot.sum(dim=1) / counts
        last = one_hot.gather(1, (counts - 1)[..., None].expand(-1, 1, 5))[:, 0]
        return composition @ self.weight + one_hot[:, 0] @ self.ends[0] + last @ self.ends[1]


if __name__ == "__main__":
    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.cli import main

    pause = float(sys.argv[1])
    models.load_model = lambda spec, device: FakeClassifier(delay=pause).to(device)
    sys.exit(main(sys.argv[2:]))
