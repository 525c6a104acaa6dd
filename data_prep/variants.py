"""Variants of a reference, and what a model reads to judge one: the bases around it, with and without it.

A window holds the reference's bases of the variant and the same number of bases on either side of it, as many as fit
into the context, fewer where the record ends. With the variant its bases change and those around it stay, so that it is
longer by an insertion and shorter by a deletion.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.errors import BadRecord
from mamba_seq.data_prep.genomes import IndexedFasta

BASES = "ACGT"
# what a VCF has for a letter that stands for several bases: the first of them (VCFv4.3, section 1.6.1, REF)
_REDUCED = str.maketrans("URYKMSWBDHV", "TACGACACAAA")


@dataclass(frozen=True)
class Site:
    """A place of a reference, and what may stand there instead.

    Attributes:
        record: Number of the record.
        start: Of its first base, 0-based.
        ref: Its bases, in capitals.
        alts: Of each alternative its bases, in capitals; None for one that is not to be judged.
    """

    record: int
    start: int
    ref: str
    alts: tuple[str | None, ...]


class Windows(NamedTuple):
    """What a model reads for a site: token ids (n,) uint8 of the reference, and of each alternative, or None."""

    reference: Codes
    alternatives: list[Codes | None]


class Region(NamedTuple):
    """Bases `start` to `end` (0-based, half-open) of the record with this number."""

    record: int
    start: int
    end: int


class Reference:
    """An indexed FASTA file, plain or BGZF, by the names of its records.

    Args:
        path: The file.
        context: Bases of a window.

    Raises:
        DataError: The file cannot be read or indexed.
    """

    def __init__(self, path: str | os.PathLike[str], context: int) -> None:
        self.name = os.fspath(path)
        self.context = context
        self._file = IndexedFasta(path)
        self.names = [name for name, _ in self._file.lengths]
        self.lengths = [length for _, length in self._file.lengths]
        self._numbers = {name: i for i, name in enumerate(self.names)}

    def find(self, name: str) -> int | None:
        """Return the number of a record; "chr1" and "1" are the same where only one of them is there."""
        spellings = (name, name.removeprefix("chr"), f"chr{name}")
        return next((self._numbers[each] for each in spellings if each in self._numbers), None)

    def unknown(self, name: str) -> BadRecord:
        """Return the error for a name that no record has."""
        shown = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        return BadRecord(f"{name!r} is no record of {self.name}, which has {shown}")

    def region(self, text: str) -> Region:
        """Read a region as samtools writes it: NAME:START-END, 1-based and inclusive, or NAME for the whole record.

        Raises:
            BadRecord: There is no such record, or it does not reach so far.
        """
        if text in self._numbers:
            return Region(self._numbers[text], 0, self.lengths[self._numbers[text]])
        name, colon, places = text.rpartition(":")
        first, dash, last = places.replace(",", "").partition("-")
        if not colon or not dash or not first.isdecimal() or not last.isdecimal():
            if ":" in text and self.find(name) is not None:
                raise BadRecord(f"the region {text!r} came, expected NAME:START-END, such as {name}:1-100")
            raise self.unknown(text)
        record = self.find(name)
        if record is None:
            raise self.unknown(name)
        start, end, length = int(first), int(last), self.lengths[record]
        if not 1 <= start <= end <= length:
            raise BadRecord(
                f"the region {text!r} came, and {name!r} has the bases 1 to {length:,}; START may not be behind END"
            )
        return Region(record, start - 1, end)

    def letters(self, record: int, start: int, end: int) -> str:
        """Return the letters of a stretch in capitals; it may reach beyond the record, which has none there."""
        return self._file.letters(record, start, min(end, self.lengths[record])).decode("latin-1").upper()

    def agrees(self, record: int, start: int, ref: str) -> bool:
        """Whether a VCF's REF is what stands there; of a letter for several bases it has the first."""
        here = self.letters(record, start, start + len(ref))
        return ref == here or ref.translate(_REDUCED) == here.translate(_REDUCED)

    def windows(self, site: Site) -> Windows:
        """Return what is to be read for a site."""
        flank = max(0, self.context - len(site.ref)) // 2
        end = site.start + len(site.ref)
        left = self._file.fetch(site.record, max(0, site.start - flank), site.start)
        right = self._file.fetch(site.record, end, min(self.lengths[site.record], end + flank))

        def window(bases: str) -> Codes:
            found: Codes = np.concatenate([left, DNA.encode(bases), right])
            return found

        return Windows(window(site.ref), [None if alt is None else window(alt) for alt in site.alts])

    def substitutions(self, region: Region) -> Iterator[Site]:
        """Yield every base of a region with the three others; letters that are no base have none."""
        for at in range(region.start, region.end):
            ref = self.letters(region.record, at, at + 1).translate(str.maketrans("U", "T"))
            alts = tuple(base for base in BASES if base != ref) if ref in BASES else ()
            yield Site(region.record, at, ref, alts)
