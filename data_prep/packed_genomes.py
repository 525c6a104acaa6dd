"""A FASTA file packed on disk: 2 bits a base, and beside them where its N and its lower-case letters run.

    FOLDER/<first digits of the file's SHA-256>/
        bases.bin      4 bases a byte, the first in the lowest bits; every record begins at a byte of its own
        unknown.npy    (runs, 2) int64: where letters other than A, C, G, T run, in places of bases.bin
        lower.npy      (runs, 2) int64: where lower-case letters run
        index.json     names and lengths of the records, digests of all files

It is made once, found again by the digest of the file that it was made of, and read through memory maps: a genome
takes a quarter of its bases in page cache that processes share, and nothing else. What was damaged on disk is made
again.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import DNA, INVALID, Alphabet, Codes
from mamba_seq.data_prep.errors import BadRecord, NotIndexable, UnreadableFile
from mamba_seq.data_prep.sequences import read_sequences

log = logging.getLogger(__name__)

LOWER = 8
"""Added to the token id of a lower-case letter by `fetch(cased=True)`; `codes % LOWER` are the token ids."""
FORMAT = 1
_FILES = ("bases.bin", "unknown.npy", "lower.npy")
_CHUNK = 1 << 20
_PIECE = 1 << 18
"""Bases that are packed at a time."""

Runs = NDArray[np.int64]
"""(runs, 2): first and last-but-one places, 0-based and half-open, ascending and apart."""

# the four bases of every byte, as the four bytes of an integer in memory order
_UNPACKED = np.stack([np.arange(256) >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).astype(np.uint8)
_UNPACKED_WORDS = np.ascontiguousarray(_UNPACKED).view(np.uint32)[:, 0]


class _CasedDNA(Alphabet):
    """DNA whose lower-case letters have ids of their own, `LOWER` higher."""

    @property
    def table(self) -> bytes:
        """256 bytes: letter to token id."""
        table = bytearray(DNA.table)
        for letter in range(ord("a"), ord("z") + 1):
            if table[letter] != INVALID:
                table[letter] += LOWER
        return bytes(table)


_CASED = _CasedDNA(name="dna-cased", symbols=DNA.symbols, unknown=DNA.unknown)


class PackedFile:
    """The records of one FASTA, FASTQ or GenBank file, and any stretch of them as token ids.

    Attributes:
        names: of the records, in the order of the file.
        lengths: of the records, in letters.
    """

    def __init__(self, folder: Path) -> None:
        described = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.names: list[str] = described["names"]
        self.lengths: list[int] = described["lengths"]
        at = np.cumsum([0, *(-(-length // 4) * 4 for length in self.lengths)])
        self._starts: list[int] = at[:-1].tolist()
        size = int(at[-1]) // 4
        self._bases: Any = np.memmap(folder / "bases.bin", np.uint8, "r", shape=(size,)) if size else np.zeros(0, "u1")
        self._unknown: Runs = np.load(folder / "unknown.npy", mmap_mode="r" if described["unknown"] else None)
        self._lower: Runs = np.load(folder / "lower.npy", mmap_mode="r" if described["lower"] else None)

    def fetch(self, record: int, start: int, end: int, cased: bool = False) -> Codes:
        """Token ids (end - start,) uint8 of a record, as an array of its own.

        Args:
            record: its number.
            start: first base, 0-based.
            end: base after the last.
            cased: add `LOWER` to those of lower-case letters.

        Raises:
            ValueError: the stretch does not lie within the record.
        """
        if not 0 <= start <= end <= self.lengths[record]:
            raise ValueError(
                f"bases {start} to {end} were asked of record {self.names[record]!r}, which has {self.lengths[record]}"
            )
        first = self._starts[record] + start
        last = first + end - start
        words = _UNPACKED_WORDS[self._bases[first // 4 : -(-last // 4)]]
        codes = words.view(np.uint8)[first % 4 : first % 4 + end - start]
        for a, b in _within(self._unknown, first, last):
            codes[a:b] = DNA.unknown_code
        if cased:
            for a, b in _within(self._lower, first, last):
                codes[a:b] += LOWER
        return codes

    def unknown_runs(self, record: int, shortest: int = 1) -> Runs:
        """Where a record has at least `shortest` letters in a row that are no A, C, G or T."""
        first = self._starts[record]
        runs = np.array(list(_within(self._unknown, first, first + self.lengths[record])), dtype=np.int64)
        runs = runs.reshape(-1, 2)
        return runs[runs[:, 1] - runs[:, 0] >= shortest]


def packed_file(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> PackedFile:
    """Open the packed form of a file, which is made if it is not there or not whole.

    Args:
        path: FASTA, FASTQ or GenBank, plain or compressed.
        folder: of all packed files; by default in the user's cache folder.

    Raises:
        DataError: the file cannot be read, has letters that no DNA code has, or two records of one name.
    """
    source, root = Path(path), Path(folder) if folder is not None else default_folder()
    try:
        digest = file_digest(source)
    except OSError as error:
        raise UnreadableFile(f"{source} cannot be read: {error.strerror}; give the path of a FASTA file") from error
    target = root / digest[:24]
    if not _is_whole(target, digest):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".packing.") as made:
            _pack(source, digest, Path(made))
            shutil.rmtree(target, ignore_errors=True)
            try:
                os.rename(made, target)
            except OSError:
                if not _is_whole(target, digest):  # made by another process in the meantime
                    raise
            else:
                os.mkdir(made)  # for the end of the block
    return PackedFile(target)


def default_folder() -> Path:
    """Where packed files are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mamba_seq" / "packed"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(folder: Path, digest: str) -> bool:
    """Tell whether a folder has all that was written, and that is of the file with this digest."""
    try:
        described = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if described["format"] != FORMAT or described["source"] != digest:
            return False
        damaged = [name for name in _FILES if file_digest(folder / name) != described["digests"][name]]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        damaged = ["index.json"]
    if damaged:
        log.warning("%s is damaged (%s): it is made again", folder, damaged[0])
    return not damaged


