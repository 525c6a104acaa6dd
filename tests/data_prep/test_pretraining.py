"""Packed genomes, what is held out of them, and the windows that a language model is trained on."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq.data_prep.alphabet import DNA, Codes
from mamba_seq.data_prep.corpus import Corpus, HeldOut, split_corpus
from mamba_seq.data_prep.errors import BadRecord, DataError, NotIndexable, TooFewData, UnreadableFile
from mamba_seq.data_prep.genome_windows import TrainingBatches
from mamba_seq.data_prep.length_warmup import LengthWarmup
from mamba_seq.data_prep.packed_genomes import LOWER, packed_file
from mamba_seq.data_prep.pretraining import PretrainingData, PretrainingDataConfig, padded_batches
from mamba_seq.data_prep.pretraining_windows import PretrainingWindows, Stretch, stretches
from mamba_seq.data_prep.splits import Splits

LENGTHS = {"empty": 0, "one": 1, "short": 63, "middle": 1000, "long": 2049}


def letters(length: int, seed: int, chances: tuple[float, ...] = (0.23, 0.23, 0.23, 0.23, 0.08)) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGTN"), length, p=chances))


def masked(text: str, seed: int) -> str:
    """Some stretches in lower case."""
    rng = np.random.default_rng(seed)
    out = list(text)
    for start in rng.integers(0, max(1, len(text)), len(text) // 40):
        out[start : start + 17] = text[start : start + 17].lower()
    return "".join(out)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Lines of 61; runs of N at both ends of one record."""
    texts = {name: masked(letters(n, n), n) for name, n in LENGTHS.items()}
    texts["long"] = "N" * 30 + texts["long"][30:-50] + "n" * 50
    path = tmp_path / "genome.fa"
    lines = (f">{name} x\n" + "\n".join(t[i : i + 61] for i in range(0, len(t), 61)) for name, t in texts.items())
    path.write_text("\n".join(lines) + "\n")
    return path


def texts_of(path: Path) -> dict[str, str]:
    parts = path.read_text().split(">")[1:]
    return {part.split()[0]: "".join(part.split("\n")[1:]) for part in parts}


def test_packed_is_the_file(fasta: Path, tmp_path: Path) -> None:
    packed = packed_file(fasta, tmp_path / "cache")
    texts = texts_of(fasta)
    assert (packed.names, packed.lengths) == (list(texts), [len(text) for text in texts.values()])
    rng = np.random.default_rng(0)
    for i, text in enumerate(texts.values()):
        places = [(0, len(text)), *(sorted(rng.integers(0, len(text) + 1, 2).tolist()) for _ in range(50))]
        for start, end in places:
            expected = DNA.encode(text[start:end])
            assert np.array_equal(packed.fetch(i, start, end), expected)
            lower = np.array([letter.islower() for letter in text[start:end]], dtype=bool)
            assert np.array_equal(packed.fetch(i, start, end, cased=True), expected + LOWER * lower)
        flags = np.array([False, *(letter in "Nn" for letter in text), False])
        edges = np.flatnonzero(flags[1:] != flags[:-1]).reshape(-1, 2)
        assert np.array_equal(packed.unknown_runs(i), edges)
        assert np.array_equal(packed.unknown_runs(i, 2), [run for run in edges if run[1] - run[0] >= 2] or edges[:0])
    with pytest.raises(ValueError, match="bases 0 to 64 were asked of record 'short', which has 63"):
        packed.fetch(2, 0, 64)


