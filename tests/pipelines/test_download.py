"""Genomes from a server that answers as NCBI's does: whole, resumed, checked, refused; and a training run on them."""

import csv
import email.utils
import errno
import gzip
import importlib.util
import re
import shutil
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mamba_seq import models_zoo
from mamba_seq.data_prep.dna import GenomeData, GenomeDataConfig
from mamba_seq.pipelines.download import BASE_URL, download, lists, read_list, transfer
from mamba_seq.pipelines.errors import RequestError
from mamba_seq.pipelines.train.recipe import read_recipe
from mamba_seq.pipelines.train.run import main as train

GREAT_APES = {a.label: a for a in read_list("great-apes")}
FASTA = "_genomic.fna.gz"


def _server_module() -> Any:
    spec = importlib.util.spec_from_file_location("ncbi_server", Path(__file__).with_name("ncbi_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("ncbi_server", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ncbi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two small assemblies on a server, which the environment names."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    module = _server_module()
    site = module.Ncbi()
    site.add("GCF_000000001.1", "one_v1", "Mus unus", {"1": "NC_000001.1", "2": "NC_000002.1"})
    site.add("GCA_000000002.3", "two_v1.0_pri", "Mus duo", {"1": "NC_000011.1", "2": "NC_000012.1"})
    with module.serving(site):
        monkeypatch.setenv("MAMBA_SEQ_NCBI_URL", site.url)
        yield site


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(transfer, "pause", waited.append)
    return waited


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.tsv"
    path.write_text("unus\tGCF_000000001.1\nduo\tGCA_000000002.3\n")
    return path


def first(tmp_path: Path) -> Path:
    path = tmp_path / "one.tsv"
    path.write_text("unus\tGCF_000000001.1\n")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def gets(ncbi: Any) -> list[str]:
    """The ranges that were asked for of sequences."""
    return [asked for method, path, asked in ncbi.asked if method == "GET" and path.endswith(FASTA)]


def test_a_list_becomes_folders_that_training_reads(run: Any, ncbi: Any, mine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "genomes"
    result = run("download", mine, "-o", folder)
    assert (result.code, result.out) == (0, f"{folder}\n")
    assert "checksum right" in result.err
    files = ["duo/GCA_000000002.3_two_v1.0_pri" + FASTA, "unus/GCF_000000001.1_one_v1" + FASTA]
    assert names(folder) == [files[0], "sources.tsv", files[1]]
    for file in files:
        assert (folder / file).read_bytes() == ncbi.files[ncbi.path(Path(file).name)]
    with (folder / "sources.tsv").open() as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert [(row["class"], row["file"]) for row in rows] == [("unus", files[1]), ("duo", files[0])]
    assert [int(row["bytes"]) for row in rows] == [(folder / row["file"]).stat().st_size for row in rows]
    data = GenomeData(GenomeDataConfig(root=str(folder), lengths=[64]))
    data.setup()
    assert data.labels == ["duo", "unus"]
    assert sum(record.length for record in data.genomes.records) == 2 * (2 * 3000 + 500 + 300)


def test_progress_is_in_bytes_of_all_files(ncbi: Any, mine: Path, tmp_path: Path, pauses: list[float]) -> None:
    ncbi.faults["one_v1" + FASTA] = ["cut"]
    told: list[tuple[str, float | None]] = []
    download(read_list(str(mine)), tmp_path / "g", ncbi.url, lambda text, done: told.append((text, done)))
    parts = [done for text, done in told if done is not None]
    assert parts == sorted(parts)
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert told[-1][0] == "duo GCA_000000002.3, 0.00 of 0.00 GB"


def test_what_is_there_and_right_is_not_fetched_again(run: Any, ncbi: Any, mine: Path, tmp_path: Path) -> None:
    assert run("download", mine, "-o", tmp_path / "g").code == 0
    before = {name: (tmp_path / "g" / name).read_bytes() for name in names(tmp_path / "g")}
    ncbi.asked.clear()
    damaged = next((tmp_path / "g" / "duo").glob("*.gz"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    result = run("download", mine, "-o", tmp_path / "g")
    assert result.code == 0
    assert "another checksum than the server's file and is fetched anew" in result.err
    assert gets(ncbi) == [""]
    assert before == {name: (tmp_path / "g" / name).read_bytes() for name in names(tmp_path / "g")}


def test_a_transfer_that_breaks_goes_on_where_it_stopped(
    run: Any, ncbi: Any, pauses: list[float], tmp_path: Path
) -> None:
    size = len(ncbi.files[ncbi.path("one_v1" + FASTA)])
    ncbi.faults[FASTA] = ["cut", "cut"]
    ncbi.faults["md5checksums.txt"] = ["cut"]
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert result.code == 0, result.err
    half = size // 2
    assert gets(ncbi) == ["", f"bytes={half}-", f"bytes={half + (size - half) // 2}-"]
    assert pauses == [1.0, 1.0, 1.0]  # bytes came each time: no failures in a row
    assert f"the connection ended after {half:,} of {size:,} bytes" in result.err


@pytest.mark.parametrize("kept", ["half", "all", "wrong"])
@pytest.mark.parametrize("fault", ["", "whole"])
def test_the_next_run_goes_on_after_what_an_earlier_one_left(
    run: Any, ncbi: Any, tmp_path: Path, kept: str, fault: str
) -> None:
    name = "GCF_000000001.1_one_v1" + FASTA
    data = ncbi.files[ncbi.path(name)]
    part = tmp_path / "g" / "unus" / f".{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes({"half": data[:100], "all": data, "wrong": b"x" * 100}[kept])
    ncbi.faults[FASTA] = [fault]
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    if kept == "wrong" and not fault:
        assert result.code == 1
        assert "what came was removed; run the same command again" in result.err
        assert not part.exists()
        result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert result.code == 0, result.err
    assert (part.parent / name).read_bytes() == data
    assert not part.exists()


def test_too_many_requests_are_waited_out(run: Any, ncbi: Any, pauses: list[float], tmp_path: Path) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    ncbi.faults[FASTA] = ["429 7", "503", f"429 {date}", "429 nonsense"]
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert result.code == 0, result.err
    assert pauses[:2] == [7.0, 2.0]
    assert 90 < pauses[2] <= 100
    assert pauses[3:] == [8.0]
    assert "the server says 429 Too Many Requests; trying again in 7 s" in result.err


@pytest.mark.parametrize(
    ("faults", "words"),
    [(["503"] * 9, "503 Service Unavailable, 6 times in a row"), (["429 4000"], "and asks to wait 4,000 s")],
)
def test_a_server_that_stays_busy_is_given_up(
    run: Any, ncbi: Any, pauses: list[float], tmp_path: Path, faults: list[str], words: str
) -> None:
    ncbi.faults[FASTA] = ["cut", *faults]
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert "bytes are kept, and the same command goes on after them" in result.err
    assert [path for path in names(tmp_path / "g") if not path.endswith(".part")] == []
    ncbi.faults.clear()
    assert run("download", first(tmp_path), "-o", tmp_path / "g").code == 0


def test_a_wrong_checksum_leaves_no_file(run: Any, ncbi: Any, tmp_path: Path) -> None:
    path = ncbi.path("one_v1" + FASTA)
    ncbi.files[path] = gzip.compress(b">x\nACGT\n", mtime=0)
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert result.code == 1
    assert "came with the MD5 checksum" in result.err
    assert "was expected; what came was removed" in result.err
    assert names(tmp_path / "g") == []


def test_an_assembly_that_the_server_lacks(run: Any, ncbi: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\tGCF_000000001.2\n")
    result = run("download", tmp_path / "a.tsv", "-o", tmp_path / "g")
    assert result.code == 1
    assert "lists no folder of GCF_000000001.2; check the accession and its version" in result.err
    (tmp_path / "a.tsv").write_text("x\tGCF_999999999.1\n")
    result = run("download", tmp_path / "a.tsv", "-o", tmp_path / "g")
    assert result.code == 1
    assert "404 Not Found; check the accession and its version, or --base-url" in result.err
    del ncbi.files[ncbi.path("one_v1" + FASTA)]
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert (result.code, "404" in result.err) == (1, True)


def test_no_network(run: Any, pauses: list[float], tmp_path: Path) -> None:
    result = run("download", first(tmp_path), "-o", tmp_path / "g", "--base-url", "http://127.0.0.1:9/genomes/all")
    assert (result.code, result.out) == (1, "")
    assert "cannot fetch http://127.0.0.1:9/genomes/all/GCF/000/000/001/" in result.err
    assert "check the network and the proxy" in result.err
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_disk_that_is_too_small_or_full(run: Any, ncbi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 0, 10))
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert result.code == 1
    assert "choose a folder on another disk with -o" in result.err
    assert gets(ncbi) == []
    monkeypatch.undo()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("MAMBA_SEQ_NCBI_URL", ncbi.url)
    monkeypatch.setattr(transfer, "_copy", full)
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert result.code == 1
    assert "the disk is full; free some space and run the same command again" in result.err


def test_files_of_other_lists_are_pointed_out(run: Any, ncbi: Any, tmp_path: Path) -> None:
    (tmp_path / "g" / "unus").mkdir(parents=True)
    (tmp_path / "g" / "unus" / "old.fa").write_text(">r\nACGT\n")
    result = run("download", first(tmp_path), "-o", tmp_path / "g")
    assert result.code == 0
    assert "old.fa is not of this download list, and training would read it too" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists no assembly"),
        ("# only this\n", "lists no assembly"),
        ("a b\n", "1 columns came, 2 were expected, class<TAB>accession"),
        ("a\tGCF_1.1\n", "the accession 'GCF_1.1' came"),
        ("a\tGCF_000000001\n", "with its version"),
        ("../a\tGCF_000000001.1\n", "the class '../a' came; a name for a folder"),
        (".a\tGCF_000000001.1\n", "the class '.a' came"),
        ("a\tGCF_000000001.1\nb\tGCF_000000001.1\n", "line 2: GCF_000000001.1 stands in line 1 too"),
        ("accession\tlabel\n", "the columns accession, label came"),
        ("class\taccession\ttest\na\tGCF_000000001.1\n", "2 columns came, 3 were expected"),
        ("class\taccession\ttest\tvalidation\na\tGCF_000000001.1\t1,2\t2\n", "chromosome 2 is held out for test and"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(RequestError, match=re.escape(words)):
        read_list(str(tmp_path / "a.tsv"))


def test_lists_by_name_and_addresses(run: Any, tmp_path: Path) -> None:
    result = run("download", "grate-apes", "-o", tmp_path / "g")
    assert result.code == 1
    assert "lists that come with the package: great-apes" in result.err
    result = run("download", "great-apes", "-o", tmp_path / "g", "--base-url", "ftp://ftp.ncbi.nlm.nih.gov")
    assert (result.code, "http:// or https:// was expected" in result.err) == (2, True)
    (tmp_path / "a.tsv").write_text("\ufeffaccession\tclass\n\nGCF_000000001.1\ta b\n")
    assert read_list(str(tmp_path / "a.tsv")) == [lists.Assembly("a b", "GCF_000000001.1")]
    assert BASE_URL.startswith("https://")


def test_great_apes_are_homologous_across_the_species() -> None:
    assert list(GREAT_APES) == ["bonobo", "chimpanzee", "gorilla", "human", "orangutan"]
    # number of the chromosome in the other apes' assemblies of what is human 3, 12 and 20
    others = {"3": "2", "12": "10", "20": "21"}
    human = GREAT_APES["human"]
    for label, assembly in GREAT_APES.items():
        held_out = (human.test, human.validation)
        if label != "human":
            held_out = tuple(tuple(others[name] for name in part) for part in held_out)
        assert (assembly.test, assembly.validation) == held_out
    recipe = models_zoo.recipe_path("mamba-dna.great-apes5").read_text()
    for assembly in GREAT_APES.values():
        assert assembly.accession in recipe


def test_the_great_apes_recipe_trains_on_what_is_downloaded(
    run: Any, ncbi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it takes long
    monkeypatch.setattr("mamba_seq.pipelines.train.finish.baseline_accuracy", lambda train, test, k: 0.2)
    for label, assembly in GREAT_APES.items():
        molecules = [str(i) for i in (1, 2, 3, 10, 12, 20, 21)]
        records = {molecule: f"NC_{assembly.accession[7:11]}{int(molecule):02}.2" for molecule in molecules}
        ncbi.add(assembly.accession, f"NHGRI_{label}-v2.0_pri", f"Ape {label}", records)
    # NCBI has renamed an assembly, and both folders are there
    ape = GREAT_APES["gorilla"]
    place = ncbi.path("gorilla-v2.0_pri" + FASTA).rpartition("/")[0]
    for suffix in (FASTA, "_assembly_report.txt"):
        data = ncbi.files[f"{place}/{place.rpartition('/')[2]}{suffix}"]
        ncbi.put(f"{place.replace('v2.0', 'v2.1')}/", suffix, data)

    folder = tmp_path / "apes"
    result = run("download", "great-apes", "-o", folder)
    assert result.code == 0, result.err
    assert (folder / "gorilla" / f"{ape.accession}_NHGRI_gorilla-v2.1_pri{FASTA}").is_file()
    with (folder / "splits.tsv").open() as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    split = {(row["label"], int(row["record"].split(".")[0][-2:])): row["split"] for row in rows}
    assert len(rows) == 5 * 7  # neither the scaffold nor the mitochondrion
    for label in GREAT_APES:
        test, validation = ((3, 12), 20) if label == "human" else ((2, 10), 21)
        assert [n for n in (1, 2, 3, 10, 12, 20, 21) if split[label, n] == "test"] == list(test)
        assert [n for n in (1, 2, 3, 10, 12, 20, 21) if split[label, n] == "validation"] == [validation]

    overrides = [
        *[f"--data.root={folder}", f"--data.splits_file={folder}/splits.tsv", "--data.lengths=[512]"],
        *["--data.length_warmup=[64,128]", "--data.length_warmup_steps=[1,1]", "--data.batch_tokens=1024"],
        *["--data.validation_lengths=[256]", "--data.validation_windows=2", "--data.workers=0"],
        *["--model.d_model=8", "--model.n_layer=2", "--context=512", "--optim.steps=4", "--optim.warmup_steps=2"],
        *["--evaluation.lengths=[64,512]", "--evaluation.windows_per_class=[4,2]"],
        *["--evaluation.calibration_windows=2", "--evaluation.baseline_windows=4", "--val_every=2"],
    ]
    recipe = models_zoo.recipe_path("mamba-dna.great-apes5")
    assert read_recipe(recipe, overrides)[0].pooling == "last"
    made = train(str(recipe), tmp_path / "run", overrides)
    assert (made / "model.safetensors").is_file()
    card = (made / "README.md").read_text()
    assert "GCF_009914755.1" in card
    assert "by the table splits.tsv; 29% of the bases for the test, 14% for validation" in card
    used = (tmp_path / "run" / "splits.tsv").read_text()
    assert sorted(used.splitlines()) == sorted((folder / "splits.tsv").read_text().splitlines())


def test_a_chromosome_to_hold_out_that_is_not_there(run: Any, ncbi: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("class\taccession\ttest\nunus\tGCF_000000001.1\t2A\n")
    result = run("download", tmp_path / "a.tsv", "-o", tmp_path / "g")
    assert result.code == 1
    assert "GCF_000000001.1 has no chromosome '2A' to hold out; it has 1, 2; correct the list" in result.err
    assert gets(ncbi) == []
