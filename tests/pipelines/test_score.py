"""Likelihood tracks: each base given those before it, the same however a record goes through the model."""

import gzip
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.heads import LanguageModel, SequenceClassifier

Run = Callable[..., Any]
LENGTHS = {"empty": 0, "one": 1, "short": 63, "n": 5, "middle": 1000, "long": 2049}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        task="language-model",
        vocab_size=5,
        backbone=MambaConfig(d_model=16, n_layer=2, d_state=4),
        alphabet="dna",
        context=512,
    )
    made = LanguageModel(config)
    torch.nn.init.normal_(made.embedding.weight, std=0.5)
    return made.save_pretrained(tmp_path_factory.mktemp("model"), dtype=torch.float32)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    rng = np.random.default_rng(0)
    found = {name: "".join(rng.choice(list("ACGTacgtN"), n)) for name, n in LENGTHS.items()}
    found["n"] = "NNNNN"
    return found


@pytest.fixture(scope="module")
def fasta(texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fasta") / "in.fa"
    path.write_text("".join(f">{name} words\n{text}\n" for name, text in texts.items()))
    return path


@torch.no_grad()
def expected(model: Path, text: str, both: bool = False) -> np.ndarray:
    """Of the definition: one base after another, in plain torch."""
    from mamba_seq import from_pretrained

    language = from_pretrained(model).train()  # nothing in chunks
    codes = DNA.encode(text)
    strands = []
    for each in (codes, DNA.reverse_complement(codes)):
        tokens = torch.from_numpy(each.copy()).long()
        inputs = torch.cat([torch.tensor([4]), tokens[:-1]])
        log2 = language(inputs[None])[0].log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0] / np.log(2)
        strands.append(torch.where(tokens == 4, torch.nan, log2).numpy())
    result: np.ndarray = (strands[0] + strands[1][::-1]) / 2 if both else strands[0]
    return result