def _pack(source: Path, digest: str, folder: Path) -> None:
    names: list[str] = []
    lengths: list[int] = []
    unknown, lower = _RunWriter(), _RunWriter()
    at = 0
    with (folder / "bases.bin").open("wb") as file:
        for record in read_sequences(source, alphabet=_CASED):
            length = 0
            for codes in _pieces(record.blocks()):
                _write(file, codes)
                unknown.add(codes % LOWER == DNA.unknown_code, at + length)
                lower.add(codes >= LOWER, at + length)
                length += len(codes)
            if record.invalid is not None:
                raise BadRecord(
                    f"{source}: record {record.name!r} has {record.invalid}, which no DNA code has; "
                    "remove or correct the record"
                )
            names.append(record.name)
            lengths.append(length)
            at += -(-length // 4) * 4
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise NotIndexable(f"{source} has several records named {twice!r}; give every record a name of its own")
    np.save(folder / "unknown.npy", unknown.runs())
    np.save(folder / "lower.npy", lower.runs())
    described = {
        "format": FORMAT,
        "source": digest,
        "names": names,
        "lengths": lengths,
        "unknown": len(unknown.runs()),
        "lower": len(lower.runs()),
        "digests": {name: file_digest(folder / name) for name in _FILES},
    }
    (folder / "index.json").write_text(json.dumps(described), encoding="utf-8")


def _pieces(blocks: Iterator[Codes]) -> Iterator[Codes]:
    """Cut a record anew into pieces of a multiple of 4 bases; the last has what is left."""
    left = np.empty(0, dtype=np.uint8)
    for block in blocks:
        for start in range(0, len(block), _PIECE):
            codes = np.concatenate([left, block[start : start + _PIECE]])
            whole = len(codes) // 4 * 4
            left = codes[whole:]
            if whole:
                yield codes[:whole]
    if len(left):
        yield left


def _write(file: BinaryIO, codes: Codes) -> None:
    bases = codes % LOWER
    bases[bases > 3] = 0
    bases = np.pad(bases, (0, -len(bases) % 4)).reshape(-1, 4)
    file.write((bases[:, 0] | bases[:, 1] << 2 | bases[:, 2] << 4 | bases[:, 3] << 6).tobytes())


class _RunWriter:
    """Gathers runs of true over pieces that follow each other, with gaps between records."""

    def __init__(self) -> None:
        self._starts: list[NDArray[np.int64]] = []
        self._ends: list[NDArray[np.int64]] = []

    def add(self, flags: NDArray[np.bool_], at: int) -> None:
        """Take in flags (n,) of the places from `at` on."""
        edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
        if len(edges):
            self._starts.append(edges[::2] + at)
            self._ends.append(edges[1::2] + at)

    def runs(self) -> Runs:
        """All runs; those that touch are one."""
        if not self._starts:
            return np.empty((0, 2), dtype=np.int64)
        starts, ends = np.concatenate(self._starts), np.concatenate(self._ends)
        apart = starts[1:] > ends[:-1]
        return np.stack([starts[np.r_[True, apart]], ends[np.r_[apart, True]]], axis=1)


def _within(runs: Runs, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Give the runs between two places, counted from the first of them."""
    ends, starts = runs[:, 1], runs[:, 0]
    those = slice(int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(starts, last, side="left")))
    found = np.clip(np.asarray(runs[those]) - first, 0, last - first).tolist()
    yield from map(tuple, found)
