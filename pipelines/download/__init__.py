"""Genomes from NCBI, in the layout that training takes: a folder of FASTA files for each class.

FOLDER/<class>/<accession>_<name>_genomic.fna.gz
FOLDER/sources.tsv      what was fetched from where: class, accession, file, md5, bytes, url
FOLDER/splits.tsv       which chromosome is for what, where the list holds some out; `data.splits_file` takes it
"""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_seq.data_prep.genomes import PACKED_SUFFIXES, SUFFIXES
from mamba_seq.data_prep.splits import Interval, Split, Splits
from mamba_seq.pipelines.download.lists import Assembly, read_list
from mamba_seq.pipelines.download.ncbi import BASE_URL, AssemblyFiles, chromosomes, find_files
from mamba_seq.pipelines.download.transfer import (
    DownloadError,
    check_space,
    fetch,
    md5_of,
    part_of,
    size_of,
)
from mamba_seq.pipelines.errors import OutputError
from mamba_seq.pipelines.output import open_output

__all__ = ["BASE_URL", "SOURCES", "SPLITS", "Assembly", "DownloadError", "download", "read_list"]

log = logging.getLogger(__name__)

SOURCES = "sources.tsv"
SPLITS = "splits.tsv"
_REPORTS = ".reports"

Show = Callable[[str, float | None], None]


@dataclass(frozen=True)
class _Job:
    """An assembly, its files on the server and here, and how many bytes the sequences have."""

    assembly: Assembly
    files: AssemblyFiles
    target: Path
    bytes: int | None
    ready: bool


def download(
    assemblies: Sequence[Assembly], folder: Path, base_url: str = BASE_URL, show: Show = lambda text, done: None
) -> None:
    """Fetch assemblies into class folders; those that are there with the right checksum stay as they are.

    Args:
        assemblies: of a download list.
        folder: made where it is missing.
        base_url: of NCBI's genomes/all, or of a mirror.
        show: told in words what is going on, and which part of all bytes is there.

    Raises:
        DownloadError: a file cannot be had, has another checksum, or a chromosome that is to be held out is not there.
        OutputError: there is no room, or no permission.
    """
    try:
        for assembly in assemblies:
            (folder / assembly.label).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from error
    jobs = []
    for assembly in assemblies:
        show(f"looking for {assembly.accession}", None)
        jobs.append(_job(assembly, folder, base_url))
    splits = _splits(jobs, folder) if any(a.test or a.validation for a in assemblies) else None
    _warn_of_others(jobs)
    _fetch_all(jobs, folder, show)
    _write(folder / SOURCES, _sources(jobs))
    if splits is not None:
        _write(folder / SPLITS, splits.to_tsv())


def _job(assembly: Assembly, folder: Path, base_url: str) -> _Job:
    files = find_files(assembly, base_url)
    target = folder / assembly.label / files.fasta.name
    ready = target.is_file() and md5_of(target) == files.fasta.md5
    if target.is_file() and not ready:
        log.warning("%s has another checksum than the server's file and is fetched anew", target)
    return _Job(assembly, files, target, target.stat().st_size if ready else size_of(files.fasta.url), ready)


def _fetch_all(jobs: list[_Job], folder: Path, show: Show) -> None:
    missing = [job for job in jobs if not job.ready]
    there = [_there(job) for job in jobs]
    total = sum(job.bytes for job in jobs if job.bytes is not None) if all(job.bytes for job in jobs) else None
    needed = sum(max(0, (job.bytes or 0) - _there(job)) for job in missing)
    check_space(folder, needed)
    log.info("%d of %d assemblies to fetch, %.2f GB", len(missing), len(jobs), needed / 1e9)
    for number, job in enumerate(jobs):
        if job.ready:
            continue

        def told(done: int, number: int = number, job: _Job = job) -> None:
            there[number] = done
            all_bytes = sum(there)
            of = "" if total is None else f" of {total / 1e9:.2f}"
            part = None if total is None else min(1.0, all_bytes / total)
            show(f"{job.assembly.label} {job.assembly.accession}, {all_bytes / 1e9:.2f}{of} GB", part)

        size = fetch(job.files.fasta.url, job.target, job.files.fasta.md5, told)
        log.info("%s: %s bytes, checksum right", job.target, f"{size:,}")


def _there(job: _Job) -> int:
    if job.ready:
        return job.target.stat().st_size
    part = part_of(job.target)
    return part.stat().st_size if part.exists() else 0


def _splits(jobs: list[_Job], folder: Path) -> Splits:
    """Whole chromosomes by the names that the list gives; what is no chromosome is in no split."""
    intervals = []
    for job in jobs:
        found = chromosomes(_report(job, folder), job.assembly)
        held_out: dict[str, Split] = dict.fromkeys(job.assembly.test, "test")
        held_out.update((name, "validation") for name in job.assembly.validation)
        names = [chromosome.molecule for chromosome in found]
        if missing := [name for name in held_out if name not in names]:
            raise DownloadError(
                f"{job.assembly.accession} has no chromosome {missing[0]!r} to hold out; it has "
                f"{', '.join(names) or 'none'}; correct the list"
            )
        file = job.target.relative_to(folder).as_posix()
        intervals += [
            Interval(job.assembly.label, file, c.record, 0, c.length, held_out.get(c.molecule, "train")) for c in found
        ]
    return Splits(tuple(sorted(intervals)))


def _report(job: _Job, folder: Path) -> str:
    remote = job.files.report
    kept = folder / _REPORTS
    kept.mkdir(exist_ok=True)
    target = kept / remote.name
    if not (target.is_file() and md5_of(target) == remote.md5):
        fetch(remote.url, target, remote.md5)
    return target.read_text(encoding="utf-8", errors="replace")


def _warn_of_others(jobs: list[_Job]) -> None:
    """Training reads every FASTA file of a class folder."""
    suffixes = tuple(suffix + packed for suffix in SUFFIXES for packed in PACKED_SUFFIXES)
    expected = {job.target for job in jobs}
    for place in sorted({job.target.parent for job in jobs}):
        for path in sorted(place.iterdir()):
            if path not in expected and path.name.lower().endswith(suffixes):
                log.warning("%s is not of this download list, and training would read it too", path)


def _sources(jobs: list[_Job]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(["class", "accession", "file", "md5", "bytes", "url"])
    for job in jobs:
        row: list[Any] = [job.assembly.label, job.assembly.accession, f"{job.assembly.label}/{job.target.name}"]
        writer.writerow([*row, job.files.fasta.md5, job.target.stat().st_size, job.files.fasta.url])
    return out.getvalue()


def _write(path: Path, text: str) -> None:
    with open_output(str(path)) as out:
        out.write(text.encode())
