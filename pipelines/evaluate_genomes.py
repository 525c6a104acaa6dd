"""How often a model is right, and how often it calls novel what is and what is not, on folders of genomes.

Windows are drawn at random, so at long lengths they overlap, and a hundred of them may hold what five hold. Intervals
therefore take no more windows as independent than fit side by side into the data.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mamba_seq.calibration import Calibration
from mamba_seq.data_prep.errors import DataError, TooFewData, UnreadableFile
from mamba_seq.data_prep.genome_windows import EvaluationWindows, evaluation_windows
from mamba_seq.data_prep.genomes import Genomes
from mamba_seq.data_prep.splits import Interval, Split, Splits
from mamba_seq.pipelines.evaluate import Evaluation, Reading, expected_calibration_error, predict_windows

log = logging.getLogger("mamba_seq.pipelines")

LENGTHS = (1000, 10000, 100000)
"""Bases of the windows, unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class LengthResult:
    """What a model reaches on windows of one length."""

    length: int
    """Bases of a window."""
    evaluation: Evaluation
    """What was predicted."""
    disjoint: tuple[int, ...]
    """For each class, how many windows fit side by side into the data (labels,); 0 for a class without data."""
    ece: float = math.nan
    """Expected calibration error."""
    novel: tuple[int, ...] | None = None
    """For each class, how many windows are called novel (labels,); None when that was not asked."""

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
    calibration: Calibration | None = None,
    novel: float | None = None,
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
        calibration: of the model.
        novel: the rate at which windows are called novel, which needs a calibration.

    Raises:
        DataError: for a folder that is no class of the model.
        TooFewData: for a length that no class has a stretch for; classes that have none are left out, with a warning.
    """
    number = class_numbers(genomes, labels)
    for length in lengths:
        chosen = _windows(genomes, intervals, length, per_class, seed)
        windows = ((codes, number[label]) for codes, label in (chosen[i] for i in range(len(chosen))))
        found = predict_windows(model, windows, reading, device=device, on_batch=on_batch).calibrated(calibration)
        called = None
        if calibration is not None and novel is not None:
            truth = found.truth[found.novel(calibration, novel)]
            called = tuple(np.bincount(truth, minlength=len(labels)).tolist())
        disjoint = tuple(chosen.disjoint.get(label, 0) for label in labels)
        ece = expected_calibration_error(found.probabilities, found.truth)
        yield LengthResult(length, Evaluation(found.confusion()), disjoint, ece, called)


@dataclasses.dataclass(frozen=True)
class UnknownResult:
    """What a model makes of windows of one length of genomes that are of none of its classes."""

    length: int
    """Bases of a window."""
    label: str
    """What the genomes are: the name of their folder."""
    predicted: tuple[int, ...]
    """How many windows get each class (labels,), before any is called novel."""
    novel: int
    """How many are called novel."""
    disjoint: int
    """How many windows fit side by side into the data."""

    @property
    def windows(self) -> int:
        """Number of windows."""
        return sum(self.predicted)


def evaluate_unknown(
    model: nn.Module,
    labels: Sequence[str],
    genomes: Genomes,
    lengths: Sequence[int],
    reading: Reading,
    *,
    calibration: Calibration,
    novel: float,
    per_class: int = 100,
    seed: int = 0,
    device: torch.device | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Iterator[UnknownResult]:
    """Yield, for each length and each folder of genomes of unknown class, how many windows are called novel.

    Args:
        model: tokens (R, L), mask (R, L) -> logits (R, labels).
        labels: the class names in the order of the model's outputs.
        genomes: folders that are named after no class of the model.
        lengths: bases of the windows.
        reading: how each window is read.
        calibration: of the model.
        novel: the rate at which windows are called novel.
        per_class: windows of each folder.
        seed: chooses the windows.
        device: where the model is; None asks its parameters.
        on_batch: called after every batch.

    Raises:
        DataError: for a folder that is a class of the model.
        TooFewData: for a length that no folder has a stretch for; folders that have none are left out, with a warning.
    """
    known = [label for label in genomes.labels if label in labels]
    if known:
        raise DataError(
            f"{genomes.root} has a folder of the model's class {known[0]!r}; genomes of no class of it were expected"
        )
    intervals = whole_records(genomes)
    for length in lengths:
        chosen = _windows(genomes, intervals, length, per_class, seed)
        windows = (chosen[i] for i in range(len(chosen)))
        found = predict_windows(model, windows, reading, device=device, on_batch=on_batch).calibrated(calibration)
        called, best = found.novel(calibration, novel), found.probabilities.argmax(axis=1)
        for number, label in enumerate(genomes.labels):
            if label in chosen.left_out:
                continue
            own = found.truth == number
            predicted = tuple(np.bincount(best[own], minlength=len(labels)).tolist())
            yield UnknownResult(length, label, predicted, int(called[own].sum()), chosen.disjoint.get(label, 0))


def _windows(
    genomes: Genomes, intervals: Sequence[Interval], length: int, per_class: int, seed: int
) -> EvaluationWindows:
    """Draw the windows of one length, and warn of classes that have none."""
    chosen = evaluation_windows(genomes, intervals, length, per_class, seed, may_leave_out=True)
    for label, reason in chosen.left_out.items():
        log.warning("%s bases: class %r is left out: %s", f"{length:,}", label, reason)
    return chosen


def class_numbers(genomes: Genomes, labels: Sequence[str]) -> list[int]:
    """Return the number that each class folder of `genomes` has among the labels of a model.

    Raises:
        DataError: for a folder that is no class of the model.
    """
    unknown = [label for label in genomes.labels if label not in labels]
    if unknown:
        raise DataError(
            f"{genomes.root} has the class folder {unknown[0]!r}, which the model does not know; it knows "
            f"{', '.join(labels)}. Rename or remove the folder"
        )
    return [labels.index(label) for label in genomes.labels]


def whole_records(genomes: Genomes) -> list[Interval]:
    """Return every record that has a base as an interval of its own."""
    return [Interval(r.label, r.file, r.name, 0, r.length, "test") for r in genomes.records if r.length]


def read_genomes(
    root: str, splits: str | None = None, lengths: Sequence[int] | None = None, split: Split = "test"
) -> tuple[Genomes, list[Interval], list[int]]:
    """Read the genomes to evaluate on, the stretches to draw windows from, and the lengths that these have room for.

    Args:
        root: a folder with a folder of FASTA files for each class.
        splits: a run's table of regions, of which those of `split` are taken; None takes all of every record.
        lengths: bases of the windows; None takes those of `LENGTHS` that every class has.
        split: which regions of the table.

    Raises:
        DataError: when something cannot be read, or no length fits.
    """
    genomes = Genomes(root)
    if splits is None:
        intervals = whole_records(genomes)
    else:
        try:
            table = Splits.from_tsv(Path(splits).read_text(encoding="utf-8"), splits)
        except OSError as error:
            raise UnreadableFile(f"{splits} cannot be read as a table of splits: {error.strerror}") from error
        table.check_against(genomes.records)
        intervals = table.of(split)
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