def test_a_file_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that end anywhere, runs that go on over their ends."""
    monkeypatch.setattr("mamba_seq.data_prep.packed_genomes._PIECE", 7)
    text = masked(letters(300, 5, (0.1, 0.1, 0.1, 0.1, 0.6)), 6)
    (tmp_path / "a.fa").write_text(f">a\n{text}\n>b\nnnn\n>c\nNa\n")
    packed = packed_file(tmp_path / "a.fa", tmp_path / "cache")
    assert DNA.decode(packed.fetch(0, 0, 300)) == text.upper()
    assert [packed.unknown_runs(i).tolist() for i in (1, 2)] == [[[0, 3]], [[0, 1]]]
    assert packed.fetch(2, 0, 2, cased=True).tolist() == [4, LOWER]


def test_it_is_packed_once_and_mended_when_damaged(
    fasta: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed_file(fasta, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = fasta.rename(tmp_path / "renamed.fa")
    packed_file(again, tmp_path / "cache")
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    for name in ("bases.bin", "index.json"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        packed = packed_file(again, tmp_path / "cache")
        assert DNA.decode(packed.fetch(4, 0, 2049)) == texts_of(again)["long"].upper()
    assert "is damaged (bases.bin): it is made again" in caplog.text
    again.write_text(">other\nACGT\n")
    assert packed_file(again, tmp_path / "cache").names == ["other"]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (">a\nACXT\n", BadRecord, "record 'a' has 'X' at position 3, which no DNA code has"),
        (">a\nAC\n>a\nAC\n", NotIndexable, "several records named 'a'"),
        ("", DataError, "empty"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    (tmp_path / "bad.fa").write_text(text)
    with pytest.raises(error, match=message):
        packed_file(tmp_path / "bad.fa", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    folder = tmp_path / "genomes" / "deep"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        text = letters(3000, len(name) + ord(name[0]), (0.25, 0.25, 0.25, 0.25, 0))
        (folder / f"{name}.fa").write_text(f">{name}_1\n{text[:2000]}\n>{name}_2\n{text[2000:]}\n")
    (tmp_path / "single.fa").write_text(f">gaps\n{'ACGT' * 100}{'N' * 40}{'GATT' * 100}{'N' * 5}{'AAAC' * 50}\n")
    paths = [str(tmp_path / "genomes"), str(tmp_path / "single.fa")]
    return Corpus(paths, cache_folder=tmp_path / "cache")


def test_a_corpus_is_of_files_and_folders(corpus: Corpus, tmp_path: Path) -> None:
    assert [(r.label, r.file, r.name, r.length) for r in corpus.records] == [
        ("genomes", "genomes/deep/one.fa", "one_1", 2000),
        ("genomes", "genomes/deep/one.fa", "one_2", 1000),
        ("genomes", "genomes/deep/two.fa", "two_1", 2000),
        ("genomes", "genomes/deep/two.fa", "two_2", 1000),
        ("single.fa", "single.fa", "gaps", 1045),
    ]
    assert corpus.sources == [0, 0, 0, 0, 1]
    fewer = Corpus([str(tmp_path / "genomes")], exclude=["*/two.fa", "one_2"], cache_folder=tmp_path / "cache")
    assert [record.name for record in fewer.records] == ["one_1"]
    (tmp_path / "other").mkdir()
    same = Path(shutil.copytree(tmp_path / "genomes", tmp_path / "other" / "genomes"))
    paths = [str(tmp_path / "genomes"), str(same), str(same)]
    labels = [record.label for record in Corpus(paths, cache_folder=tmp_path / "cache").records[::4]]
    assert labels == [f"{tmp_path.name}/genomes", "other/genomes", "other/genomes.2"]
    with pytest.raises(TooFewData, match="no record is left"):
        Corpus([str(tmp_path / "genomes")], exclude=["*"], cache_folder=tmp_path / "cache")
    with pytest.raises(UnreadableFile, match="neither a file nor a folder"):
        Corpus([str(tmp_path / "gone")], cache_folder=tmp_path / "cache")


def bases_of(splits: Splits) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for interval in splits.intervals:
        found.setdefault(interval.record, Counter())[interval.split] += interval.length
    return found


def test_what_is_held_out(corpus: Corpus, tmp_path: Path) -> None:
    bed = tmp_path / "held_out.bed"
    bed.write_text("# regions\none_1\t100\t300\ttest\none_1\t500\t600\tvalid\ntwo_1\t1900\t2500\n")
    found = bases_of(split_corpus(corpus.records, HeldOut(str(bed), validation_records=["*/two.fa"])))
    assert found == {
        "one_1": {"train": 1700, "test": 200, "validation": 100},
        "two_1": {"train": 1900, "test": 100},
        "two_2": {"validation": 1000},
        "one_2": {"train": 1000},
        "gaps": {"train": 1045},
    }
    bed.write_text("one_1\t0\t1000\ttrain\none_2\t0\t500\ttest\ntwo_2\t0\t10\tvalid\n")
    found = bases_of(split_corpus(corpus.records, HeldOut(str(bed))))
    assert found == {"one_1": {"train": 1000}, "one_2": {"test": 500}, "two_2": {"validation": 10}}
    both = HeldOut(test_records=["gaps"], test_fraction=0.1, validation_fraction=0.0)
    found = bases_of(split_corpus(corpus.records, both))
    assert found["gaps"] == {"test": 1045}
    assert sum(each["test"] for each in found.values()) == 1045 + 600
    fractions = bases_of(split_corpus(corpus.records, HeldOut(test_fraction=0.1, validation_fraction=0.05, seed=3)))
    total = sum(fractions.values(), Counter())
    assert total["test"] == pytest.approx(0.1 * 7045, abs=3)
    assert total["validation"] == pytest.approx(0.05 * 7045, abs=3)
    for text, message in [
        ("one_1\t5\n", "line 1: .*were expected"),
        ("gone\t1\t9\n", "names no base of these records"),
    ]:
        bed.write_text(text)
        with pytest.raises(BadRecord, match=message):
            split_corpus(corpus.records, HeldOut(str(bed)))


def test_runs_of_n_are_skipped(corpus: Corpus) -> None:
    (interval,) = [i for i in split_corpus(corpus.records, HeldOut(None, (), (), 0, 0)).intervals if i.record == "gaps"]
    assert stretches(corpus, [interval], 20) == [Stretch(4, 0, 400), Stretch(4, 440, 1045)]
    assert stretches(corpus, [interval], 5) == [Stretch(4, 0, 400), Stretch(4, 440, 840), Stretch(4, 845, 1045)]
    assert stretches(corpus, [interval], 41, [1.0, 2.5]) == [Stretch(4, 0, 1045, 2.5)]


class Asked:
    """A corpus that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def fetch(self, record: int, start: int, end: int, cased: bool = False) -> Codes:
        self.asked.append((record, start, end))
        return np.zeros(end - start, dtype=np.uint8)


