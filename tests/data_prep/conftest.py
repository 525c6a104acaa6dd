"""Folders of small genomes for the tests: random sequences of three classes, plain and compressed."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from Bio import bgzf

WriteFasta = Callable[..., Path]


def random_letters(rng: np.random.Generator, length: int) -> str:
    return np.frombuffer(b"ACGT", dtype=np.uint8)[rng.integers(0, 4, length)].tobytes().decode()


@pytest.fixture
def write_fasta() -> WriteFasta:
    """A function that writes records, a dict of name to letters, as FASTA in the form plain, gzip or bgzip."""

    def write(path: Path, records: dict[str, str], form: str = "plain", width: int = 60) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for name, letters in records.items():
            lines.append(f">{name} of a test")
            lines += [letters[i : i + width] for i in range(0, len(letters), width)]
        text = ("\n".join(lines) + "\n").encode()
        if form == "bgzip":
            with bgzf.BgzfWriter(str(path), "wb") as file:
                file.write(text)
        else:
            path.write_bytes(gzip.compress(text) if form == "gzip" else text)
        return path

    return write


@pytest.fixture
def genome_folder(tmp_path: Path, write_fasta: WriteFasta) -> tuple[Path, dict[tuple[str, str], str]]:
    """A root of three classes and four files, and the letters of each (file, record)."""
    rng = np.random.default_rng(0)
    plan = {
        "beta/one.fna.gz": ("bgzip", {"b1": 30_000, "b2": 3_001}),
        "alpha/x.fa": ("plain", {"a1": 20_000}),
        "alpha/y.fasta.gz": ("bgzip", {"a1": 150_000, "a2": 500, "a3": 63}),
        "gamma/z.fna": ("plain", {"c1": 9_000, "c2": 12_049}),
    }
    letters = {}
    for file, (form, lengths) in plan.items():
        records = {name: random_letters(rng, length) for name, length in lengths.items()}
        write_fasta(tmp_path / "genomes" / file, records, form)
        letters.update({(file, name): text for name, text in records.items()})
    return tmp_path / "genomes", letters
