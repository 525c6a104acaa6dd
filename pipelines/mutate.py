"""What variants change: the score of the bases around each with it, less the score without it.

Every base of a region is put in place of the reference's (in-silico saturation mutagenesis), or the variants of a VCF
file are, each after a look whether the reference says what the file says. Windows of many variants go through the
model together, so memory depends on neither.
"""

import dataclasses
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

from mamba_seq.data_prep.alphabet import Codes
from mamba_seq.data_prep.errors import BadRecord
from mamba_seq.data_prep.variants import BASES, Reference, Region, Site, Windows
from mamba_seq.data_prep.vcf import VcfFile, VcfLine, kind_of, no_variants
from mamba_seq.pipelines.rows import MISSING
from mamba_seq.pipelines.variant_scores import WindowScorer

Item = TypeVar("Item")
OnMismatch = Literal["error", "skip"]

POOL_BATCHES = 8
SITE_COST = 64
"""Tokens that a site counts for at least: skipped ones must not wait by the million."""
NAN = float("nan")
MOST_SHOWN = 20
"""Letters of an allele in a message."""


class Effect(NamedTuple):
    """What one alternative changes."""

    record: str
    position: int
    """1 for the first base of the record."""
    ref: str
    alt: str
    status: str
    """ok; or why there is no score: symbolic, overlapping (`*`), missing (`.`), ambiguous (N and the like), too_long
    (for the context), and, where they are skipped, mismatch, outside, unknown_record."""
    before: float
    after: float

    @property
    def delta(self) -> float:
        """The score with the alternative less that of the reference."""
        return self.after - self.before


@dataclasses.dataclass
class Summary:
    """What a run did."""

    sites: int = 0
    statuses: Counter[str] = dataclasses.field(default_factory=Counter)
    done: float | None = None
    """Part of the input, 0 to 1; None when nobody knows how much there is."""

    def __str__(self) -> str:
        alternatives = sum(self.statuses.values())
        shares = ", ".join(f"{n:,} {status}" for status, n in self.statuses.most_common())
        return f"{alternatives:,} alternatives at {self.sites:,} places: {shares or 'none'}"


