"""Vectors of records and windows: the definition, however they go through the model and whatever file they go to."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq import from_pretrained
from mamba_seq.config import MambaConfig, ModelConfig, SaShiMiConfig
from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.data_prep.windows import window_starts
from mamba_seq.heads import LanguageModel, SequenceClassifier

Run = Callable[..., Any]
GOLDEN = Path(__file__).parent / "golden"
COMPLEMENT = [3, 2, 1, 0, 4]
LENGTHS = {"one": 1, "empty": 0, "short": 63, "n": 5, "middle": 1000, "long": 2049, "last": 30}


def save(folder: Path, model: Any) -> Path:
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    saved: Path = model.save_pretrained(folder, dtype=torch.float32)
    return saved


def classifier(folder: Path, **fields: Any) -> Path:
    torch.manual_seed(0)
    backbone = MambaConfig(d_model=8, n_layer=2, d_state=4)
    how: dict[str, Any] = {"labels": ["a", "b"], "vocab_size": 5, "alphabet": "dna", "backbone": backbone}
    return save(folder, SequenceClassifier(ModelConfig(task="sequence-classification", **{**how, **fields})))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = MambaConfig(d_model=8, n_layer=2, d_state=4)
    config = ModelConfig(task="language-model", vocab_size=5, backbone=backbone, alphabet="dna")
    return save(tmp_path_factory.mktemp("model"), LanguageModel(config))


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    rng = np.random.default_rng(0)
    return {name: "".join(rng.choice(list("ACGTacgtN"), n)) for name, n in LENGTHS.items()} | {"n": "NNNNN"}


@pytest.fixture(scope="module")
def fasta(texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fasta") / "in.fa"
    path.write_text("".join(f">{name} words\n{text}\n" for name, text in texts.items()))
    return path


@torch.no_grad()
def expected(model: Any, text: str, pooling: str = "mean", both: bool = True, blocks: int | None = None) -> np.ndarray:
    """Of the definition: whole strands, one by one."""
    codes = DNA.encode(text)
    if not len(codes) or (codes == 4).all():
        return np.full(model.config.backbone.d_model, np.nan, dtype=np.float32)
    vectors = []
    for strand in (codes, DNA.reverse_complement(codes))[: 1 + both]:
        hidden = model.embed(torch.from_numpy(strand.copy()).long()[None])
        for block in model.backbone.blocks[:blocks]:
            hidden = block(hidden, None, None, False)
        out = model.backbone.norm(hidden)[0]
        vectors.append({"mean": out.mean(0), "last": out[-1], "max": out.amax(0)}[pooling])
    stacked = torch.stack(vectors)
    found: np.ndarray = (stacked.amax(0) if pooling == "max" else stacked.mean(0)).numpy()
    return found


def from_npy(path: Path) -> tuple[np.ndarray, list[list[str]]]:
    lines = path.with_suffix(".tsv").read_text().splitlines()
    assert lines[0] == "record\tstart\tend\tfile\tstatus"
    return np.load(path, mmap_mode="r"), [line.split("\t") for line in lines[1:]]


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_records_whole_packed_and_chunked(
    run: Run, language: Path, fasta: Path, texts: dict[str, str], tmp_path: Path, pooling: str
) -> None:
    model: Any = from_pretrained(language)
    truth = np.stack([expected(model, text, pooling) for text in texts.values()])
    for tokens in (100, 2200, 100_000):
        done = run(
            "embed", fasta, "-m", language, "-o", tmp_path / "v.npy", "--pooling", pooling, "--batch-tokens", tokens
        )
        assert done.code == 0, done.err
        found, index = from_npy(tmp_path / "v.npy")
        assert isinstance(found, np.memmap)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, truth, rtol=0, atol=2e-5)
    assert "2 of them NaN" in done.err
    statuses = {"empty": "empty", "n": "no_bases"}
    assert index == [[name, "0", str(n), str(fasta), statuses.get(name, "ok")] for name, n in LENGTHS.items()]


@pytest.mark.parametrize("tokens", [100, 100_000])
def test_windows_are_those_of_classify(
    run: Run, language: Path, fasta: Path, texts: dict[str, str], tmp_path: Path, tokens: int
) -> None:
    window = ["--window", 200, "--stride", 90, "--strand", "forward"]
    done = run("embed", fasta, "-m", language, "-o", tmp_path / "v.npy", "--batch-tokens", tokens, *window)
    assert done.code == 0, done.err
    found, index = from_npy(tmp_path / "v.npy")
    model: Any = from_pretrained(language)
    places = [(name, at) for name, n in LENGTHS.items() for at in window_starts(n, 200, 90, 0) or [0]]
    assert [(row[0], int(row[1])) for row in index] == places
    assert all(int(row[2]) == min(int(row[1]) + 200, LENGTHS[row[0]]) for row in index)
    truth = np.stack([expected(model, texts[name][at : at + 200], both=False) for name, at in places])
    np.testing.assert_allclose(found, truth, rtol=0, atol=2e-5)


def test_pandas_reads_what_numpy_reads(run: Run, language: Path, fasta: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    options = [fasta, "-m", language, "--window", "300"]
    for name in ("v.npy", "v.parquet", "again.parquet"):
        assert run("embed", *options, "-o", tmp_path / name).code == 0
    vectors, index = from_npy(tmp_path / "v.npy")
    table = pandas.read_parquet(tmp_path / "v.parquet")
    np.testing.assert_array_equal(np.stack(table["embedding"]), vectors)
    assert table[["record", "start", "end", "file", "status"]].astype(str).to_numpy().tolist() == index
    assert (tmp_path / "v.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    kept = json.loads(parquet.read_schema(tmp_path / "v.parquet").metadata[b"mamba_seq"])
    assert kept == {
        "model": str(language),
        "pooling": "mean",
        "layer": None,
        "strand": "both",
        "window": 300,
        "stride": 300,
    }


def test_golden(run: Run, language: Path, fasta: Path, tmp_path: Path) -> None:
    done = run("embed", fasta, "-m", language, "-o", tmp_path / "v.npy", "--window", 300)
    assert done.code == 0, done.err
    vectors, index = from_npy(tmp_path / "v.npy")
    rows = [[*row[:3], row[4], *(f"{x:.3f}" for x in vector)] for row, vector in zip(index, vectors, strict=True)]
    text = "".join("\t".join(row) + "\n" for row in rows).replace("-0.000", "0.000")
    path = GOLDEN / "embed.tsv"
    if os.environ.get("MAMBA_SEQ_WRITE_GOLDEN"):
        path.write_text(text)
    written = [line.split("\t") for line in path.read_text().splitlines()]
    assert [row[:4] for row in rows] == [row[:4] for row in written]
    found, kept = (np.array([row[4:] for row in each], dtype=float) for each in (rows, written))
    np.testing.assert_allclose(found, kept, rtol=0, atol=1.5e-3)


def test_many_files_of_any_form_and_standard_input(
    run: Run, language: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reads.fq.gz").write_bytes(gzip.compress(b"@a\nACGTTT\n+\nIIIIII\n"))
    (tmp_path / "g.gb").write_text("LOCUS       A 6 bp DNA\nORIGIN\n        1 acgttt\n//\n")
    with fasta.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        files = [tmp_path / "reads.fq.gz", "-", tmp_path / "g.gb"]
        done = run("embed", *files, "-m", language, "-o", tmp_path / "v.npy")
    assert done.code == 0, done.err
    vectors, index = from_npy(tmp_path / "v.npy")
    assert [row[3] for row in index] == [str(files[0]), *["-"] * len(LENGTHS), str(files[2])]
    np.testing.assert_allclose(vectors[0], vectors[-1], rtol=0, atol=1e-6)


def test_a_classifier_is_its_head_on_the_vector(run: Run, fasta: Path, texts: dict[str, str], tmp_path: Path) -> None:
    for name, fields in (
        ("equivariant", {"complement": COMPLEMENT, "pooling": "max"}),
        ("forward", {"strand": "forward", "pooling": "last"}),
        ("positions", {"strand": "forward", "positions": 2049}),
    ):
        model = classifier(tmp_path / name, **fields)
        for tokens in (256, 100_000):
            done = run("embed", fasta, "-m", model, "-o", tmp_path / "v.npy", "--batch-tokens", tokens)
            assert done.code == 0, done.err
            vectors, index = from_npy(tmp_path / "v.npy")
            loaded: Any = from_pretrained(model)
            for vector, row in zip(torch.from_numpy(vectors.copy()), index, strict=True):
                if row[4] != "ok":
                    continue
                with torch.no_grad():
                    logits = loaded(torch.from_numpy(DNA.encode(texts[row[0]]).copy()).long()[None])[0]
                    torch.testing.assert_close(loaded.head(vector), logits, rtol=0, atol=2e-5)


def test_a_layer(run: Run, language: Path, fasta: Path, texts: dict[str, str], tmp_path: Path) -> None:
    assert run("embed", fasta, "-m", language, "-o", tmp_path / "v.npy", "--layer", 1).code == 0
    model: Any = from_pretrained(language)
    truth = np.stack([expected(model, text, blocks=1) for text in texts.values()])
    np.testing.assert_allclose(from_npy(tmp_path / "v.npy")[0], truth, rtol=0, atol=2e-5)


def test_a_u_net(run: Run, fasta: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = SaShiMiConfig(d_model=8, n_layer=1, pool=[2], ssm="selective")
    config = ModelConfig(task="language-model", vocab_size=5, backbone=backbone, alphabet="dna")
    model = save(tmp_path / "u", LanguageModel(config))
    found = []
    for tokens in (300, 100_000):
        done = run("embed", fasta, "-m", model, "-o", tmp_path / "v.npy", "--batch-tokens", tokens)
        assert done.code == 0, done.err
        found.append(np.array(from_npy(tmp_path / "v.npy")[0]))
    np.testing.assert_allclose(*found, rtol=0, atol=2e-5)
    done = run("embed", fasta, "-m", model, "-o", tmp_path / "v.npy", "--layer", 1)
    assert (done.code, "is a U-Net" in done.err) == (1, True)


def test_what_cannot_be(run: Run, language: Path, fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.fa").write_text(">a\nACGT\n>b\nAXGT\n")
    short = classifier(tmp_path / "short", positions=100)
    sound = ModelConfig(
        task="language-model", vocab_size=7, backbone=MambaConfig(d_model=8, n_layer=1), alphabet="symbols:abcdef"
    )
    other = LanguageModel(sound).save_pretrained(tmp_path / "other")
    out = ("-o", tmp_path / "v.npy")
    for arguments, code, message in [
        ((tmp_path / "bad.fa", "-m", language, *out), 1, "record 'b' has 'X' at position 2"),
        ((tmp_path / "bad.fa", "-m", language, *out, "--window", 2), 1, "record 'b' has 'X' at position 2"),
        ((tmp_path / "gone.fa", "-m", language, *out), 1, "gone.fa: no such file"),
        ((fasta, "-m", other, *out), 1, "reads the alphabet 'symbols:abcdef'"),
        ((fasta, "-m", short, *out), 1, "say --window 100"),
        ((fasta, "-m", language, *out, "--layer", 3), 1, "has 2 blocks, and --layer 3 came"),
        ((fasta, "-m", language, "-o", "-"), 1, "vectors cannot be written to standard output"),
        ((fasta, "-m", language, "-o", tmp_path / "v.txt"), 1, "ends in .parquet or .npy"),
        ((fasta, "-m", language, "-o", tmp_path / "none" / "v.npy"), 1, "there is no folder"),
        ((fasta, "-m", language), 2, "Missing option '-o'"),
        ((fasta, "-m", language, *out, "--stride", 3), 2, "give --window too"),
        (("-", "-", "-m", language, *out), 2, "can be read once only"),
    ]:
        result = run("embed", *arguments)
        assert result.code == code, result.err
        assert message in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"bad.fa", "short", "other"}
