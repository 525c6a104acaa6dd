"""Batches of sequences of similar length, shuffled by seed: a run that was killed goes on with the batch it would
have had.

Shapes: B batch, L longest of the batch, F numbers at a position.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mamba_seq.data_prep.alphabet import get_alphabet
from mamba_seq.data_prep.labelled_inputs import Inputs
from mamba_seq.pipelines.finetune.dataset import Dataset
from mamba_seq.pipelines.finetune.recipe import FinetuneRecipe

POOL = 16
"""Batches whose sequences are sorted by length together."""
MOST_ROWS, FEWEST_STEPS = 64, 40
IGNORED = -100


class Batch(NamedTuple):
    """A batch of examples."""

    inputs: Tensor
    """Tokens (B, L) int64 or numbers (B, L, F) float32."""
    mask: Tensor
    """True at real positions (B, L)."""
    targets: Tensor
    """As the model's loss takes them."""
    numbers: list[int]
    """Which examples they are."""
    padded: bool
    """Whether the mask is false anywhere: known here, so that a step need not ask the GPU and wait for it."""


def choose_batch_size(lengths: Sequence[int], most_tokens: int) -> int:
    """Return sequences a batch: as many as fit by the longest, at most 64, and enough batches for an epoch to count."""
    fit = max(1, most_tokens // max(1, max(lengths)))
    by_number = max(4, 2 ** int(np.log2(max(4, len(lengths) / FEWEST_STEPS))))
    return int(min(fit, MOST_ROWS, by_number))


def collate(dataset: Dataset, numbers: Sequence[int], inputs: Sequence[Inputs], values: Sequence[Any]) -> Batch:
    """Pad inputs (L,) or (L, F) and targets to one batch."""
    longest = max(1, *(len(each) for each in inputs)) if inputs else 1
    lengths = torch.tensor([len(each) for each in inputs])
    mask = torch.arange(longest)[None] < lengths[:, None]
    first = inputs[0]
    kind = np.float32 if first.ndim == 2 else np.int64
    padded = np.zeros((len(inputs), longest, *first.shape[1:]), dtype=kind)
    for row, each in zip(padded, inputs, strict=True):
        row[: len(each)] = each
    tokens = torch.from_numpy(padded)
    targets = pad_targets(dataset.targets.task, values, tokens, longest)
    return Batch(tokens, mask, targets, list(numbers), not bool(mask.all()))


def pad_targets(task: str, values: Sequence[Any], inputs: Tensor, longest: int) -> Tensor:
    """Return targets as the loss of the task takes them."""
    if task == "language-model":
        return inputs
    if task == "sequence-classification":
        return torch.tensor(values, dtype=torch.long)
    if task in ("multi-label", "sequence-regression"):
        return torch.from_numpy(np.stack(values))
    if task == "ctc":
        most = max(1, *(len(v) for v in values))
        return torch.tensor([[*v, *[IGNORED] * (most - len(v))] for v in values])
    if task == "token-classification":
        classes = np.full((len(values), longest), IGNORED, dtype=np.int64)
        for target, v in zip(classes, values, strict=True):
            target[: len(v)] = v
        return torch.from_numpy(classes)
    tracks = np.full((len(values), longest, values[0].shape[1]), np.nan, dtype=np.float32)
    for track, v in zip(tracks, values, strict=True):
        track[: len(v)] = v
    return torch.from_numpy(tracks)


def stretch(dataset: Dataset, i: int, most: int, start: int | None = None) -> tuple[Inputs, Any]:
    """Return input and target of example i, cut to `most` positions from `start`, or around the middle."""
    whole, value = dataset.inputs[i], dataset.targets.values[i]
    if len(whole) <= most:
        return whole, value
    start = (len(whole) - most) // 2 if start is None else start
    if dataset.targets.task.startswith("token-"):
        value = value[start : start + most]
    return whole[start : start + most], value


class TrainingBatches(IterableDataset[Batch]):
    """Batches without end, from a step on."""

    def __init__(self, dataset: Dataset, recipe: FinetuneRecipe, batch_size: int) -> None:
        self.dataset = dataset
        self.recipe = recipe
        self.batch_size = batch_size
        self.numbers = np.array(dataset.of("train"))
        self.lengths = np.array([min(len(each), recipe.max_length) for each in dataset.inputs])
        self.start_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every training example comes once."""
        return -(-len(self.numbers) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        step = self.start_step
        epoch, order = -1, list[NDArray[np.int64]]()
        while True:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            yield self._batch(order[step % self.steps_per_epoch], step)
            step += 1

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng((self.recipe.seed, 1, epoch))
        shuffled, pool = rng.permutation(self.numbers), POOL * self.batch_size
        batches: list[NDArray[np.int64]] = []
        for at in range(0, len(shuffled), pool):
            part = shuffled[at : at + pool]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _batch(self, numbers: NDArray[np.int64], step: int) -> Batch:
        rng = np.random.default_rng((self.recipe.seed, 2, step))
        recipe, dataset = self.recipe, self.dataset
        inputs, values = [], []
        for i in numbers.tolist():
            spare = len(dataset.inputs[i]) - recipe.max_length
            start = int(rng.integers(spare + 1)) if spare > 0 else None
            each, value = stretch(dataset, i, recipe.max_length, start)
            each, value = self._other_strand(each, value, rng)
            inputs.append(self._masked(self._mutated(each, rng), rng))
            values.append(value)
        return collate(dataset, numbers.tolist(), inputs, values)

    def _other_strand(self, codes: Inputs, value: Any, rng: np.random.Generator) -> tuple[Inputs, Any]:
        if self.recipe.strand == "forward" or rng.random() < 0.5:
            return codes, value
        alphabet = self.dataset.reader.alphabet
        assert alphabet is not None
        if self.dataset.targets.task.startswith("token-"):
            value = value[::-1].copy()
        return get_alphabet(alphabet).reverse_complement(codes), value  # type: ignore[arg-type]

    def _mutated(self, codes: Inputs, rng: np.random.Generator) -> Inputs:
        most = self.recipe.mutation_fraction
        if not most or codes.ndim == 2:
            return codes
        alphabet = self.dataset.reader.alphabet
        size = self.dataset.reader.vocab_size or 1
        letters = size if alphabet is None else get_alphabet(alphabet).unknown_code  # the unknown comes last
        changed = codes.copy()
        where = rng.random(len(codes)) < rng.uniform(0, most)
        changed[where] = rng.integers(0, letters, int(where.sum()))
        return changed

    def _masked(self, codes: Inputs, rng: np.random.Generator) -> Inputs:
        most, alphabet = self.recipe.mask_fraction, self.dataset.reader.alphabet
        if not most:
            return codes
        hidden = codes.copy()
        where = rng.random(len(codes)) < rng.uniform(0, most)
        hidden[where] = get_alphabet(alphabet).unknown_code if alphabet is not None else 0
        return hidden


class EvaluationBatches(IterableDataset[Batch]):
    """The examples of given numbers once, longest first."""

    def __init__(self, dataset: Dataset, numbers: Sequence[int], batch_size: int, max_length: int) -> None:
        self.dataset = dataset
        self.numbers = sorted(numbers, key=lambda i: -len(dataset.inputs[i]))
        self.batch_size = batch_size
        self.max_length = max_length

    def __iter__(self) -> Iterator[Batch]:
        for at in range(0, len(self.numbers), self.batch_size):
            numbers = self.numbers[at : at + self.batch_size]
            pairs = [stretch(self.dataset, i, self.max_length) for i in numbers]
            yield collate(self.dataset, numbers, [x for x, _ in pairs], [v for _, v in pairs])


class FinetuneData(L.LightningDataModule):
    """Training and validation batches."""

    def __init__(self, dataset: Dataset, recipe: FinetuneRecipe, batch_size: int) -> None:
        super().__init__()
        self.training = TrainingBatches(dataset, recipe, batch_size)
        self.validation = EvaluationBatches(dataset, dataset.of("validation"), 2 * batch_size, recipe.max_length)
        self.start_step = 0

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches from `start_step` on."""
        self.training.start_step = self.start_step
        return DataLoader(self.training, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches."""
        return DataLoader(self.validation, batch_size=None)