class Mutator:
    """Scores variants of a reference.

    Args:
        reference: with the context that the model is to see.
        scorer: of windows.
        longest: most bases that the model can read at once; None for any.
        on_progress: called after every lot with the summary so far, always the same object.
    """

    def __init__(
        self,
        reference: Reference,
        scorer: WindowScorer,
        longest: int | None = None,
        on_progress: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        self.summary = Summary()
        self._reference = reference
        self._scorer = scorer
        self._longest = longest
        self._on_progress = on_progress

    def region(self, region: Region) -> Iterator[list[Effect]]:
        """Yield for every base of a region what the three others change; a letter that is no base has none."""
        name = self._reference.names[region.record]

        def items() -> Iterator[tuple[Site, Site, float]]:
            for n, site in enumerate(self._reference.substitutions(region), 1):
                yield site, site, n / (region.end - region.start)

        for site, before, after in self._scored(items()):
            effects = [
                Effect(name, site.start + 1, site.ref, str(alt), "ok", before, score)
                for alt, score in zip(site.alts, after, strict=True)
            ]
            yield self._counted(effects or [Effect(name, site.start + 1, site.ref, MISSING, "ambiguous", NAN, NAN)])

    def variants(self, vcf: VcfFile, on_mismatch: OnMismatch = "error") -> Iterator[tuple[VcfLine, list[Effect]]]:
        """Yield every line of a VCF file with what each of its alternatives changes.

        Args:
            vcf: the file, sorted or not.
            on_mismatch: whether a line whose record, place or REF is not that of the reference is an error.

        Raises:
            DataError: for such a line; for a file that holds no line, or one that is none of VCF.
        """
        size = _size(vcf.name)

        def items() -> Iterator[tuple[tuple[VcfLine, list[str]], Site, float | None]]:
            for line in vcf.lines():
                site, statuses = self._site(vcf, line, on_mismatch)
                yield (line, statuses), site, None if size is None else min(1.0, vcf.read / size)

        for (line, statuses), before, after in self._scored(items()):
            yield (
                line,
                self._counted(
                    [
                        Effect(
                            line.record, line.position, line.ref, alt, status, NAN if status != "ok" else before, score
                        )
                        for alt, status, score in zip(line.alts, statuses, after, strict=True)
                    ]
                ),
            )
        if not self.summary.sites:
            raise no_variants(vcf.name)

    def _site(self, vcf: VcfFile, line: VcfLine, on_mismatch: OnMismatch) -> tuple[Site, list[str]]:
        """Return the site of a line, and the status of each alternative."""
        record, start = self._reference.find(line.record), line.position - 1
        problem, status = None, "ok"
        if record is None:
            problem, status = str(self._reference.unknown(line.record)), "unknown_record"
        elif not 0 <= start <= start + len(line.ref) <= self._reference.lengths[record]:
            length = self._reference.lengths[record]
            problem = f"POS is {line.position} and REF {_shown(line.ref)!r}, and {line.record} has {length:,} bases"
            status = "outside"
        elif not self._reference.agrees(record, start, line.ref):
            here = self._reference.letters(record, start, start + len(line.ref))
            problem = (
                f"REF is {_shown(line.ref)!r}, and at {line.record}:{line.position} {self._reference.name} has "
                f"{_shown(here)!r}"
            )
            status = "mismatch"
        if problem is not None and on_mismatch == "error":
            raise BadRecord(
                f"{vcf.where(line.number)}: {problem}; give the FASTA file that the variants were called on, or leave "
                "such lines out with --on-mismatch skip"
            )
        statuses = [status if status != "ok" else self._status(line.ref, alt) for alt in line.alts]
        alts = [alt.upper() if each == "ok" else None for alt, each in zip(line.alts, statuses, strict=True)]
        return Site(record or 0, max(0, start), line.ref, tuple(alts)), statuses

    def _status(self, ref: str, alt: str) -> str:
        kind = kind_of(alt)
        if kind != "bases":
            return kind
        if not set(BASES).issuperset(ref + alt.upper()):
            return "ambiguous"
        context, longest = self._reference.context, max(len(ref), len(alt))
        read = max(0, context - len(ref)) // 2 * 2 + longest
        return "too_long" if longest > context or (self._longest is not None and read > self._longest) else "ok"

    def _scored(self, items: Iterable[tuple[Item, Site, float | None]]) -> Iterator[tuple[Item, float, list[float]]]:
        """Yield each item with the score of its site's reference and those of the alternatives, NaN for None."""
        waiting: list[tuple[Item, Windows | None, int]] = []
        cost, done = 0, None
        for item, site, done in items:
            windows = self._reference.windows(site) if any(alt is not None for alt in site.alts) else None
            waiting.append((item, windows, len(site.alts)))
            cost += max(SITE_COST, 0 if windows is None else sum(map(len, _read(windows))))
            if cost >= POOL_BATCHES * self._scorer.batch_tokens:
                yield from self._lot(waiting, done)
                waiting, cost = [], 0
        yield from self._lot(waiting, done)

    def _lot(
        self, waiting: list[tuple[Item, Windows | None, int]], done: float | None
    ) -> Iterator[tuple[Item, float, list[float]]]:
        given = [codes for _, windows, _ in waiting if windows is not None for codes in _read(windows)]
        scores = iter(self._scorer.scores(given).tolist() if given else ())
        for item, windows, count in waiting:
            if windows is None:
                yield item, NAN, [NAN] * count
                continue
            before = next(scores)
            yield item, before, [NAN if each is None else next(scores) for each in windows.alternatives]
        self.summary.done = done
        self._on_progress(self.summary)

    def _counted(self, effects: list[Effect]) -> list[Effect]:
        self.summary.sites += 1
        self.summary.statuses.update(effect.status for effect in effects)
        return effects


def _read(windows: Windows) -> list[Codes]:
    return [windows.reference, *(each for each in windows.alternatives if each is not None)]


def _shown(letters: str) -> str:
    return letters if len(letters) <= MOST_SHOWN else letters[:MOST_SHOWN] + "..."


def _size(name: str) -> int | None:
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_size else None