def asked_for(those: list[Stretch], numbers: range, length: int, **options: Any) -> list[tuple[int, int, int]]:
    fake: Any = Asked()
    windows = PretrainingWindows(fake, those, **options)
    for number in numbers:
        assert len(windows.window(number, length)) == length
    return fake.asked


def test_a_round_of_tiles_goes_through_everything_once() -> None:
    those = [Stretch(0, 10, 1010), Stretch(1, 0, 63), Stretch(1, 70, 90)]
    rounds = []
    for turn in range(3):
        # 10 tiles of the first, one of the second, which is padded; the third would fill but a fifth
        found = asked_for(those, range(11 * turn, 11 * turn + 11), 100)
        covered = Counter(base for record, start, end in found if record == 0 for base in range(start, end))
        assert set(covered.values()) == {1}
        assert len(covered) == 1000
        assert [place for place in found if place[0] == 1] == [(1, 0, 63)]
        rounds.append(found)
    assert rounds[0] != rounds[1]
    assert asked_for(those, range(5, 7), 100) == rounds[0][5:7]  # of the number alone
    # what is left over moves from round to round
    found = asked_for([Stretch(0, 0, 150)], range(20), 100)
    assert len(set(found)) > 10
    assert all(0 <= start <= 50 and end == start + 100 for _, start, end in found)


def test_weights_are_how_often_bases_are_read() -> None:
    those = [Stretch(0, 0, 10_000), Stretch(1, 0, 10_000, 2.5), Stretch(2, 0, 10_000, 0.5)]
    for how in ("tiles", "random"):
        found: Counter[int] = Counter()
        for seed in range(20):
            found += Counter(r for r, _, _ in asked_for(those, range(400), 100, how=how, seed=seed))
        assert found[1] / found[0] == pytest.approx(2.5, rel=0.25), how
        assert found[2] / found[0] == pytest.approx(0.5, rel=0.4), how


def test_the_other_strand_keeps_its_case(corpus: Corpus) -> None:
    class Fixed:
        def fetch(self, record: int, start: int, end: int, cased: bool) -> Codes:
            return np.array([0, 1 + LOWER, 2, 4, 3 + LOWER], dtype=np.uint8)

    windows = PretrainingWindows(Fixed(), [Stretch(0, 0, 5)])  # type: ignore[arg-type]
    found = {tuple(windows.window(number, 6).tolist()) for number in range(20)}
    assert found == {(0, 9, 2, 4, 11, 4), (8, 4, 1, 10, 3, 4)}


def data(corpus_paths: list[str], tmp_path: Path, **options: Any) -> PretrainingData:
    made = PretrainingData(PretrainingDataConfig(paths=corpus_paths, cache_folder=str(tmp_path / "cache"), **options))
    made.setup()
    return made


def test_batches_have_as_many_bases_at_every_length(corpus: Corpus, tmp_path: Path) -> None:
    made = data(
        [str(tmp_path / "genomes")],
        tmp_path,
        length=256,
        batch_tokens=1024,
        length_warmup=[64, 128],
        length_warmup_steps=[2, 3],
    )
    batches = made.training_batches()
    shapes = [tuple(batches.batch(step).shape) for step in range(7)]
    assert shapes == [(16, 64)] * 2 + [(8, 128)] * 3 + [(4, 256)] * 2
    later = next(iter(made.training_batches(start_step=4)))
    assert torch.equal(later, batches.batch(4))
    loaded = [batch for batch, _ in zip(made.train_dataloader(), range(3), strict=False)]
    assert all(torch.equal(a, batches.batch(i)) for i, a in enumerate(loaded))
    ranks = [made.training_batches(rank=rank, world_size=2).batch(5) for rank in (0, 1)]
    assert not torch.equal(*ranks)


