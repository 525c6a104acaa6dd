"""What a model makes of many windows: batches of windows of any record, and the average for each record.

A batch holds windows of similar length from as many records as fit, so that a million short reads and one long
chromosome both fill it. The evidence of a record is the mean, over its windows, of the log-probabilities averaged over
the strands; a window counts by its bases that are not N. Nothing of it depends on which windows shared a batch, beyond
rounding.

A GPU is kept busy by giving it batches ahead of what has been taken back from it: results are awaited a pool of batches
late, so that reading, encoding and rows go on while it computes. Which batches there are depends on the input alone,
never on what happened to be ready, so that the same input gives the same bytes.

Letters: W windows of a batch, R = W x strands rows, L longest window.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.pipelines.calls import Calls
from mamba_seq.pipelines.errors import ScoringError
from mamba_seq.pipelines.runtime import mixed_precision, use

CPU_BATCH_TOKENS = 1 << 14
GPU_BATCH_TOKENS = 1 << 18
# a pool's batches on a GPU with room for them: some 0.1 s of a large one, against some 10 ms that starting them takes
MOST_GPU_BATCH_TOKENS = 1 << 20

# windows that wait are sorted by length before they are cut into batches; more of them pad less and take more memory
POOL_BATCHES = 8
GPU_POOL_BATCHES = 4
# a longer window than a batch has room for goes through the model in pieces of at least this, its state carried along
SHORTEST_PIECE = 8192
# what a window costs at least, in tokens: a pool of one-base reads must not grow to millions of objects
SHORTEST_COST = 64

_Window = tuple["Evidence", Codes, float, int]  # of which record, its codes, its bases and its number there

_UNKNOWN = DNA.unknown_code
_COMPLEMENT = DNA.complement_codes.tobytes()


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

    def add(
        self, log_probabilities: NDArray[np.float64], weighted: NDArray[np.float64], weight: float, number: int
    ) -> None:
        """Take in one window, the number of which its calls know: log-probabilities (labels,), and these by weight."""
        if self.calls is not None:
            self.calls.settle(number, log_probabilities, weight)
        self.log_probabilities = weighted if self.log_probabilities is None else self.log_probabilities + weighted
        self.weight += weight
        self.waiting -= 1

    def probabilities(self) -> NDArray[np.float64] | None:
        """Return the probability of each class (labels,), or None when no window had a base."""
        return probabilities_of([self])[0] if self.weight else None


def probabilities_of(evidence: Sequence[Evidence]) -> NDArray[np.float64]:
    """Return the probabilities (n, labels) of records, each of which had a base; those of `Evidence.probabilities`."""
    if not evidence:
        return np.empty((0, 0))
    sums = np.array([each.log_probabilities for each in evidence])
    mean = sums / np.array([each.weight for each in evidence])[:, None]
    unnormalised = np.exp(mean - mean.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = unnormalised / unnormalised.sum(axis=1, keepdims=True)
    return shares


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
        self.batch_tokens = default_batch_tokens(model, device) if batch_tokens is None else batch_tokens
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
        on_gpu = device.type == "cuda"
        self._most_cost = (GPU_POOL_BATCHES if on_gpu else POOL_BATCHES) * self.batch_tokens
        self._most_under_way = GPU_POOL_BATCHES if on_gpu else 0
        self._under_way: collections.deque[tuple[list[_Window], Scores]] = collections.deque()

    def add(self, evidence: Evidence, window: Codes, start: int = 0) -> None:
        """Take a window of codes (L,) of a record; windows of nothing but N say nothing and are left out.

        A window that owns its memory is kept as it is: do not write over it.
        """
        known = float(np.count_nonzero(window < _UNKNOWN))
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
        self._waiting.append((evidence, window if window.base is None else window.copy(), known, number))
        self._cost += max(len(window), SHORTEST_COST) * self._strands
        if self._cost >= self._most_cost:
            self._send()

    def flush(self) -> None:
        """Send all that waits through the model, and take in all that it says."""
        self._send()
        self._take_in(0)

    def _send(self) -> None:
        """Send all that waits to the model; on a GPU, what it says of the last batches is not awaited."""
        waiting, self._waiting, self._cost = self._waiting, [], 0
        waiting.sort(key=lambda item: -len(item[1]))
        start = 0
        while start < len(waiting):
            end = self._end_of_batch(waiting, start)
            batch = waiting[start:end]
            codes = [window for _, window, _, _ in batch]
            scores = send(self._model, codes, self._device, self._both_strands, self.batch_tokens)
            self._under_way.append((batch, scores))
            self._take_in(self._most_under_way)
            start = end

    def _take_in(self, most: int) -> None:
        """Wait for batches, the earliest first, until at most so many are under way."""
        while len(self._under_way) > most:
            batch, scores = self._under_way.popleft()
            rows = scores.result()
            weighted = rows * np.array([known for _, _, known, _ in batch])[:, None]
            for (evidence, window, known, number), row, product in zip(batch, rows, weighted, strict=True):
                evidence.add(row, product, known, number)
                self.bases += len(window)
            self.windows += len(batch)
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


def default_batch_tokens(model: nn.Module, device: torch.device) -> int:
    """Return how many tokens go through a model at once: what a GPU has ample memory for, or what fits a CPU's cache.

    A token of a forward pass takes some 16 bytes a channel of the scan; a batch may take an eighth of the memory.
    """
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    channels = getattr(getattr(getattr(model, "config", None), "backbone", None), "d_inner", 2048)
    room = torch.cuda.get_device_properties(device).total_memory // 8
    tokens = MOST_GPU_BATCH_TOKENS
    while tokens > SHORTEST_PIECE and tokens * 16 * channels > room:
        tokens //= 2
    return tokens


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
    return send(model, windows, device, both_strands, batch_tokens).result()


def send(
    model: nn.Module, windows: Sequence[Codes], device: torch.device, both_strands: bool, batch_tokens: int
) -> "Scores":
    """Do the same without waiting for a GPU: the result is to be asked for."""
    equivariant = is_equivariant(model)
    # the model makes the other strands, but where a window goes through in pieces: those begin at its end
    piece = max(SHORTEST_PIECE, batch_tokens // (len(windows) * (2 if both_strands or equivariant else 1)))
    pooling = equivariant and max(map(len, windows)) > piece
    with torch.inference_mode(), use(device), mixed_precision(device):
        # the narrow type travels, the wide one is made where it is used
        inputs, mask = _batch(windows, device)
        if pooling or (both_strands and not equivariant):
            inputs = torch.cat([inputs, _other_strands(inputs, mask)])
            mask = None if mask is None else torch.cat([mask, mask])
        read = _pooled_in_pieces if pooling else _in_pieces
        return Scores(read(model, inputs, mask, piece).float(), len(windows))


class Scores:
    """What a model says of a batch of windows, perhaps still on its way from a GPU.

    Args:
        logits: (W x strands, labels), the windows of one strand after those of the other.
        windows: W.
    """

    def __init__(self, logits: Tensor, windows: int) -> None:
        self._windows = windows
        self._logits = logits
        self._arrived: torch.cuda.Event | None = None
        if logits.is_cuda:
            self._logits = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            self._logits.copy_(logits, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def result(self) -> NDArray[np.float64]:
        """Wait for it and return log-probabilities (W, labels), averaged over the strands.

        Raises:
            ScoringError: when the model gave NaN or infinity.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        logits = self._logits.double()
        if not torch.isfinite(logits).all():
            raise ScoringError(
                "the model gave a score that is not a number: its weights are damaged, or their values leave the range "
                "of this precision; try --device cpu, and another -m"
            )
        log_probabilities = torch.log_softmax(logits, dim=-1).numpy()
        return log_probabilities.reshape(-1, self._windows, log_probabilities.shape[-1]).mean(axis=0)


