"""Genomes of several classes by random access: `root/<class>/*.fa.gz`, a folder a class, its name the label.

FASTA files, plain or compressed, are read into memory as one byte a base as long as they are expected to fit, and
shared with forked workers. Larger collections are read from disk through pyfaidx, which needs plain or BGZF files.
"""

import bisect
import hashlib
import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyfaidx
from Bio.bgzf import make_virtual_offset

from mamba_seq.data_prep.alphabet import DNA, INVALID, Codes
from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import BadRecord, NotIndexable, TooFewData, TruncatedFile, UnreadableFile
from mamba_seq.data_prep.sequences import read_sequences

log = logging.getLogger(__name__)

SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".fas")
PACKED_SUFFIXES = ("", ".gz", ".bgz", ".bz2", ".xz", ".zst")
BASES_PER_PACKED_BYTE = 4.5  # to foresee how much a compressed file will hold

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")

Cache = Literal["auto", "memory", "disk"]


@dataclass(frozen=True)
class GenomeRecord:
    """One sequence of one file.

    Args:
        label: Its class.
        file: Its file, relative to the root, with forward slashes.
        name: Its name in the file.
        length: Its number of bases.
    """

    label: str
    file: str
    name: str
    length: int


class Genomes:
    """The records of all classes under a root folder, and any stretch of them as token ids.

    Args:
        root: Folder of class folders.
        cache: "memory" reads all files at once; "disk" opens them with pyfaidx; "auto" takes memory up to `cache_gb`.
        cache_gb: The most gigabytes (1e9 bases) that "auto" reads into memory.
        index_folder: Where pyfaidx keeps its .fai and .gzi files; by default the user's cache folder. Nothing is
            written into the data folder.
        labels: The class folders to read; all by default.

    Raises:
        DataError: The folder is missing or has no class, a class has no file, a file cannot be read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        cache: Cache = "auto",
        cache_gb: float = 2.0,
        index_folder: str | os.PathLike[str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(root)
        files = genome_files(self.root, labels)
        if cache == "auto":
            expected = sum(_expected_bases(path) for paths in files.values() for path in paths)
            cache = "memory" if expected <= cache_gb * 1e9 else "disk"
            log.info("about %.0f million bases in %s: read from %s", expected / 1e6, self.root, cache)
        self.labels = list(files)
        self.cache = cache
        self.records: list[GenomeRecord] = []
        self._place: list[tuple[_Store, int]] = []
        folder = Path(index_folder) if index_folder is not None else _default_index_folder()
        for label, paths in files.items():
            for path in paths:
                store: _Store = _MemoryStore(path) if cache == "memory" else IndexedFasta(path, folder)
                _check_names(path, [name for name, _ in store.lengths])
                for i, (name, length) in enumerate(store.lengths):
                    self.records.append(GenomeRecord(label, path.relative_to(self.root).as_posix(), name, length))
                    self._place.append((store, i))

    def fetch(self, record: int, start: int, end: int) -> Codes:
        """Token ids (end - start,) uint8 of the record with this number in `records`; not to be written to.

        Raises:
            ValueError: The stretch does not lie within the record.
        """
        if not 0 <= start <= end <= self.records[record].length:
            raise ValueError(
                f"bases {start} to {end} were asked of record {self.records[record].name!r}, "
                f"which has {self.records[record].length}"
            )
        store, i = self._place[record]
        return store.fetch(i, start, end)


def genome_files(root: Path, labels: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """The FASTA files of every class under `root`, or of some: labels sorted, files sorted.

    Raises:
        UnreadableFile: No such folder.
        TooFewData: No class folder, none of a label, or one without FASTA files.
    """
    if not root.is_dir():
        raise UnreadableFile(f"{root} is no folder; a folder with one folder of FASTA files a class was expected")
    suffixes = tuple(suffix + packed for suffix in SUFFIXES for packed in PACKED_SUFFIXES)
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if labels is not None:
        names = [folder.name for folder in classes]
        if missing := [label for label in labels if label not in names]:
            raise TooFewData(f"{root} has no class folder {missing[0]!r}; it has {', '.join(names) or 'none'}")
        classes = [folder for folder in classes if folder.name in labels]
    files = {
        folder.name: sorted(path for path in folder.iterdir() if path.name.lower().endswith(suffixes))
        for folder in classes
    }
    if not files:
        raise TooFewData(f"{root} has no class folders; put the FASTA files of each class into a folder of its name")
    for label, paths in files.items():
        if not paths:
            raise TooFewData(
                f"{root / label} has no FASTA files (*.fa, *.fasta, *.fna, perhaps with .gz); add some, or remove "
                "the folder if it is no class"
            )
    return files


class _Store(Protocol):
    @property
    def lengths(self) -> Sequence[tuple[str, int]]: ...

    def fetch(self, record: int, start: int, end: int) -> Codes: ...


class _MemoryStore:
    """All records of a file as arrays."""

    def __init__(self, path: Path) -> None:
        self._codes: list[Codes] = []
        self._names: list[str] = []
        for record in read_sequences(path):
            codes = record.codes()
            if record.invalid is not None:
                raise BadRecord(
                    f"{path}: record {record.name!r} has {record.invalid}, which no DNA code has; "
                    "remove or correct the record"
                )
            self._codes.append(codes)
            self._names.append(record.name)

    @property
    def lengths(self) -> Sequence[tuple[str, int]]:
        return [(name, len(codes)) for name, codes in zip(self._names, self._codes, strict=True)]

    def fetch(self, record: int, start: int, end: int) -> Codes:
        return self._codes[record][start:end]


class IndexedFasta:
    """A plain or BGZF FASTA file, any stretch of which is read from disk by pyfaidx's indexes.

    It is opened once in every process: forked workers must not share a file position. The bytes are read here: pyfaidx
    0.9.2 fails for a stretch that begins where a BGZF block does.

    Args:
        path: The file.
        index_folder: Of its .fai and .gzi files; by default in the user's cache folder.

    Raises:
        DataError: The file cannot be read or indexed.
    """

    def __init__(self, path: str | os.PathLike[str], index_folder: Path | None = None) -> None:
        self._path = Path(path)
        self._index_folder = index_folder if index_folder is not None else _default_index_folder()
        self._open: tuple[int, Any] | None = None
        faidx = self._faidx()
        self._names = list(faidx.index)
        self._index = list(faidx.index.values())
        self._blocks = [(block.ustart, block.cstart) for block in faidx.gzi_index] if faidx._bgzf else []

    @property
    def lengths(self) -> Sequence[tuple[str, int]]:
        """Name and number of letters of every record, in the order of the file."""
        return [(name, entry.rlen) for name, entry in zip(self._names, self._index, strict=True)]

    def letters(self, record: int, start: int, end: int) -> bytes:
        """Letters (end - start,) as they stand in the file, of the record with this number; within it."""
        if start == end:
            return b""
        entry = self._index[record]
        first, last = (entry.offset + base // entry.lenc * entry.lenb + base % entry.lenc for base in (start, end - 1))
        return self._read(first, last + 1 - first).translate(None, b"\r\n")

    def fetch(self, record: int, start: int, end: int) -> Codes:
        """Token ids (end - start,) uint8 of the record with this number; within it.

        Raises:
            BadRecord: Letters that no DNA code has.
        """
        text = self.letters(record, start, end).translate(DNA.table)
        if INVALID in text:
            raise BadRecord(
                f"{self._path}: record {self._names[record]!r} has letters that no DNA code has between {start + 1} "
                f"and {end}; remove or correct the record"
            )
        return np.frombuffer(text, dtype=np.uint8)

    def _read(self, at: int, n: int) -> bytes:
        file = self._faidx().file
        if self._blocks:
            uncompressed, compressed = self._blocks[bisect.bisect_right(self._blocks, (at, math.inf)) - 1]
            file.seek(make_virtual_offset(compressed, at - uncompressed))
        else:
            file.seek(at)
        return file.read(n)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _faidx(self) -> Any:
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), _open_indexed(self._path, self._index_folder))
        return self._open[1]


def _open_indexed(path: Path, index_folder: Path) -> Any:
    """Open a file with pyfaidx, its index kept under a name that changes when the file does."""
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    index_folder.mkdir(parents=True, exist_ok=True)
    with open_input(path) as stream:
        stream.read(1)  # our own message for what is empty or no file at all
    _check_random_access(path)
    names = [index_folder / f"{path.name}.{key}{suffix}" for suffix in (".fai", ".gzi")]
    try:
        if not all(name.exists() for name in names if name.suffix == ".fai" or path.suffix in (".gz", ".bgz")):
            # made apart and moved, because several processes may come here at once
            with tempfile.TemporaryDirectory(dir=index_folder) as folder:
                made = [Path(folder) / name.name for name in names]
                pyfaidx.Faidx(str(path), indexname=str(made[0]), gzi_indexname=str(made[1])).close()
                for old, new in zip(made, names, strict=True):
                    if old.exists():
                        old.replace(new)
        return pyfaidx.Faidx(str(path), indexname=str(names[0]), gzi_indexname=str(names[1]))
    except pyfaidx.FastaIndexingError as error:
        raise NotIndexable(
            f"{path} cannot be indexed: {error}; give all its sequence lines one length (seqkit seq -w 80)"
        ) from error
    except ValueError as error:
        raise NotIndexable(f"{path} cannot be indexed: {error}; give every record a name of its own") from error
    except OSError as error:
        raise TruncatedFile(f"{path} cannot be indexed: {error}; copy or download the file again") from error


def _check_random_access(path: Path) -> None:
    """Pyfaidx goes by the name of a file; see that the content agrees."""
    with path.open("rb") as file:
        head = file.read(18)
    # RFC 1952 and the SAM specification, 4.1: a gzip member whose extra field is BC and 2 bytes long
    is_bgzf = head[:4] == b"\x1f\x8b\x08\x04" and head[12:16] == b"BC\x02\x00"
    is_plain = head[:1] in (b">", b";") or not head.strip()
    named_bgzf = path.name.lower().endswith((".gz", ".bgz"))
    if not is_bgzf and not is_plain and not head.startswith(_COMPRESSED):
        raise NotIndexable(f"{path} is no FASTA file, which is what can be read at random places; convert it to FASTA")
    if not is_bgzf and not is_plain:
        raise NotIndexable(
            f"{path} is compressed, but not with bgzip, so it cannot be read at random places; decompress it, or "
            f"compress it with bgzip instead (gunzip {path.name}; bgzip {path.stem}), or read genomes into memory "
            '(cache: "memory")'
        )
    if is_bgzf != named_bgzf:
        what, expected = ("bgzip data", "should end in .gz") if is_bgzf else ("plain text", "should not end in .gz")
        raise NotIndexable(f"{path} holds {what}, so its name {expected} for reading at random places; rename it")


def _check_names(path: Path, names: list[str]) -> None:
    """Splits name records, so a name must mean one record."""
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise NotIndexable(f"{path} has several records named {repeated[0]!r}; give every record a name of its own")


def _expected_bases(path: Path) -> float:
    packed = not path.name.lower().endswith(SUFFIXES)
    return path.stat().st_size * (BASES_PER_PACKED_BYTE if packed else 1.0)


def _default_index_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mamba_seq" / "fasta_index"