def test_the_warm_up_of_a_classifier(tmp_path: Path) -> None:
    class Anything:
        seed = 0

        def __getitem__(self, key: tuple[int, int]) -> tuple[Codes, int]:
            return np.full(key[1], key[0] % 251, dtype=np.uint8), 0

    def batches(warmup: LengthWarmup | None) -> TrainingBatches:
        return TrainingBatches(Anything(), [128, 512], 1024, warmup=warmup)  # type: ignore[arg-type]

    plain, warm = batches(None), batches(LengthWarmup([64, 256], [5, 20]))
    drawn = [plain.length_of(step) for step in range(60)]
    assert [warm.length_of(step) for step in range(60)] == [
        min(length, 64 if step < 5 else 256 if step < 25 else 512) for step, length in enumerate(drawn)
    ]
    assert all(warm.batch(step)[0].numel() == 1024 for step in range(30))
    numbers = [number for step in range(10) for number in warm.batch(step)[0][:, 0].tolist()]
    assert len(set(numbers)) == len(numbers)  # no window twice


@pytest.mark.parametrize(("lengths", "steps"), [([64], []), ([128, 64], [1, 1]), ([64], [0])])
def test_a_warm_up_that_is_none(lengths: list[int], steps: list[int]) -> None:
    with pytest.raises(ValueError, match="length_warmup"):
        LengthWarmup(lengths, steps)


def test_held_out_pieces_are_of_held_out_bases(corpus: Corpus, tmp_path: Path) -> None:
    made = data([str(tmp_path / "genomes")], tmp_path, length=100, batch_tokens=400, test_records=["one_2"])
    pieces = made.held_out_pieces("test", 300, 10**9)
    assert sorted(map(len, pieces)) == [100, 300, 300, 300]
    whole = DNA.decode(corpus.fetch(1, 0, 1000))
    assert all(DNA.decode(piece) in whole for piece in pieces)
    assert sum(map(len, made.held_out_pieces("test", 300, 650))) == 650
    paths = [str(tmp_path / "genomes"), str(tmp_path / "single.fa")]
    both = data(paths, tmp_path, length=100, batch_tokens=400, test_records=["one_1", "gaps"])
    assert [both.corpus.sources[place.record] for place in both.held_out_places("test", 300, 1100)] == [1, 0, 1, 0, 0]
    batches = list(padded_batches(pieces, 600))
    assert sorted(i for _, numbers in batches for i in numbers) == [0, 1, 2, 3]
    for batch, numbers in batches:
        for row, i in zip(batch, numbers, strict=True):
            assert np.array_equal(row[: len(pieces[i])], pieces[i])
            assert (row[len(pieces[i]) :] == DNA.unknown_code).all()
    training = {DNA.decode(made.corpus.fetch(s.record, s.start, s.end)) for s in made.stretches("train")}
    assert not any(DNA.decode(piece) in text for piece in pieces for text in training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2.0]}, "data.weights is .* for each of the 1 paths"),
        ({"soft_masked_weight": 2.0}, "soft_masked_weight is 2.0, expected 0 to 1"),
        ({"length": 64, "length_warmup": [128], "length_warmup_steps": [1]}, "expected lengths up to data.length"),
        ({"fill": 0.0}, "data.fill is 0.0"),
    ],
)
def test_fields_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainingDataConfig(paths=["x"], **options)


def test_too_few_bases(corpus: Corpus, tmp_path: Path) -> None:
    made = data([str(tmp_path / "genomes")], tmp_path, length=8192, batch_tokens=8192)
    with pytest.raises(TooFewData, match="no stretch of the training bases fills 50% of a window of 8,192"):
        made.training_batches()
    with pytest.raises(TooFewData, match="no base is left for training"):
        data([str(tmp_path / "genomes")], tmp_path, test_records=["*"])


def test_index_is_small(fasta: Path, tmp_path: Path) -> None:
    packed_file(fasta, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert (folder / "bases.bin").stat().st_size == sum(-(-n // 4) for n in LENGTHS.values())
    assert json.loads((folder / "index.json").read_text())["lengths"] == list(LENGTHS.values())