def is_equivariant(model: nn.Module) -> bool:
    """Say whether a model reads both strands of what it is given by itself (`ModelConfig.complement`)."""
    return bool(getattr(getattr(model, "config", None), "complement", None))


def _batch(windows: Sequence[Codes], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return windows as tokens (W, L) uint8 on the device, N behind short ones, and their mask (W, L) if any is."""
    on_gpu = device.type == "cuda"
    lengths = [len(window) for window in windows]
    longest = max(lengths)
    tokens = torch.empty((len(windows), longest), dtype=torch.uint8, pin_memory=on_gpu)
    grid = tokens.numpy()
    if min(lengths) == longest:
        np.concatenate(windows, out=grid.reshape(-1))
        return tokens.to(device, non_blocking=True), None
    grid.fill(_UNKNOWN)
    grid[np.arange(longest) < np.array(lengths)[:, None]] = np.concatenate(windows)
    counts = torch.tensor(lengths, pin_memory=on_gpu).to(device, non_blocking=True)
    return tokens.to(device, non_blocking=True), torch.arange(longest, device=device) < counts[:, None]


def _other_strands(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the reverse complements (W, L) of tokens (W, L) uint8, padding staying behind them."""
    if mask is None:
        reverse = tokens.flip(1)
    else:
        at = mask.sum(dim=1, keepdim=True) - 1 - torch.arange(tokens.shape[1], device=tokens.device)
        reverse = tokens.gather(1, at.clamp_(min=0)).masked_fill_(~mask, _UNKNOWN)
    if tokens.is_cuda:
        other = reverse.clone()
        for code in range(DNA.size):
            other.masked_fill_(reverse == code, _COMPLEMENT[code])
        return other
    # ten times as fast as torch's operators are on a core
    return torch.frombuffer(bytearray(reverse.numpy()).translate(_COMPLEMENT), dtype=torch.uint8).view(reverse.shape)


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
