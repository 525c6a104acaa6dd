import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from mamba_seq.data_prep.alphabet import decode
from mamba_seq.data_prep.errors import BadRecord, DataError, NotIndexable, TooFewData, UnreadableFile
from mamba_seq.data_prep.genomes import Genomes

Letters = dict[tuple[str, str], str]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_records_and_stretches_are_those_of_the_files(
    genome_folder: tuple[Path, Letters], tmp_path: Path, cache: Literal["memory", "disk"]
) -> None:
    root, letters = genome_folder
    genomes = Genomes(root, cache, index_folder=tmp_path / "index")
    assert genomes.labels == ["alpha", "beta", "gamma"]
    assert {(r.file, r.name): r.length for r in genomes.records} == {key: len(text) for key, text in letters.items()}
    assert all(record.file.startswith(record.label + "/") for record in genomes.records)
    again = pickle.loads(pickle.dumps(genomes))
    rng = np.random.default_rng(1)
    for i, record in enumerate(genomes.records):
        text = letters[record.file, record.name]
        assert decode(genomes.fetch(i, 0, record.length)) == text
        for _ in range(40):
            start, end = np.sort(rng.integers(0, record.length + 1, 2)).tolist()
            assert decode(genomes.fetch(i, start, end)) == text[start:end]
            assert decode(again.fetch(i, start, end)) == text[start:end]
        with pytest.raises(ValueError, match=f"which has {record.length}"):
            genomes.fetch(i, 5, record.length + 1)


def test_blocks_of_bgzip_that_end_where_a_stretch_begins(tmp_path: Path, write_fasta: Callable[..., Path]) -> None:
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 300_000))
    write_fasta(tmp_path / "g" / "a" / "x.fa.gz", {"r": letters}, "bgzip")
    genomes = Genomes(tmp_path / "g", "disk", index_folder=tmp_path / "index")
    for start in range(64_300, 64_600):  # around 65,536 bytes of lines of 60 and a newline
        assert decode(genomes.fetch(0, start, start + 5)) == letters[start : start + 5]


def test_auto_takes_memory_when_it_is_expected_to_fit(genome_folder: tuple[Path, Letters], tmp_path: Path) -> None:
    root, _ = genome_folder
    assert Genomes(root).cache == "memory"
    assert Genomes(root, cache_gb=1e-5, index_folder=tmp_path / "index").cache == "disk"


def test_nothing_is_written_beside_the_data(
    genome_folder: tuple[Path, Letters], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = genome_folder
    before = sorted(root.rglob("*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Genomes(root, "disk").fetch(0, 0, 10)
    assert sorted(root.rglob("*")) == before
    indexes = sorted(path.suffix for path in (tmp_path / "cache" / "mamba_seq" / "fasta_index").iterdir())
    assert indexes == [".fai"] * 4 + [".gzi"] * 2


def test_an_index_does_not_outlive_its_file(tmp_path: Path, write_fasta: Callable[..., Path]) -> None:
    for letters in ("ACGT" * 100, "GGGGG" * 100):
        write_fasta(tmp_path / "g" / "a" / "x.fa", {"r": letters})
        genomes = Genomes(tmp_path / "g", "disk", index_folder=tmp_path / "index")
        assert decode(genomes.fetch(0, 0, genomes.records[0].length)) == letters


def test_plain_gzip_is_read_into_memory_but_not_from_disk(tmp_path: Path, write_fasta: Callable[..., Path]) -> None:
    write_fasta(tmp_path / "g" / "a" / "x.fa.gz", {"r": "ACGT" * 100}, "gzip")
    assert Genomes(tmp_path / "g", "memory").records[0].length == 400
    with pytest.raises(NotIndexable, match=r"not with bgzip.*gunzip x.fa.gz; bgzip x.fa"):
        Genomes(tmp_path / "g", "disk", index_folder=tmp_path / "index")


@pytest.mark.parametrize(
    ("file", "content", "cache", "error", "message"),
    [
        ("x.fa", ">r\nACGT\nAC\nACGT\n", "disk", NotIndexable, "one length"),
        ("x.fa", ">r\nACGT\n>r\nAC\n", "disk", NotIndexable, "a name of its own"),
        ("x.fa", ">r\nACGT\n>r\nAC\n", "memory", NotIndexable, "several records named 'r'"),
        ("x.fa.gz", ">r\nACGT\n", "disk", NotIndexable, "should not end in .gz"),
        ("x.fa", ">r\nACXT\n", "memory", BadRecord, "'X' at position 3"),
        ("x.fa", "", "memory", DataError, "empty"),
        ("x.fa", "", "disk", DataError, "empty"),
        ("x.txt", ">r\nACGT\n", "memory", TooFewData, "has no FASTA files"),
    ],
)
def test_refusals(
    tmp_path: Path, file: str, content: str, cache: Literal["memory", "disk"], error: type[DataError], message: str
) -> None:
    (tmp_path / "g" / "a").mkdir(parents=True)
    (tmp_path / "g" / "a" / file).write_text(content)
    with pytest.raises(error, match=message):
        Genomes(tmp_path / "g", cache, index_folder=tmp_path / "index")


def test_letters_that_no_code_has_are_found_when_read_from_disk(
    tmp_path: Path, write_fasta: Callable[..., Path]
) -> None:
    write_fasta(tmp_path / "g" / "a" / "x.fa", {"r": "ACXT"})
    genomes = Genomes(tmp_path / "g", "disk", index_folder=tmp_path / "index")
    with pytest.raises(BadRecord, match="between 1 and 4"):
        genomes.fetch(0, 0, 4)


def test_folders_without_classes(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="is no folder"):
        Genomes(tmp_path / "none")
    with pytest.raises(TooFewData, match="no class folders"):
        Genomes(tmp_path)
