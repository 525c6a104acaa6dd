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
        case_sensitive: A letter and its capital are two symbols.
    """

    name: str
    symbols: str
    unknown: str
    ambiguous: str = ""
    synonyms: tuple[tuple[str, str], ...] = ()
    complement: str = ""
    case_sensitive: bool = False

    def encode(self, text: bytes | str) -> Codes:
        """Token ids (L,) of letters (L,), ignoring case unless it matters; INVALID (255) where a letter is not of the
        alphabet.
        """
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

    @cached_property
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
            for case in (letter,) if self.case_sensitive else (letter.upper(), letter.lower()):
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
RNA: Final = Alphabet(
    name="rna",
    symbols="ACGUN",
    unknown="N",
    ambiguous="RYKMSWBDHV-.",
    synonyms=(("T", "U"),),
    complement="UGCAN",
)
PROTEIN: Final = Alphabet(name="protein", symbols="ACDEFGHIKLMNPQRSTVWYX", unknown="X", ambiguous="BZJUO*-.")
ALPHABETS: Final = {alphabet.name: alphabet for alphabet in (DNA, RNA, PROTEIN)}
SYMBOLS_PREFIX: Final = "symbols:"
_SUBSTITUTE: Final = "\x1a"


def get_alphabet(name: str) -> Alphabet:
    """The alphabet that a saved model's config names; "symbols:" and its symbols make one.

    Raises:
        ValueError: No alphabet has this name.
    """
    if name.startswith(SYMBOLS_PREFIX):
        return symbols_alphabet(name.removeprefix(SYMBOLS_PREFIX))
    try:
        return ALPHABETS[name]
    except KeyError:
        raise ValueError(f"unknown alphabet {name!r}; known alphabets: {', '.join(sorted(ALPHABETS))}") from None


def symbols_alphabet(symbols: str) -> Alphabet:
    """The alphabet of any printable ASCII symbols, case included; the last token id is left for unknown ones.

    Raises:
        ValueError: There is none, one comes twice, or one is no printable ASCII.
    """
    wrong = next((symbol for symbol in symbols if not "!" <= symbol <= "~"), None)
    if not symbols or wrong is not None or len(set(symbols)) != len(symbols):
        problem = f"{wrong!r} among them" if wrong is not None else "none, or one twice"
        raise ValueError(f"symbols {symbols!r} came, {problem}; different printable ASCII symbols were expected")
    name = SYMBOLS_PREFIX + symbols
    return Alphabet(name=name, symbols=symbols + _SUBSTITUTE, unknown=_SUBSTITUTE, case_sensitive=True)


def encode(text: bytes | str) -> Codes:
    """DNA token ids (L,): A 0, C 1, G 2, T and U 3, N, IUPAC codes and gaps 4, anything else INVALID (255)."""
    return DNA.encode(text)


def decode(codes: Codes) -> str:
    """Letters of DNA token ids (L,)."""
    return DNA.decode(codes)


def reverse_complement(codes: Codes) -> Codes:
    """The other strand of DNA token ids (..., L)."""
    return DNA.reverse_complement(codes)
