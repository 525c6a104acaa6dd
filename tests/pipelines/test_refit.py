"""The head of a classifier fitted again: offsets that were off are mended, good heads stay, reading is classify's."""

import numpy as np
import torch
import torch.nn.functional as F

from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.data_prep.alphabet import reverse_complement
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines.train.refit import Head, Read, choose, fit, read
from mamba_seq.pipelines.vectors import VectorReader

CPU = torch.device("cpu")


def drawn(seed: int, count: int, windows: int, apart: float = 0.1) -> Read:
    """Vectors of two classes that differ in their first number; the noise of all falls with the windows."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    vectors = torch.randn(count, 6, dtype=torch.float64, generator=generator) / windows**0.5
    vectors[:, 0] += apart * labels
    return Read(vectors + 3.0, labels, windows)


def test_offsets_are_mended_and_a_good_head_stays() -> None:
    train = [drawn(0, 600, 1), drawn(1, 600, 256)]
    held_out = [drawn(2, 300, 1), drawn(3, 300, 256)]
    far = drawn(4, 400, 1024)
    weight = torch.zeros(2, 6, dtype=torch.float64)
    weight[:, 0] = torch.tensor([-0.5, 0.5])
    right = Head(weight, torch.tensor([1.525, -1.525], dtype=torch.float64))
    wrong = Head(weight, right.bias + torch.tensor([0.2, -0.2], dtype=torch.float64))

    def accuracy(head: Head) -> float:
        return (F.linear(far.vectors, *head).argmax(dim=1) == far.labels).double().mean().item()

    assert accuracy(right) > 0.9
    assert accuracy(wrong) < 0.6
    mended, strength = choose(wrong, train, held_out, 0.5)
    assert strength is not None
    assert accuracy(mended) > 0.9
    held = fit(wrong, wrong, train, 0.5, 1e6)
    assert torch.allclose(held.weight, weight, atol=1e-4)
    assert accuracy(held) > 0.9
    best = fit(right, right, held_out, 0.5, 0.0)
    same, strength = choose(best, train, held_out, 0.5)
    assert strength is None
    assert same is best


def test_vectors_are_those_of_windows_on_both_strands() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        task="sequence-classification",
        backbone=MambaConfig(d_model=8, n_layer=2, d_state=4),
        vocab_size=5,
        alphabet="dna",
        labels=["a", "b"],
        pooling="mean",
    )
    model = SequenceClassifier(config).eval()
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (3, 48)).astype(np.uint8)
    codes[1, 4:16] = 4  # N, which does not count: a window of 4 bases
    bases = torch.tensor([[16, 16, 16], [4, 16, 16], [16, 16, 16]])

    class Windows(list[tuple[np.ndarray, int]]):
        length, labels = 48, [0, 1, 1]

    windows = Windows((row, 0) for row in codes)
    for chunk in (64, 4096):
        found = read(VectorReader(model, CPU, chunk=chunk), windows, 16)  # type: ignore[arg-type]
        assert (found.windows, found.labels.tolist()) == (3, [0, 1, 1])
        logits = F.linear(found.vectors.float(), model.head.weight, model.head.bias)
        with torch.no_grad():
            pieces = codes.reshape(9, 16)
            both = np.concatenate([pieces, np.stack([reverse_complement(piece) for piece in pieces])])
            each = model(torch.from_numpy(both).long()).reshape(2, 3, 3, 2).mean(dim=0)
            expected = (each * bases[..., None]).sum(dim=1) / bases.sum(dim=1, keepdim=True)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
