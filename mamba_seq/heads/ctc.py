"""Connectionist temporal classification (Graves et al. 2006): a text for a longer sequence, without an alignment.

Shapes: B batch, L length, T longest text, S packed sequences.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mamba_seq.ctc import beam_search, best_path
from mamba_seq.heads.losses import IGNORED, check_targets
from mamba_seq.heads.tokens import TokenModel
from mamba_seq.padding import at_least_float32, check_layout, first_position, lengths_of, shift_left


class CTCModel(TokenModel):
    """Logits (B, L, 1 + labels) of the blank, which is output 0, and of the config's labels, in order, after it.

    A text is a list of indices into the config's labels: label i is output i + 1.
    """

    task = "ctc"

    @property
    def n_outputs(self) -> int:
        """Number of outputs at every position: the blank and the labels."""
        return 1 + len(self.config.labels)

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        ignore_index: int = IGNORED,
        zero_infinity: bool = False,
    ) -> Tensor:
        """Return the mean over texts of -log P(text) / its length, for each the sum over all its alignments.

        Args:
            logits: (B, L, 1 + labels), or (1, L, 1 + labels) when packed.
            targets: texts (B, T), or (S, T) when packed, int64: indices of labels, then `ignore_index` to the end.
            mask: bool (B, L), that of the input, padded left or right.
            cu_seqlens: boundaries (S+1,) that the input was packed with.
            ignore_index: fills up the shorter texts; negative.
            zero_infinity: a text that does not fit into its sequence (it needs as many positions as it has labels, and
                one more between two that are the same) counts 0, with no gradient, instead of infinity.

        On a GPU torch's gradient of it is not deterministic.

        Raises:
            ValueError: for a shape that does not fit, or an index that no label has.
        """
        check_layout(logits, mask, cu_seqlens)
        rows = len(logits) if cu_seqlens is None else len(cu_seqlens) - 1
        if targets.ndim != 2 or len(targets) != rows:
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}, expected ({rows}, T): a text for each sequence"
            )
        check_targets("targets", targets, targets.shape, floating=False)
        self._check_texts(targets, ignore_index)
        log_probabilities = F.log_softmax(at_least_float32(logits), dim=-1)
        if cu_seqlens is not None:
            lengths = cu_seqlens.diff().long()
            log_probabilities = pad_sequence(log_probabilities[0].split(lengths_of(cu_seqlens)))  # (L, S, 1 + labels)
        else:
            lengths = lengths_in(log_probabilities, mask)
            if mask is not None:
                log_probabilities = shift_left(log_probabilities, first_position(mask))
            log_probabilities = log_probabilities.transpose(0, 1)
        known = targets != ignore_index
        texts = (targets + 1).masked_fill(~known, 0)
        return F.ctc_loss(log_probabilities, texts, lengths, known.sum(dim=1), zero_infinity=zero_infinity)

    def decode(
        self, logits: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, beam_width: int = 1
    ) -> list[list[int]]:
        """Return the text of each sequence, as indices into the config's labels.

        Args:
            logits: (B, L, 1 + labels), or (1, L, 1 + labels) when packed.
            mask: bool (B, L), that of the input.
            cu_seqlens: boundaries (S+1,) that the input was packed with.
            beam_width: 1 takes the best output at every position; more keep as many texts in a prefix beam search,
                which adds up the alignments of each (`mamba_seq.ctc`).

        Raises:
            ValueError: for a mask or boundaries that do not fit, or a beam_width below 1.
        """
        check_layout(logits, mask, cu_seqlens)
        if beam_width < 1:
            raise ValueError(f"beam_width is {beam_width}, expected at least 1")
        log_probabilities = F.log_softmax(at_least_float32(logits.detach()), dim=-1).cpu()
        if cu_seqlens is not None:
            rows = list(log_probabilities[0].split(lengths_of(cu_seqlens)))
        elif mask is not None:
            rows = [row[kept] for row, kept in zip(log_probabilities, mask.cpu(), strict=True)]
        else:
            rows = list(log_probabilities)
        return [best_path(row) if beam_width == 1 else beam_search(row, beam_width)[0].text for row in rows]

    def _check_texts(self, targets: Tensor, ignore_index: int) -> None:
        if ignore_index >= 0:
            raise ValueError(f"ignore_index is {ignore_index}, expected a negative number: 0 is the first label")
        known = targets != ignore_index
        wrong = known & ((targets < 0) | (targets >= len(self.config.labels)))
        if bool(wrong.any()):  # torch's loss would read beyond its tables; it waits for the device as well
            found = int(targets[wrong][0])
            raise ValueError(f"targets holds {found}, expected the index of one of {len(self.config.labels)} labels")
        if bool((known[:, 1:] & ~known[:, :-1]).any()):
            raise ValueError(f"targets has {ignore_index} inside a text, expected it only after the end")


def lengths_in(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the number of real positions in each row of x (B, L, ...), (B,) int64."""
    return x.new_full((len(x),), x.shape[1]).long() if mask is None else mask.sum(dim=1)
