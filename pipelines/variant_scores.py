"""What a model makes of windows of DNA, one number each: how probable they are, or how probable they make a class.

Scores are averaged over a window and its reverse complement, unless the given strand alone is read.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mamba_seq.calibration import Calibration
from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.heads import LanguageModel, SequenceClassifier
from mamba_seq.pipelines.errors import ScoringError
from mamba_seq.pipelines.evidence import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, score
from mamba_seq.pipelines.likelihood import LikelihoodScorer
from mamba_seq.sashimi import SaShiMi

Scores = NDArray[np.float64]
ClassScore = Literal["log-odds", "probability"]


class WindowScorer(Protocol):
    """Scores windows."""

    what: str
    """What a score is, in words."""
    decimals: int
    """Of a score that is written."""
    batch_tokens: int
    """Bases that go through the model at once."""

    def scores(self, windows: Sequence[Codes]) -> Scores:
        """Return the scores (n,) of windows of codes, none of them empty."""


class LikelihoodScores:
    """ln of the probability of a window under a language model: the sum over its bases; N has none.

    Args:
        model: of DNA.
        device: where it is.
        both_strands: average over a window and its reverse complement.
        batch_tokens: bases that go through the model at once; by default chosen by device.
    """

    what = "ln of the probability of the window"
    decimals = 4

    def __init__(
        self, model: LanguageModel, device: torch.device, both_strands: bool, batch_tokens: int | None = None
    ) -> None:
        self._scorer = LikelihoodScorer(model, device, batch_tokens)
        self._both_strands = both_strands
        # the levels of a U-Net know no boundaries between packed windows
        self._packs = not isinstance(model.backbone, SaShiMi)
        self.batch_tokens = self._scorer.chunk

    def scores(self, windows: Sequence[Codes]) -> Scores:
        """Return the scores (n,) of windows of codes."""
        found = self._of_strand(windows)
        if self._both_strands:
            found = (found + self._of_strand([DNA.reverse_complement(window) for window in windows])) / 2
        return found

    def _of_strand(self, windows: Sequence[Codes]) -> Scores:
        sums: list[float] = []
        waiting: list[Codes] = []

        def together() -> None:
            if waiting:
                sums.extend(_nats(log2) for log2 in self._scorer.many(waiting))
                waiting.clear()

        for window in windows:
            if len(window) > self.batch_tokens or not self._packs:
                together()
                sums.append(sum(_nats(log2) for log2 in self._scorer.chunks([window])))
                continue
            if sum(map(len, waiting)) + len(window) > self.batch_tokens:
                together()
            waiting.append(window)
        together()
        found = np.array(sums)
        if not np.isfinite(found).all():
            raise ScoringError(
                "the model gave a score that is not a number: its weights are damaged, or their values leave the range "
                "of this precision; try --device cpu, and another -m"
            )
        return found


class ClassScores:
    """How probable a classifier finds one class in a window.

    Args:
        model: of DNA.
        device: where it is.
        label: number of the class.
        score: "log-odds", ln of its probability over that of all others, or "probability".
        both_strands: average the log-probabilities over a window and its reverse complement.
        batch_tokens: bases that go through the model at once; by default chosen by device.
        calibration: makes probabilities of the model's scores; log-odds are of the model's own.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        device: torch.device,
        label: int,
        score: ClassScore,
        both_strands: bool,
        batch_tokens: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        name = model.config.labels[label]
        self.what = f"probability of {name}" if score == "probability" else f"ln of the odds of {name}"
        self.decimals = 6 if score == "probability" else 4
        self.batch_tokens = batch_tokens or (GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS)
        self._model = model
        self._device = device
        self._label = label
        self._score = score
        self._both_strands = both_strands
        self._calibration = calibration

    def scores(self, windows: Sequence[Codes]) -> Scores:
        """Return the scores (n,) of windows of codes."""
        found = np.empty(len(windows))
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))
        at = 0
        while at < len(order):
            longest = len(windows[order[at]])
            batch = order[at : at + max(1, self.batch_tokens // (2 * longest))]
            given = [windows[i] for i in batch]
            logits = score(self._model, given, self._device, self._both_strands, self.batch_tokens)
            found[batch] = self._of(logits, np.array([float(np.count_nonzero(w < DNA.unknown_code)) for w in given]))
            at += len(batch)
        return found

    def _of(self, log_probabilities: Scores, bases: Scores) -> Scores:
        """Return the score (n,) of the class from log-probabilities (n, labels) of windows with so many bases (n,)."""
        mine = log_probabilities[:, self._label]
        others = np.logaddexp.reduce(np.delete(log_probabilities, self._label, axis=1), axis=1)
        if self._score == "log-odds":
            return mine - others
        probabilities = np.exp(log_probabilities - np.logaddexp(mine, others)[:, None])
        if self._calibration is not None:
            probabilities = self._calibration.apply(probabilities, bases)
        found: Scores = probabilities[:, self._label]
        return found


def _nats(log2: NDArray[np.float32]) -> float:
    return float(np.nansum(log2, dtype=np.float64) * np.log(2))
