"""What a model reads of an example: letters of an alphabet as token ids, integer tokens, or numbers on a scale of
about 1.

An alphabet is recognised by its letters: nearly all of those that a text holds must be bases, or amino acids. A letter
beyond them is then refused by its place, and not made an alphabet of its own.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import DNA, INVALID, PROTEIN, RNA, SYMBOLS_PREFIX, get_alphabet
from mamba_seq.data_prep.errors import BadRecord
from mamba_seq.data_prep.labelled import Example

Inputs = NDArray[np.uint8] | NDArray[np.int64] | NDArray[np.float32]
MOST_OF = 0.9
"""Part of the letters that must be an alphabet's own for a text to be taken as of it."""
BASES, AMINO_ACIDS = set("ACGTUN"), set("ACDEFGHIKLMNPQRSTVWYX")
LEGAL = BASES | set(DNA.ambiguous)
SAMPLE = 2000  # sequences that are looked at to recognise an alphabet


@dataclasses.dataclass(frozen=True)
class Reader:
    """How examples become inputs; one of `vocab_size` and `input_features` is None."""

    alphabet: str | None = None
    vocab_size: int | None = None
    input_features: int | None = None
    input_mean: tuple[float, ...] = ()
    input_scale: tuple[float, ...] = ()

    def encode(self, example: Example) -> Inputs:
        """Return token ids (L,), or standardised numbers (L, F).

        Raises:
            BadRecord: A letter is not of the alphabet, a token beyond the vocabulary, or the numbers are another count;
                with its position, from 1.
        """
        sequence = example.sequence
        if self.input_features is not None:
            return self._numbers(example)
        if self.alphabet is not None:
            if not isinstance(sequence, str):
                raise BadRecord(
                    f"{example.where}: numbers came, letters of the alphabet {self.alphabet!r} were expected"
                )
            codes = get_alphabet(self.alphabet).encode(sequence.encode("utf-8"))
            if INVALID in codes:
                at = int(np.argmax(codes == INVALID))
                shown = sequence[at : at + 1] or "?"
                raise BadRecord(
                    f"{example.where}: {shown!r} at position {at + 1} of {example.id!r} is no letter of the alphabet "
                    f"{self.alphabet!r}; correct it, or, to train, name another alphabet with --alphabet"
                )
            return codes
        tokens = as_tokens(sequence) if isinstance(sequence, str) else sequence
        if tokens is None or tokens.ndim != 1:
            raise BadRecord(f"{example.where}: {str(sequence)[:40]!r} came; whole numbers with spaces were expected")
        assert self.vocab_size is not None
        wrong = (tokens < 0) | (tokens >= self.vocab_size)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise BadRecord(
                f"{example.where}: token {tokens[at]} at position {at + 1} came; 0 to {self.vocab_size - 1} were "
                "expected"
            )
        return tokens.astype(np.int64)

    def _numbers(self, example: Example) -> NDArray[np.float32]:
        sequence: object = example.sequence
        if isinstance(sequence, str):
            sequence = as_numbers(sequence, example.where)
        values = np.asarray(sequence, dtype=np.float32)
        values = values if values.ndim == 2 else values[:, None]
        if values.shape[1] != self.input_features:
            raise BadRecord(
                f"{example.where}: {values.shape[1]} numbers a position came, {self.input_features} were expected"
            )
        mean, scale = np.array(self.input_mean), np.array(self.input_scale)
        return ((values - mean) / scale).astype(np.float32)


def choose_reader(examples: Sequence[Example], asked: str | None = None) -> Reader:
    """Return how examples are read.

    Args:
        examples: those that training may see: numbers are standardised by them.
        asked: "dna", "rna", "protein", "symbols", "tokens" or "numbers"; None looks at the examples.
    """
    first = examples[0].sequence
    if not isinstance(first, str) and first.dtype.kind in "iu":
        below = any(int(np.min(e.sequence, initial=0)) < 0 for e in examples if not isinstance(e.sequence, str))
        if below or asked == "numbers":  # a token is never negative, a reading may be
            return numeric_reader([np.asarray(e.sequence)[:, None] for e in examples])
        return Reader(vocab_size=1 + max(int(np.max(e.sequence, initial=0)) for e in examples))
    texts = [e.sequence for e in examples if isinstance(e.sequence, str)]
    if (
        texts
        and asked in (None, "tokens", "numbers")
        and all(re.fullmatch(r"[-+\d.eE\s]+", text) for text in texts[:SAMPLE])
    ):
        tokens = [as_tokens(text) for text in texts] if asked != "numbers" else [None]
        if all(each is not None and (not each.size or each.min() >= 0) for each in tokens):
            return Reader(vocab_size=1 + max(int(np.max(each, initial=0)) for each in tokens if each is not None))
        values = [as_numbers(e.sequence, e.where) for e in examples if isinstance(e.sequence, str)]
        return numeric_reader([each[:, None] for each in values])
    if not texts:
        return numeric_reader([np.asarray(e.sequence) for e in examples])
    if asked in ("tokens", "numbers"):
        raise BadRecord(f"{examples[0].where}: {texts[0][:30]!r} came; {asked} with spaces between them were expected")
    name = recognise(texts) if asked is None else asked
    if name == "symbols":
        symbols = "".join(sorted(set().union(*texts)))
        wrong = next((symbol for symbol in symbols if not "!" <= symbol <= "~"), None)
        if wrong is not None:
            where, text = next((e.where, str(e.sequence)) for e in examples if wrong in e.sequence)
            raise BadRecord(
                f"{where}: {wrong!r} at position {text.index(wrong) + 1} came; printable ASCII symbols were expected: "
                "give other symbols as integer tokens with spaces between them"
            )
        name = SYMBOLS_PREFIX + symbols
    return Reader(alphabet=name, vocab_size=get_alphabet(name).size)


def recognise(texts: Sequence[str]) -> str:
    """Return which alphabet texts are of: "dna", "rna", "protein" or "symbols"."""
    counts: Counter[str] = Counter()
    for text in texts[:SAMPLE]:
        counts.update(text.upper().removesuffix("*"))  # a protein ends in its stop where programs write it
    total = sum(counts.values())
    bases = sum(counts[c] for c in BASES)
    if bases >= MOST_OF * total or (set(counts) <= LEGAL and bases >= total / 2):
        return RNA.name if counts["U"] > counts["T"] else DNA.name
    if sum(counts[c] for c in AMINO_ACIDS) >= 0.97 * total and len(counts) >= 12:
        return PROTEIN.name
    return "symbols"


def numeric_reader(values: Sequence[NDArray[np.generic]]) -> Reader:
    """Return a reader that brings each of F numbers to mean 0 and standard deviation 1 over all positions."""
    together = np.concatenate([each.reshape(len(each), -1) for each in values]).astype(np.float64)
    scale = together.std(axis=0)
    scale[scale == 0] = 1.0
    return Reader(
        input_features=together.shape[1],
        input_mean=tuple(together.mean(axis=0).tolist()),
        input_scale=tuple(scale.tolist()),
    )


def as_tokens(text: str) -> NDArray[np.int64] | None:
    """Read integer tokens with spaces between them; None where something else stands."""
    try:
        return np.array([int(each) for each in text.split()], dtype=np.int64)
    except ValueError:
        return None


def as_numbers(text: str, where: str) -> NDArray[np.float32]:
    """Read numbers with spaces between them (L,)."""
    try:
        return np.array([float(each) for each in text.split()], dtype=np.float32)
    except ValueError:
        raise BadRecord(f"{where}: {text[:30]!r} came; numbers with spaces between them were expected") from None
