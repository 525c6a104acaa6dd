"""How often a model is right: windows of known class, read and averaged exactly as classify does.

    evaluate_windows   predictions for windows -> confusion matrix
    wilson             accuracy -> interval
    evaluate_genomes   folders of genomes -> a result for each length

Windows are drawn at random, so at long lengths they overlap, and a hundred of them may hold what five hold. Intervals
therefore take no more windows as independent than fit side by side into the data.

Letters: R rows, L longest window, W windows.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mamba_seq.data_prep.alphabet import Codes
from mamba_seq.data_prep.errors import DataError, TooFewData, UnreadableFile
from mamba_seq.data_prep.genome_windows import evaluation_windows
from mamba_seq.data_prep.genomes import Genomes
from mamba_seq.data_prep.splits import Interval, Splits
from mamba_seq.data_prep.windows import MAX_WINDOWS, windows_of
from mamba_seq.pipelines.evidence import Evidence, WindowPool

log = logging.getLogger("mamba_seq.pipelines")

LENGTHS = (1000, 10000, 100000)
"""Bases of the windows, unless told otherwise."""
Z_95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a sequence is read; the same meanings as in `mamba_seq.pipelines.classify.Options`."""

    context: int
    stride: int | None = None
    max_windows: int = MAX_WINDOWS
    both_strands: bool = True
    batch_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions of windows of known class."""

    confusion: NDArray[np.int64]
    """Counts (labels, labels): truth down, prediction across."""

    @property
    def windows(self) -> int:
        """Number of windows W."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of windows predicted right."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Part of the windows predicted right; NaN without windows."""
        return self.correct / self.windows if self.windows else math.nan

    def interval(self, independent: int | None = None) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy, taking at most `independent` windows as independent."""
        return wilson(self.accuracy, self.windows if independent is None else min(independent, self.windows))


