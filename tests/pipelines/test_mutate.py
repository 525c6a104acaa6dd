"""What variants change: a slow computation of the definition agrees, both strands too; bad files are told."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq import from_pretrained
from mamba_seq.calibration import Calibration
from mamba_seq.config import MambaConfig, ModelConfig, SaShiMiConfig
from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.heads import LanguageModel, SequenceClassifier, TokenClassifier

Run = Callable[..., Any]
GOLDEN = Path(__file__).parent / "golden"
CONTEXT = 40
HEAD = ["record", "position", "ref", "alt", "status", "score_ref", "score_alt", "delta"]
BACKBONE = MambaConfig(d_model=8, n_layer=2, d_state=4)
OTHER = str.maketrans("ACGTNacgtn", "TGCANtgcan")


def save(folder: Path, model: Any) -> Path:
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    saved: Path = model.save_pretrained(folder, dtype=torch.float32)
    return saved


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(task="language-model", vocab_size=5, backbone=BACKBONE, alphabet="dna", context=CONTEXT)
    return save(tmp_path_factory.mktemp("language"), LanguageModel(config))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        task="sequence-classification",
        labels=["a", "b", "c"],
        vocab_size=5,
        backbone=BACKBONE,
        alphabet="dna",
        context=CONTEXT,
    )
    return save(tmp_path_factory.mktemp("classifier"), SequenceClassifier(config))


@pytest.fixture(scope="module")
def records() -> dict[str, str]:
    rng = np.random.default_rng(1)
    found = {"chr1": "".join(rng.choice(list("ACGTacgt"), 300)), "chr2": "".join(rng.choice(list("ACGT"), 90))}
    found["chr1"] = "ACGTACGTAC" + found["chr1"][:100] + "NNNNR" + found["chr1"][105:]
    return found


def write_fasta(path: Path, records: dict[str, str]) -> Path:
    path.write_text(
        "".join(f">{n} x\n" + "".join(f"{t[i : i + 60]}\n" for i in range(0, len(t), 60)) for n, t in records.items())
    )
    return path


@pytest.fixture(scope="module")
def fasta(records: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fasta(tmp_path_factory.mktemp("fasta") / "ref.fa", records)


@torch.no_grad()
def brute_force(model: Any, letters: str, label: int | None = None, both: bool = True) -> float:
    """Of the definition: one window, plain torch."""
    scores, logs = [], []
    codes = DNA.encode(letters)
    for strand in (codes, DNA.reverse_complement(codes))[: 1 + both]:
        tokens = torch.from_numpy(strand.copy()).long()
        if label is None:
            logits = model(torch.cat([torch.tensor([4]), tokens[:-1]])[None])[0].double()
            nats = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            scores.append(float(nats[tokens != 4].sum()))
        else:
            logs.append(model(tokens[None])[0].double().log_softmax(-1))
    if label is None:
        return float(np.mean(scores))
    mean = torch.stack(logs).mean(0)
    odds: torch.Tensor = mean[label] - torch.cat([mean[:label], mean[label + 1 :]]).logsumexp(0)
    return float(odds)


def window(text: str, start: int, ref: str, alt: str, context: int = CONTEXT) -> tuple[str, str]:
    flank = max(0, context - len(ref)) // 2
    left, right = text[max(0, start - flank) : start], text[start + len(ref) :][:flank]
    return left + ref + right, left + alt + right


def rows_of(text: str) -> list[dict[str, str]]:
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0] == HEAD
    return [dict(zip(HEAD, line, strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("tokens", [30, 200, 100_000])
@pytest.mark.parametrize(("label", "strand"), [(None, "both"), (None, "forward"), ("b", "both"), ("b", "forward")])
def test_a_region_is_as_by_hand(
    run: Run,
    language: Path,
    classifier: Path,
    fasta: Path,
    records: dict[str, str],
    label: str | None,
    strand: str,
    tokens: int,
) -> None:
    path = language if label is None else classifier
    options = ["--strand", strand, "--batch-tokens", tokens, *([] if label is None else ["--label", label])]
    done = run("mutate", fasta, "-m", path, "--region", "chr1:95-125", *options)
    assert done.code == 0, done.err
    rows = rows_of(done.out)
    text = records["chr1"].upper()
    bases = [(at, base) for at in range(94, 125) for base in "ACGT" if text[at] in "ACGT" and base != text[at]]
    assert [(int(r["position"]) - 1, r["alt"]) for r in rows if r["status"] == "ok"] == bases
    assert [r["ref"] for r in rows if r["status"] == "ambiguous"] == list("NNNNR")
    model: Any = from_pretrained(path)
    for row in rows:
        if row["status"] != "ok":
            assert [row[key] for key in ("alt", "score_ref", "score_alt", "delta")] == ["NA"] * 4
            continue
        given = window(text, int(row["position"]) - 1, row["ref"], row["alt"])
        before, after = (brute_force(model, each, 1 if label else None, strand == "both") for each in given)
        assert float(row["score_ref"]) == pytest.approx(before, abs=2e-4)
        assert float(row["delta"]) == pytest.approx(after - before, abs=2e-4)


VARIANTS = [  # chr1 begins with ACGTACGTAC
    ("chr1", 1, "A", "C", "ok"),
    ("chr1", 5, "A", "T,G", "ok,ok"),
    ("chr1", 2, "CGT", "C", "ok"),
    ("chr1", 9, "A", "ATTG", "ok"),
    ("1", 3, "GTAC", "TTGG", "ok"),
    ("chr1", 4, "t", "c", "ok"),
    ("chr1", 6, "C", "<DEL>,*,.", "symbolic,overlapping,missing"),
    ("chr1", 7, "G", "G[chr2:3[,T", "symbolic,ok"),
    ("chr1", 8, "T", "R", "ambiguous"),
    ("chr1", 111, "N", "A", "ambiguous"),
    ("chr1", 115, "A", "C", "ok"),  # R in the FASTA, of which a VCF has the first base
    ("chr1", 10, "C", "A" * 41, "too_long"),
]


def write_vcf(path: Path, lines: list[tuple[Any, ...]], extra: str = "", end: str = "\n") -> Path:
    head = ["##fileformat=VCFv4.2", '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">', *extra.splitlines()]
    head += ["#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tone"]
    rows = [
        f"{c}\t{p}\trs{i}\t{r}\t{a}\t.\tPASS\t{'.' if i % 2 else 'DP=3'}\tGT\t0/1"
        for i, (c, p, r, a, *_) in enumerate(lines)
    ]
    text = end.join([*head, *rows, ""])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(("name", "end"), [("v.vcf", "\n"), ("v.vcf.gz", "\n"), ("crlf.vcf", "\r\n")])
def test_variants_are_as_by_hand(
    run: Run, language: Path, fasta: Path, records: dict[str, str], tmp_path: Path, name: str, end: str
) -> None:
    vcf = write_vcf(tmp_path / name, VARIANTS, end=end)
    out = tmp_path / "out.vcf"
    done = run("mutate", fasta, "-m", language, "--vcf", vcf, "--vcf-out", out, "--batch-tokens", 200)
    assert done.code == 0, done.err
    rows = rows_of(done.out)
    expected = [
        (chrom, str(position), ref.upper(), alt, status)
        for chrom, position, ref, alts, statuses in VARIANTS
        for alt, status in zip(alts.split(","), statuses.split(","), strict=True)
    ]
    assert [tuple(row[key] for key in HEAD[:5]) for row in rows] == expected
    model: Any = from_pretrained(language)
    text = records["chr1"].upper()
    for row in rows:
        if row["status"] == "ok":
            given = window(text, int(row["position"]) - 1, row["ref"], row["alt"].upper())
            before, after = (brute_force(model, each) for each in given)
            assert float(row["delta"]) == pytest.approx(after - before, abs=2e-4)
        else:
            assert row["delta"] == "NA"
    assert "places: 9 ok, 2 symbolic, 2 ambiguous, 1 overlapping, 1 missing, 1 too_long" in done.err
    # the text is passed on, with one line and one entry more
    raw = gzip.decompress(vcf.read_bytes()) if name.endswith(".gz") else vcf.read_bytes()
    was, now = raw.decode().split(end), out.read_bytes().decode().split(end)
    assert now[2].startswith("##INFO=<ID=MAMBA_SEQ_DELTA,Number=A,Type=Float,")
    assert [*now[:2], now[3]] == was[:3]
    deltas = iter(row["delta"].replace("NA", ".") for row in rows)
    for before_line, after_line in zip(was[3:-1], now[4:-1], strict=True):
        old, new = before_line.split("\t"), after_line.split("\t")
        values = ",".join(next(deltas) for _ in old[4].split(","))
        assert new[7] == (f"MAMBA_SEQ_DELTA={values}" if old[7] == "." else f"{old[7]};MAMBA_SEQ_DELTA={values}")
        assert [*old[:7], *old[8:]] == [*new[:7], *new[8:]]


def test_both_strands_are_the_same(
    run: Run, language: Path, classifier: Path, records: dict[str, str], tmp_path: Path
) -> None:
    text = records["chr2"]
    fasta = write_fasta(tmp_path / "two.fa", {"there": text, "back": text[::-1].translate(OTHER)})
    for model in ([language], [classifier, "--label", "c"]):
        found = {}
        for name in ("there", "back"):
            done = run("mutate", fasta, "-m", *model, "--region", name)
            assert done.code == 0, done.err
            found[name] = {(int(r["position"]), r["alt"]): float(r["delta"]) for r in rows_of(done.out)}
        assert len(found["there"]) == 3 * len(text)
        for (position, alt), delta in found["there"].items():
            other = found["back"][len(text) + 1 - position, alt.translate(OTHER)]
            assert other == pytest.approx(delta, abs=2e-4)
        forward = rows_of(run("mutate", fasta, "-m", *model, "--region", "there", "--strand", "forward").out)
        assert max(abs(float(r["delta"]) - found["there"][int(r["position"]), r["alt"]]) for r in forward) > 1e-2


def test_probabilities_are_those_of_classify(
    run: Run, classifier: Path, records: dict[str, str], tmp_path: Path
) -> None:
    text = records["chr2"][:40]
    fasta = write_fasta(tmp_path / "f.fa", {"r": text})
    alt = "A" if text[20] != "A" else "C"
    changed = write_fasta(tmp_path / "g.fa", {"r": text[:20] + alt + text[21:]})
    vcf = write_vcf(tmp_path / "v.vcf", [("r", 21, text[20], alt)])
    calibrated = from_pretrained(classifier)
    calibrated.config.calibration = vars(Calibration(temperature=2.0, growth=0.5, context=CONTEXT, windows=9))
    for model in (classifier, calibrated.save_pretrained(tmp_path / "calibrated", dtype=torch.float32)):
        options = ["-m", model, "--context", 100]
        done = run("mutate", fasta, *options, "--vcf", vcf, "--label", "b", "--score", "probability")
        assert done.code == 0, done.err
        (row,) = rows_of(done.out)
        for file, key in ((fasta, "score_ref"), (changed, "score_alt")):
            p = run("classify", file, *options).rows[0][6]
            assert float(row[key]) == pytest.approx(float(p), abs=1.1e-4)


@pytest.mark.parametrize("name", ["mutate.region.tsv", "mutate.vcf.tsv"])
def test_golden(run: Run, language: Path, fasta: Path, tmp_path: Path, name: str) -> None:
    what = ["--region", "chr2:85-90"]
    if "vcf" in name:
        what = ["--vcf", str(write_vcf(tmp_path / "v.vcf", VARIANTS))]
    done = run("mutate", fasta, "-m", language, *what)
    assert done.code == 0, done.err
    assert run("mutate", fasta, "-m", language, *what, "--threads", 2).out == done.out
    path = GOLDEN / name
    if os.environ.get("MAMBA_SEQ_WRITE_GOLDEN"):
        path.write_text(done.out)
    found, kept = rows_of(done.out), rows_of(path.read_text())
    assert [list(row.values())[:5] for row in found] == [list(row.values())[:5] for row in kept]
    for key in HEAD[5:]:
        values = [np.array([np.nan if r[key] == "NA" else float(r[key]) for r in each]) for each in (found, kept)]
        np.testing.assert_allclose(*values, rtol=0, atol=3e-4)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_a_picture(run: Run, language: Path, fasta: Path, tmp_path: Path, form: str) -> None:
    pictures = [tmp_path / f"one.{form}", tmp_path / f"two.{form}"]
    for picture in pictures:
        done = run(
            "mutate", fasta, "-m", language, "--region", "chr1:100-130", "-o", tmp_path / "t", "--picture", picture
        )
        assert done.code == 0, done.err
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert first.startswith(b"\x89PNG" if form == "png" else b"<?xml")
    if form == "svg":
        assert b">chr1<" in first


def test_a_u_net_and_a_bgzip_file(run: Run, fasta: Path, tmp_path: Path) -> None:
    from Bio import bgzf

    torch.manual_seed(0)
    backbone = SaShiMiConfig(d_model=8, n_layer=1, pool=[2], ssm="selective")
    config = ModelConfig(task="language-model", vocab_size=5, backbone=backbone, alphabet="dna", context=CONTEXT)
    model = save(tmp_path / "u", LanguageModel(config))
    with bgzf.BgzfWriter(tmp_path / "ref.fa.gz") as file:
        file.write(fasta.read_bytes())
    plain, packed = (run("mutate", f, "-m", model, "--region", "chr2:1-20") for f in (fasta, tmp_path / "ref.fa.gz"))
    assert plain.code == 0, plain.err
    assert packed.out == plain.out


def test_lines_that_do_not_fit_can_be_skipped(run: Run, language: Path, fasta: Path, tmp_path: Path) -> None:
    lines = [
        ("chr2", 5000, "A", "C"),
        ("chr1", 1, "C", "A"),
        ("chrX", 7, "A", "C,G"),
        ("chr1", 0, "A", "C"),
        ("chr1", 1, "A", "C"),
    ]
    vcf = write_vcf(tmp_path / "v.vcf", lines)  # unsorted
    done = run("mutate", fasta, "-m", language, "--vcf", vcf, "--on-mismatch", "skip", "--vcf-out", tmp_path / "o.vcf")
    assert done.code == 0, done.err
    statuses = ["outside", "mismatch", "unknown_record", "unknown_record", "outside", "ok"]
    assert [row["status"] for row in rows_of(done.out)] == statuses
    assert len((tmp_path / "o.vcf").read_text().splitlines()) == 4 + len(lines)


def test_what_cannot_be(run: Run, language: Path, classifier: Path, fasta: Path, tmp_path: Path) -> None:
    def vcf(name: str, *lines: tuple[Any, ...], extra: str = "") -> Path:
        return write_vcf(tmp_path / name, list(lines), extra)

    def text(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    tokens = ModelConfig(
        task="token-classification", labels=["a", "b"], vocab_size=5, backbone=BACKBONE, alphabet="dna"
    )
    per_base = TokenClassifier(tokens).save_pretrained(tmp_path / "tokens")
    head = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    good = vcf("good.vcf", ("chr1", 1, "A", "C"))
    scored = vcf("scored.vcf", ("chr1", 1, "A", "C"), extra="##INFO=<ID=MAMBA_SEQ_DELTA,Number=A>")
    zipped = text("plain.fa.gz", gzip.compress(fasta.read_bytes()))
    genbank = text("g.gb", b"LOCUS       A 6 bp DNA\nORIGIN\n        1 acgttt\n//\n")
    before = {path.name for path in tmp_path.iterdir()}
    out = ("-o", tmp_path / "out.tsv")
    of = ("-m", language, *out)
    for arguments, code, message in [
        ((fasta, *of, "--region", "chr1:300-400"), 1, "'chr1' has the bases 1 to 310"),
        ((fasta, *of, "--region", "chr1:9-8"), 1, "START may not be behind END"),
        ((fasta, *of, "--region", "chr1:5"), 1, "expected NAME:START-END, such as chr1:1-100"),
        ((fasta, *of, "--region", "chrY:1-5"), 1, "'chrY' is no record of"),
        ((fasta, *of, "--region", "chrY"), 1, "'chrY' is no record of"),
        ((tmp_path / "none.fa", *of, "--region", "a:1-2"), 1, "none.fa: no such file"),
        ((zipped, *of, "--region", "chr1:1-2"), 1, "not with bgzip"),
        ((genbank, *of, "--region", "A:1-2"), 1, "is no FASTA file"),
        ((fasta, *of, "--vcf", tmp_path / "none.vcf"), 1, "none.vcf: no such file"),
        ((fasta, *of, "--vcf", fasta), 1, "is no VCF: it begins with '>chr1 x"),
        ((fasta, *of, "--vcf", text("b.bcf", b"BCF\x02\x02" + bytes(30))), 1, "convert it to VCF (bcftools view)"),
        ((fasta, *of, "--vcf", text("h.vcf", head)), 1, "holds no variant"),
        (
            (fasta, *of, "--vcf", text("n.vcf", b"##fileformat=VCFv4.2\nchr1\t1\n")),
            1,
            "line 2: the line of column names",
        ),
        ((fasta, *of, "--vcf", text("c.vcf", head + b"chr1\t1\t.\tA\n")), 1, "line 3: 4 columns came"),
        ((fasta, *of, "--vcf", text("p.vcf", head + b"chr1\tx\t.\tA\tC\t.\t.\t.\n")), 1, "line 3: POS is 'x'"),
        ((fasta, *of, "--vcf", text("r.vcf", head + b"chr1\t1\t.\t-\tC\t.\t.\t.\n")), 1, "line 3: REF is '-'"),
        ((fasta, *of, "--vcf", text("a.vcf", head + b"chr1\t1\t.\tA\tC,\t.\t.\t.\n")), 1, "line 3: ALT is 'C,'"),
        (
            (fasta, *of, "--vcf", vcf("m.vcf", ("chr1", 1, "A", "C"), ("chr1", 1, "G", "C"))),
            1,
            "line 5: REF is 'G', and at",
        ),
        ((fasta, *of, "--vcf", vcf("u.vcf", ("chrX", 1, "A", "C"))), 1, "line 4: 'chrX' is no record of"),
        ((fasta, *of, "--vcf", vcf("o.vcf", ("chr1", 310, "AA", "C"))), 1, "chr1 has 310 bases"),
        ((fasta, *of, "--vcf", scored, "--vcf-out", tmp_path / "o"), 1, "has an INFO field MAMBA_SEQ_DELTA already"),
        ((fasta, *of, "--vcf", good, "--vcf-out", good), 1, "it is also an input"),
        ((fasta, *of, "--region", "chr1:1-2", "--label", "a"), 2, "is a language model"),
        ((fasta, "-m", classifier, *out, "--region", "chr1:1-2"), 2, "name a class with --label, of a, b, c"),
        (
            (fasta, "-m", classifier, *out, "--region", "chr1:1-2", "--label", "x"),
            2,
            "--label x is none of its classes",
        ),
        ((fasta, "-m", per_base, *out, "--region", "chr1:1-2"), 1, "is a token-classification, expected"),
        ((fasta, *of), 2, "give --region or --vcf"),
        ((fasta, *of, "--region", "chr1:1-2", "--vcf", good), 2, "give --region or --vcf"),
        ((fasta, *of, "--region", "chr1:1-2", "--vcf-out", "o"), 2, "--vcf-out goes with --vcf"),
        ((fasta, *of, "--vcf", good, "--picture", "p.png"), 2, "--picture goes with --region"),
        ((fasta, *of, "--region", "chr1:1-2", "--picture", "p.jpg"), 2, "ends in .png or .svg"),
        ((fasta, *of, "--vcf", good, "--info", "1;"), 2, "--info 1;:"),
        (("-", *of, "--region", "a:1-2"), 2, "not standard input"),
    ]:
        result = run("mutate", *arguments)
        assert result.code == code, result.err
        assert message in result.err
        assert result.out == ""
    made = {path.name for path in tmp_path.iterdir()} - before
    assert all(name.endswith((".vcf", ".bcf")) for name in made)