def from_bed_graph(text: str, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    found = {name: np.full(n, np.nan) for name, n in lengths.items()}
    for line in text.splitlines():
        name, start, end, value = line.split("\t")
        assert np.isnan(found[name][int(start) : int(end)]).all()
        found[name][int(start) : int(end)] = float(value)
    return found


@pytest.mark.parametrize("strand", ["forward", "both"])
def test_whole_is_chunked_is_the_definition(
    run: Run, model: Path, fasta: Path, texts: dict[str, str], strand: str
) -> None:
    for tokens in (100, 1000, 10_000):  # long records in chunks, or all of them packed
        result = run("score", fasta, "-m", model, "--strand", strand, "--batch-tokens", tokens)
        assert result.code == 0, result.err
        found = from_bed_graph(result.out, LENGTHS)
        for name, text in texts.items():
            if text:
                truth = expected(model, text, strand == "both")
                np.testing.assert_allclose(found[name], truth, rtol=0, atol=1.5e-4, err_msg=name)
    bits = -np.nanmean(np.concatenate([expected(model, text, strand == "both") for text in texts.values() if text]))
    assert float(result.err.split("records: ")[1].split()[0]) == pytest.approx(bits, abs=1e-3)


def test_a_context_starts_anew(run: Run, model: Path, fasta: Path, texts: dict[str, str]) -> None:
    for tokens in (64, 10_000):
        found = from_bed_graph(
            run("score", fasta, "-m", model, "--context", 200, "--batch-tokens", tokens).out, LENGTHS
        )
        text = texts["long"]
        pieces = [expected(model, text[start : start + 200]) for start in range(0, len(text), 200)]
        np.testing.assert_allclose(found["long"], np.concatenate(pieces), rtol=0, atol=1.5e-4)


def test_a_big_wig_is_the_bed_graph(run: Run, model: Path, fasta: Path, tmp_path: Path) -> None:
    py_big_wig = pytest.importorskip("pyBigWig")
    bed = from_bed_graph(run("score", fasta, "-m", model).out, LENGTHS)
    assert run("score", fasta, "-m", model, "-o", tmp_path / "track.bw", "--batch-tokens", 300).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["track.bw"]
    with py_big_wig.open(str(tmp_path / "track.bw")) as track:
        assert track.chroms() == {name: n for name, n in LENGTHS.items() if n}
        for name, length in track.chroms().items():
            np.testing.assert_allclose(track.values(name, 0, length), bed[name], rtol=0, atol=2e-4)


@pytest.mark.skipif(shutil.which("bedtools") is None, reason="bedtools is not installed")
def test_bedtools_reads_the_bed_graph(
    run: Run, model: Path, fasta: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    assert run("score", fasta, "-m", model, "-o", tmp_path / "t.bedgraph").code == 0
    merged = subprocess.run(
        ["bedtools", "merge", "-i", tmp_path / "t.bedgraph"], capture_output=True, text=True, check=True
    )
    assert merged.stderr == ""
    known = [
        f"{name}\t{run.start()}\t{run.end()}" for name, text in texts.items() for run in re.finditer("[^N]+", text)
    ]
    assert merged.stdout.splitlines() == known


def test_a_table_has_a_row_a_record(run: Run, model: Path, fasta: Path, texts: dict[str, str], tmp_path: Path) -> None:
    assert run("score", fasta, fasta, "-m", model, "-o", tmp_path / "t.tsv.gz").code == 0
    lines = gzip.decompress((tmp_path / "t.tsv.gz").read_bytes()).decode().splitlines()
    assert lines[0].split("\t") == ["record", "length", "bases", "bits_per_base", "perplexity"]
    rows = [line.split("\t") for line in lines[1:]]
    assert [row[0] for row in rows] == [*texts, *texts]
    for name, length, bases, bits, perplexity in rows:
        assert int(length) == len(texts[name])
        if not set(texts[name]) - {"N"}:
            assert (bases, bits, perplexity) == ("0", "NA", "NA")
            continue
        truth = expected(model, texts[name])
        assert int(bases) == np.count_nonzero(~np.isnan(truth))
        assert float(bits) == pytest.approx(-np.nanmean(truth), abs=2e-4)
        assert float(perplexity) == pytest.approx(2 ** float(bits), rel=1e-3)


def test_standard_input_and_the_same_bytes_again(
    run: Run, model: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = run("score", fasta, "-m", model)
    again = run("score", fasta, "-m", model)
    assert named.out == again.out
    with fasta.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert run("score", "-", "-m", model).out == named.out


def test_what_cannot_be(run: Run, model: Path, fasta: Path, tmp_path: Path) -> None:
    config = ModelConfig(
        task="sequence-classification", labels=["a", "b"], vocab_size=5, backbone=MambaConfig(d_model=8, n_layer=1)
    )
    classifier = SequenceClassifier(config).save_pretrained(tmp_path / "classifier")
    (tmp_path / "bad.fa").write_text(">a\nACGT\n>b\nAXGT\n")
    (tmp_path / "twice").mkdir()
    for arguments, code, message in [
        ((fasta, "-m", classifier), 1, "is a sequence-classification, expected a language-model"),
        ((fasta, "-m", model, "--format", "bigwig"), 1, "a bigWig cannot be written to -: name a file"),
        ((fasta, fasta, "-m", model, "-o", tmp_path / "t.bw"), 1, "two records are named"),
        ((tmp_path / "bad.fa", "-m", model, "-o", tmp_path / "t.bedgraph"), 1, "'b' has 'X' at position 2"),
        ((tmp_path / "gone.fa", "-m", model), 1, "gone.fa"),
        ((fasta,), 2, "Missing option '-m'"),
        (("-", "-", "-m", model), 2, "can be read once only"),
    ]:
        result = run("score", *arguments)
        assert result.code == code, result.err
        assert message in result.err
        assert result.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"classifier", "bad.fa", "twice"}