def evaluate_windows(
    model: nn.Module,
    windows: Iterable[tuple[Codes, int]],
    context: int,
    *,
    device: torch.device | None = None,
    stride: int | None = None,
    max_windows: int = MAX_WINDOWS,
    both_strands: bool = True,
    batch_tokens: int | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Predict windows and count what became of each class.

    Args:
        model: tokens (R, L), mask (R, L) -> logits (R, labels).
        windows: codes (L,) and the number of the true class of each; longer ones than `context` are read in windows of
            it, as classify does.
        context: bases that the model sees at once.
        device: where the model is; None asks its parameters.
        stride: as for classify.
        max_windows: as for classify.
        both_strands: as for classify.
        batch_tokens: as for classify.
        on_batch: called after every batch.

    Raises:
        DataError: for a window without a base.
    """
    probabilities, truth = predict_windows(
        model,
        windows,
        Reading(
            context=context,
            stride=stride,
            max_windows=max_windows,
            both_strands=both_strands,
            batch_tokens=batch_tokens,
        ),
        device=device,
        on_batch=on_batch,
    )
    return Evaluation(confusion_matrix(truth, probabilities.argmax(axis=1), probabilities.shape[1]))


def predict_windows(
    model: nn.Module,
    windows: Iterable[tuple[Codes, int]],
    reading: Reading,
    *,
    device: torch.device | None = None,
    on_batch: Callable[[], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the probabilities (W, labels) of windows and their true classes (W,); see `evaluate_windows`."""
    pool = WindowPool(
        model,
        device=device if device is not None else next(model.parameters()).device,
        batch_tokens=reading.batch_tokens,
        both_strands=reading.both_strands,
        on_batch=on_batch,
    )
    evidence: list[Evidence] = []
    truth: list[int] = []
    for codes, label in windows:
        evidence.append(Evidence())
        truth.append(label)
        for window in windows_of([codes], reading.context, reading.stride, reading.max_windows):
            pool.add(evidence[-1], window.codes)
    pool.flush()
    rows = []
    for number, each in enumerate(evidence):
        probabilities = each.probabilities()
        if probabilities is None:
            raise DataError(f"window {number} of the evaluation holds nothing but N; take windows with fewer of them")
        rows.append(probabilities)
    if not rows:
        raise DataError("there is no window to evaluate")
    return np.stack(rows), np.array(truth, dtype=np.int64)


def confusion_matrix(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count windows by true class (down) and predicted class (across): (W,) and (W,) to (labels, labels)."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def wilson(proportion: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion seen in n trials (E. B. Wilson, JASA 22, 1927).

    Without trials it is all of 0 to 1.
    """
    if n <= 0:
        return 0.0, 1.0
    centre = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclasses.dataclass(frozen=True)
class LengthResult:
    """What a model reaches on windows of one length."""

    length: int
    """Bases of a window."""
    evaluation: Evaluation
    """What was predicted."""
    disjoint: tuple[int, ...]
    """For each class, how many windows fit side by side into the data (labels,); 0 for a class without data."""

    def independent(self, label: int | None = None) -> int:
        """Return the most windows, of one class or of all, that can be independent of each other."""
        drawn = self.evaluation.confusion.sum(axis=1).tolist()
        each = [min(n, fits) for n, fits in zip(drawn, self.disjoint, strict=True)]
        return sum(each) if label is None else each[label]


def evaluate_genomes(
    model: nn.Module,
    labels: Sequence[str],
    genomes: Genomes,
    lengths: Sequence[int],
    reading: Reading,
    intervals: Sequence[Interval],
    *,
    per_class: int = 100,
    seed: int = 0,
    device: torch.device | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Iterator[LengthResult]:
    """Yield the result for each length.

    Args:
        model: tokens (R, L), mask (R, L) -> logits (R, labels).
        labels: the class names in the order of the model's outputs.
        genomes: folders named after classes of the model.
        lengths: bases of the windows.
        reading: how each window is read.
        intervals: the stretches to draw windows from.
        per_class: windows of each class.
        seed: chooses the windows.
        device: where the model is; None asks its parameters.
        on_batch: called after every batch.

    Raises:
        DataError: for a folder that is no class of the model.
        TooFewData: for a length that some class has no stretch for.
    """
    unknown = [label for label in genomes.labels if label not in labels]
    if unknown:
        raise DataError(
            f"{genomes.root} has the class folder {unknown[0]!r}, which the model does not know; it knows "
            f"{', '.join(labels)}. Rename or remove the folder"
        )
    number = [labels.index(label) for label in genomes.labels]
    for length in lengths:
        chosen = evaluation_windows(genomes, intervals, length, per_class, seed)
        windows = ((codes, number[label]) for codes, label in (chosen[i] for i in range(len(chosen))))
        probabilities, truth = predict_windows(model, windows, reading, device=device, on_batch=on_batch)
        confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(labels))
        yield LengthResult(length, Evaluation(confusion), tuple(chosen.disjoint.get(label, 0) for label in labels))


def read_genomes(
    root: str, splits: str | None = None, lengths: Sequence[int] | None = None
) -> tuple[Genomes, list[Interval], list[int]]:
    """Read the genomes to evaluate on, the stretches to draw windows from, and the lengths that these have room for.

    Args:
        root: a folder with a folder of FASTA files for each class.
        splits: a run's table of regions, of which the test regions are taken; None takes all of every record.
        lengths: bases of the windows; None takes those of `LENGTHS` that every class has.

    Raises:
        DataError: when something cannot be read, or no length fits.
    """
    genomes = Genomes(root)
    if splits is None:
        intervals = [Interval(r.label, r.file, r.name, 0, r.length, "test") for r in genomes.records if r.length]
    else:
        try:
            table = Splits.from_tsv(Path(splits).read_text(encoding="utf-8"), splits)
        except OSError as error:
            raise UnreadableFile(f"{splits} cannot be read as a table of splits: {error.strerror}") from error
        table.check_against(genomes.records)
        intervals = table.of("test")
    if lengths is not None:
        return genomes, intervals, list(lengths)
    longest = dict.fromkeys(genomes.labels, 0)
    for interval in intervals:
        longest[interval.label] = max(longest[interval.label], interval.length)
    short = min(longest, key=longest.__getitem__)
    fit = [length for length in LENGTHS if length <= longest[short]]
    if len(fit) < len(LENGTHS):
        log.warning("class %r has no stretch longer than %d bases; longer windows are left out", short, longest[short])
    if not fit:
        raise TooFewData(
            f"class {short!r} has no stretch of {LENGTHS[0]} bases, its longest has {longest[short]}; "
            "give shorter windows with --lengths"
        )
    return genomes, intervals, fit
