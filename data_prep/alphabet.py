"""Alphabets: which letters a sequence may hold and which token id each becomes.

A saved model names its alphabet in its config, so the ids of an alphabet in ALPHABETS never change.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]

INVALID: Final = 255


@dataclass(frozen=True)
class Alphabet:
    """Letters and their token ids: the id of a letter is its place in `symbols`.

    Args:
        name: What a saved model's config calls it.
        symbols: One letter a token, in the order of the ids.
        unknown: The symbol that stands for a letter that is legal but says nothing certain.
        ambiguous: Legal letters that read as `unknown`.
        synonyms: Pairs of a letter and the symbol that it reads as.
        complement: The complement of each symbol, in the order of `symbols`; empty where there is none.
    """

    name: str
    symbols: str
    unknown: str
    ambiguous: str = ""
    synonyms: tuple[tuple[str, str], ...] = ()
    complement: str = ""

    def encode(self, text: bytes | str) -> Codes:
        """Token ids (L,) of letters (L,), ignoring case; INVALID (255) where a letter is not of the alphabet."""
        raw = text.encode("latin-1", "replace") if isinstance(text, str) else text
        return np.frombuffer(raw.translate(self.table), dtype=np.uint8)

    def decode(self, codes: Codes) -> str:
        """Letters of token ids (L,); an id that the alphabet lacks becomes `?`."""
        return np.ascontiguousarray(codes, dtype=np.uint8).tobytes().translate(self._letters).decode("ascii")

    def reverse_complement(self, codes: Codes) -> Codes:
        """The other strand of token ids (..., L), read in its own direction: complemented and reversed along L.

        Raises:
            ValueError: The alphabet has no complement.
        """
        return self.complement_codes[codes[..., ::-1]]

    @property
    def size(self) -> int:
        """Number of token ids."""
        return len(self.symbols)

    @property
    def unknown_code(self) -> int:
        """The token id of `unknown`."""
        return self.symbols.index(self.unknown)

    @cached_property
    def table(self) -> bytes:
        """256 bytes for bytes.translate: letter to token id, INVALID for every other byte."""
        table = bytearray([INVALID]) * 256
        pairs = [
            *((letter, letter) for letter in self.symbols),
            *((letter, self.unknown) for letter in self.ambiguous),
            *self.synonyms,
        ]
        for letter, symbol in pairs:
            for case in (letter.upper(), letter.lower()):
                table[ord(case)] = self.symbols.index(symbol)
        return bytes(table)

    @cached_property
    def complement_codes(self) -> Codes:
        """Token id of each token id's complement, 256 long so that INVALID stays INVALID."""
        if not self.complement:
            raise ValueError(f"alphabet {self.name!r} has no complement, so there is no other strand to read")
        codes = np.full(256, INVALID, dtype=np.uint8)
        codes[: self.size] = [self.symbols.index(symbol) for symbol in self.complement]
        return codes

    @cached_property
    def _letters(self) -> bytes:
        return self.symbols.encode("ascii").ljust(256, b"?")


DNA: Final = Alphabet(
    name="dna",
    symbols="ACGTN",
    unknown="N",
    ambiguous="RYKMSWBDHV-.",
    synonyms=(("U", "T"),),
    complement="TGCAN",
)
ALPHABETS: Final = {alphabet.name: alphabet for alphabet in (DNA,)}


def get_alphabet(name: str) -> Alphabet:
    """The alphabet that a saved model's config names.

    Raises:
        ValueError: No alphabet has this name.
    """
    try:
        return ALPHABETS[name]
    except KeyError:
        raise ValueError(f"unknown alphabet {name!r}; known alphabets: {', '.join(sorted(ALPHABETS))}") from None


def encode(text: bytes | str) -> Codes:
    """DNA token ids (L,): A 0, C 1, G 2, T and U 3, N, IUPAC codes and gaps 4, anything else INVALID (255)."""
    return DNA.encode(text)


def decode(codes: Codes) -> str:
    """Letters of DNA token ids (L,)."""
    return DNA.decode(codes)


def reverse_complement(codes: Codes) -> Codes:
    """The other strand of DNA token ids (..., L)."""
    return DNA.reverse_complement(codes)
