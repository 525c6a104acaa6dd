"""What a model makes of many windows: batches of windows of any record, and the average for each record.

A batch holds windows of similar length from as many records as fit, so that a million short reads and one long
chromosome both fill it. The evidence of a record is the mean, over its windows, of the log-probabilities averaged over
the strands; a window counts by its bases that are not N. Nothing of it depends on which windows shared a batch, beyond
rounding.

Letters: W windows of a batch, R = W x strands rows, L longest window.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.pipelines.calls import Calls
from mamba_seq.pipelines.errors import ScoringError
from mamba_seq.pipelines.runtime import mixed_precision

CPU_BATCH_TOKENS = 1 << 14
GPU_BATCH_TOKENS = 1 << 18

# windows that wait are sorted by length before they are cut into batches; more of them pad less and take more memory
POOL_BATCHES = 8
# a longer window than a batch has room for goes through the model in pieces of at least this, its state carried along
SHORTEST_PIECE = 8192
# what a window costs at least, in tokens: a pool of one-base reads must not grow to millions of objects
SHORTEST_COST = 64

_Window = tuple["Evidence", Codes, float, int]  # of which record, its codes, its bases and its number there


class Evidence:
    """What is known about one record so far.

    Args:
        calls: takes what the model says of every single window; None when nobody asks.
    """

    __slots__ = ("calls", "log_probabilities", "waiting", "weight", "windows")

    def __init__(self, calls: Calls | None = None) -> None:
        self.calls = calls
        self.log_probabilities: NDArray[np.float64] | None = None
        """Weighted sum over the windows (labels,)."""
        self.weight = 0.0
        """Number of bases behind it that are not N."""
        self.waiting = 0
        """Windows that the model has not seen yet."""
        self.windows = 0
        """Windows that it has seen or will see."""

    def add(self, log_probabilities: NDArray[np.float64], weight: float, number: int) -> None:
        """Take in one window, the number of which its calls know."""
        if self.calls is not None:
            self.calls.settle(number, log_probabilities, weight)
        weighted = log_probabilities * weight
        self.log_probabilities = weighted if self.log_probabilities is None else self.log_probabilities + weighted
        self.weight += weight
        self.waiting -= 1

    def probabilities(self) -> NDArray[np.float64] | None:
        """Return the probability of each class (labels,), or None when no window had a base."""
        if self.log_probabilities is None:
            return None
        mean = self.log_probabilities / self.weight
        unnormalised = np.exp(mean - mean.max())
        return unnormalised / unnormalised.sum()


class WindowPool:
    """Windows on their way through a model.

    Args:
        model: tokens (R, L) and mask (R, L) to logits (R, labels).
        device: where the model is.
        batch_tokens: most tokens in one call of the model, padding and both strands counted; see `score`.
        both_strands: average over each window and its reverse complement; an equivariant model does so by itself.
        on_batch: called after every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        batch_tokens: int | None = None,
        both_strands: bool = True,
        on_batch: Callable[[], None] | None = None,
    ) -> None:
        default = GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
        self.batch_tokens = default if batch_tokens is None else batch_tokens
        self.windows = 0
        """Windows that went through the model, each counted once for both strands."""
        self.added = 0
        """Windows that went or will go through it."""
        self.bases = 0
        """Their bases, N included."""
        self._model = model
        self._device = device
        self._both_strands = both_strands
        self._strands = 2 if both_strands or is_equivariant(model) else 1
        self._on_batch = on_batch
        self._waiting: list[_Window] = []
        self._cost = 0

    def add(self, evidence: Evidence, window: Codes, start: int = 0) -> None:
        """Take a window of codes (L,) of a record; windows of nothing but N say nothing and are left out."""
        known = float(np.count_nonzero(window < DNA.unknown_code))
        calls, number = evidence.calls, 0
        if calls is not None:
            number = calls.reserve(start, start + len(window))
        if not known:
            return
        if calls is not None:
            calls.wait()
        evidence.waiting += 1
        evidence.windows += 1
        self.added += 1
        # a copy: a window may be a view that keeps a whole record alive
        self._waiting.append((evidence, window.copy(), known, number))
        self._cost += max(len(window), SHORTEST_COST) * self._strands
        if self._cost >= POOL_BATCHES * self.batch_tokens:
            self.flush()

    def flush(self) -> None:
        """Send all that waits through the model."""
        waiting, self._waiting, self._cost = self._waiting, [], 0
        waiting.sort(key=lambda item: -len(item[1]))
        start = 0
        while start < len(waiting):
            end = self._end_of_batch(waiting, start)
            batch = waiting[start:end]
            codes = [window for _, window, _, _ in batch]
            scores = score(self._model, codes, self._device, self._both_strands, self.batch_tokens)
            for (evidence, window, known, number), row in zip(batch, scores, strict=True):
                evidence.add(row, known, number)
                self.windows += 1
                self.bases += len(window)
            start = end
            if self._on_batch is not None:
                self._on_batch()

    def _end_of_batch(self, waiting: "list[_Window]", start: int) -> int:
        """Return where the batch that begins at `start` ends; lengths fall from there on."""
        longest = len(waiting[start][1])
        most = max(1, self.batch_tokens // (max(longest, SHORTEST_COST) * self._strands))
        end = min(len(waiting), start + most)
        # a window of less than half the length would be more padding than sequence
        while len(waiting[end - 1][1]) * 2 < longest:
            end -= 1
        return end


def score(
    model: nn.Module,
    windows: Sequence[Codes],
    device: torch.device,
    both_strands: bool = True,
    batch_tokens: int = CPU_BATCH_TOKENS,
) -> NDArray[np.float64]:
    """Return log-probabilities (W, labels) of windows of codes, averaged over the strands.

    Args:
        model: tokens (R, L) and mask (R, L) to logits (R, labels); also with a state, for windows longer than a piece.
        windows: codes (L,) of each.
        device: where the model is.
        both_strands: average over each window and its reverse complement; an equivariant model does so by itself.
        batch_tokens: most tokens in one call of the model, as long as a piece of a row is not below SHORTEST_PIECE.

    Raises:
        ScoringError: when the model gives NaN or infinity.
    """
    strands = list(windows)
    equivariant = is_equivariant(model)
    # the model makes the other strands, but where a window goes through in pieces: those begin at its end
    piece = max(SHORTEST_PIECE, batch_tokens // (len(windows) * (2 if both_strands or equivariant else 1)))
    pooling = equivariant and max(map(len, windows)) > piece
    if pooling or (both_strands and not equivariant):
        strands += [DNA.reverse_complement(window) for window in windows]
    lengths = np.array([len(strand) for strand in strands])
    longest = int(lengths.max())
    tokens = np.full((len(strands), longest), DNA.unknown_code, dtype=np.uint8)
    for row, strand in zip(tokens, strands, strict=True):
        row[: len(strand)] = strand
    real = np.arange(longest) < lengths[:, None]

    with torch.inference_mode(), mixed_precision(device):
        # the narrow type travels, the wide one is made where it is used
        inputs = torch.from_numpy(tokens).to(device)
        mask = None if real.all() else torch.from_numpy(real).to(device)
        read = _pooled_in_pieces if pooling else _in_pieces
        logits = read(model, inputs, mask, piece).float().cpu().double()
    if not torch.isfinite(logits).all():
        raise ScoringError(
            "the model gave a score that is not a number: its weights are damaged, or their values leave the range of "
            "this precision; try --device cpu, and another -m"
        )
    log_probabilities = torch.log_softmax(logits, dim=-1).numpy()
    return log_probabilities.reshape(-1, len(windows), log_probabilities.shape[-1]).mean(axis=0)


def is_equivariant(model: nn.Module) -> bool:
    """Say whether a model reads both strands of what it is given by itself (`ModelConfig.complement`)."""
    return bool(getattr(getattr(model, "config", None), "complement", None))


def _in_pieces(model: nn.Module, tokens: Tensor, mask: Tensor | None, piece: int) -> Tensor:
    """Return the logits (R, labels) of tokens (R, L) uint8, read in pieces so that memory does not grow with L."""
    if tokens.shape[1] <= piece:
        return model(tokens.long(), mask=mask)
    logits, state = None, None
    for start in range(0, tokens.shape[1], piece):
        real = None if mask is None else mask[:, start : start + piece]
        logits, state = model(tokens[:, start : start + piece].long(), mask=real, state=state, return_state=True)
    assert logits is not None
    return logits


def _pooled_in_pieces(model: Any, tokens: Tensor, mask: Tensor | None, piece: int) -> Tensor:
    """Do the same (W, labels) for an equivariant model, the rows being the windows and then their other strands."""
    state = None
    for start in range(0, tokens.shape[1], piece):
        real = None if mask is None else mask[:, start : start + piece]
        how = model.config.pooling
        pooled, state = model.pool(tokens[:, start : start + piece].long(), how, real, state, return_state=True)
    return model.outputs(pooled)
