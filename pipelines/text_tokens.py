"""From text to the tokens of a language model and back: a tokenizer.json, or the letters of a model's alphabet."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.alphabet import INVALID, get_alphabet
from mamba_seq.data_prep.errors import DataError
from mamba_seq.errors import ModelError
from mamba_seq.pipelines.errors import PipelineError
from mamba_seq.saving import CONFIG_FILE

TOKENIZER_FILE = "tokenizer.json"
LONGEST_CHARACTER = 8
"""Tokens that a character is made of at most; four bytes are the longest in UTF-8."""


class TextTokens(Protocol):
    """Text to tokens and back."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt."""

    def following(self, before: list[int], new: list[int]) -> str:
        """Return the text of new tokens behind some others; it ends in "\\ufffd" where a character is not whole."""


def text_tokens(folder: Path, config: ModelConfig) -> TextTokens:
    """Return what turns text into the tokens of the model in a folder.

    Args:
        folder: of a saved model, ours or of transformers.
        config: of the model.

    Raises:
        ModelError: when the folder says neither by a tokenizer.json nor by its alphabet, or that does not fit.
        PipelineError: when tokenizers is not installed.
    """
    if (folder / TOKENIZER_FILE).is_file():
        return _Tokenizer(folder / TOKENIZER_FILE, config.vocab_size or 0)
    if config.alphabet is not None:
        return _Letters(config.alphabet)
    raise ModelError(
        f"{folder} has no {TOKENIZER_FILE}, and its config names no alphabet: nothing says which text its tokens are. "
        f"Put the {TOKENIZER_FILE} of the model beside its weights"
    )


def end_tokens(folder: Path) -> set[int]:
    """Return the tokens that end a text, as transformers' generation_config.json or config.json names them."""
    for name in ("generation_config.json", CONFIG_FILE):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{path} cannot be read as a JSON object: {error}") from error
        ends = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ends):
            raise ModelError(f"{path}: eos_token_id is {found!r}, expected a number, several, or null")
        if ends:
            return set(ends)
    return set()


class _Tokenizer:
    """A tokenizer.json, through tokenizers."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise PipelineError(
                "text needs the package tokenizers, which is not installed: pip install 'mamba-seq[text]'"
            ) from error
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises the plain class
            raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from error
        self._path, self._vocab_size = path, vocab_size

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        odd = [token for token in ids if token >= self._vocab_size]
        if odd:
            raise ModelError(
                f"{self._path} makes token {odd[0]} of the prompt, and the model knows {self._vocab_size}: it is the "
                "tokenizer of another model"
            )
        return ids

    def following(self, before: list[int], new: list[int]) -> str:
        # what stands before decides on a space in front
        start: str = self._tokenizer.decode(before)
        whole: str = self._tokenizer.decode(before + new)
        return whole[len(start) :]


class _Letters:
    """The letters of an alphabet, one a token."""

    def __init__(self, alphabet: str) -> None:
        self._alphabet = get_alphabet(alphabet)

    def encode(self, text: str) -> list[int]:
        codes = self._alphabet.encode(text).tolist()
        if INVALID in codes:
            at = codes.index(INVALID)
            raise DataError(
                f"letter {at + 1} of the prompt is {text[at]!r}, expected one of the model's alphabet "
                f"{self._alphabet.name} ({self._alphabet.symbols})"
            )
        return codes

    def following(self, before: list[int], new: list[int]) -> str:
        return self._alphabet.decode(np.array(new))


class TextStream:
    """The text of tokens that come one after another, each character when it is whole.

    Args:
        tokens: turns them into text.
        prompt: tokens that they follow.
    """

    def __init__(self, tokens: TextTokens, prompt: list[int]) -> None:
        self._tokens = tokens
        self._before = prompt[-LONGEST_CHARACTER:]
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """Return the text that has become certain with one more token."""
        self._new.append(token)
        text = self._tokens.following(self._before, self._new)
        if text.endswith("\ufffd") and len(self._new) < LONGEST_CHARACTER:
            return ""
        if text:  # what shows nothing, as a special token, stands before nothing
            self._before, self._new = self._new, []
        return text

    def end(self) -> str:
        """Return what is left."""
        text = self._tokens.following(self._before, self._new) if self._new else ""
        self._new = []
        return text
