import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mamba_seq.data_prep.alphabet import decode, encode, reverse_complement
from mamba_seq.data_prep.augmentation import Augmentation
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.genome_windows import (
    GenomeWindows,
    Places,
    TrainingBatches,
    evaluation_windows,
)
from mamba_seq.data_prep.genomes import Genomes
from mamba_seq.data_prep.splits import SPLITS, Splits, split_by_record, split_by_region

Letters = dict[tuple[str, str], str]
PLAIN = Augmentation(reverse_complement=False, mask_probability=0.0)


@pytest.fixture
def genomes(genome_folder: tuple[Path, Letters]) -> Genomes:
    return Genomes(genome_folder[0])


def batches(genomes: Genomes, start: int = 0, seed: int = 5, rank: int = 0, world_size: int = 1) -> TrainingBatches:
    places = Places(genomes, split_by_region(genomes.records).of("train"))
    windows = GenomeWindows(places, Augmentation(), seed)
    return TrainingBatches(windows, [63, 1000, 2049], 6000, None, start, rank, world_size)


@pytest.mark.parametrize("seed", range(5))
def test_no_window_leaves_its_split(genomes: Genomes, seed: int) -> None:
    splits = split_by_region(genomes.records, 0.2, 0.2, seed, regions=2)
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        places = Places(genomes, splits.of(split))
        for length in (1, 63, 1000):
            for _ in range(100):
                place, codes, label = places.sample(rng, length)
                record = genomes.records[place.record]
                assert genomes.labels[label] == record.label
                holding = [
                    interval
                    for interval in splits.intervals
                    if (interval.file, interval.record) == (record.file, record.name)
                    and interval.start < place.start + length
                    and place.start < interval.end
                ]
                assert [interval.split for interval in holding] == [split]
                assert len(codes) == length


def test_windows_are_what_the_files_hold(genomes: Genomes, genome_folder: tuple[Path, Letters]) -> None:
    places = Places(genomes, split_by_region(genomes.records).of("train"))
    place, codes, _ = places.sample(np.random.default_rng(0), 100)
    record = genomes.records[place.record]
    assert decode(codes) == genome_folder[1][record.file, record.name][place.start : place.start + 100]


def test_classes_are_drawn_alike_and_records_by_length_or_alike(genomes: Genomes) -> None:
    intervals = split_by_record(genomes.records).of("train")
    rng = np.random.default_rng(0)
    counts = {}
    for draw in ("length", "uniform"):
        places = Places(genomes, intervals, draw)  # type: ignore[arg-type]
        drawn = [places.sample(rng, 63) for _ in range(6000)]
        classes = Counter(label for _, _, label in drawn)
        assert all(abs(classes[label] - 2000) < 200 for label in range(3))
        counts[draw] = Counter(genomes.records[place.record].name for place, _, label in drawn if label == 1)
    assert counts["length"]["b2"] < 350 < 800 < counts["uniform"]["b2"]


def test_a_window_depends_on_the_seed_and_its_number_alone(genomes: Genomes) -> None:
    places = Places(genomes, split_by_region(genomes.records).of("train"))
    one, two, other = (GenomeWindows(places, Augmentation(), seed) for seed in (1, 1, 2))
    for number in (7, 0, 10**9):
        np.testing.assert_array_equal(one[number, 500][0], two[number, 500][0])
        assert not np.array_equal(one[number, 500][0], other[number, 500][0])
    assert not np.array_equal(one[1, 500][0], one[2, 500][0])


def test_augmentation_reads_the_other_strand_and_masks() -> None:
    codes = encode("ACGTTGCA" * 200 + "A")
    rng = np.random.default_rng(0)
    turned = [Augmentation(True, 0.0)(codes, rng) for _ in range(200)]
    assert all(decode(t) in (decode(codes), decode(reverse_complement(codes))) for t in turned)
    assert 60 < sum(np.array_equal(t, codes) for t in turned) < 140
    masked = [Augmentation(False, 0.5, 0.2)(codes, rng) for _ in range(200)]
    parts = np.array([np.mean(m != codes) for m in masked])
    assert 60 < (parts > 0).sum() < 140
    assert 0.15 < parts.max() < 0.25
    assert all(set(m[m != codes].tolist()) <= {4} for m in masked)
    assert decode(codes[:4]) == "ACGT"


def test_mutations_to_own_letters_keep_the_composition() -> None:
    rng = np.random.default_rng(0)
    codes = encode("AATTCANT" * 500)
    before = codes.copy()
    counts = np.bincount(codes, minlength=5)
    own = [Augmentation(False, 0.0, 0.0, 0.2, "own")(codes, rng) for _ in range(50)]
    any_ = [Augmentation(False, 0.0, 0.0, 0.2)(codes, rng) for _ in range(50)]
    np.testing.assert_array_equal(codes, before)
    assert all(np.array_equal(np.bincount(m, minlength=5), counts) for m in own)
    assert all((m[codes == 4] == 4).all() for m in (*own, *any_))
    changed = [np.mean(m != codes) for m in own]
    assert 0.1 < max(changed) < 0.2  # some letters of a window are the same, and changing places shows nothing
    assert np.mean([np.bincount(m, minlength=5)[2] for m in any_]) > 20 + counts[2]  # G, of which there was none


def test_batches_have_one_length_and_the_same_number_of_tokens(genomes: Genomes) -> None:
    stream = batches(genomes)
    shapes = set()
    for tokens, labels in itertools.islice(stream, 30):
        assert tokens.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert len(tokens) == len(labels) == 6000 // tokens.shape[1]
        shapes.add(tuple(tokens.shape))
    assert shapes == {(95, 63), (6, 1000), (2, 2049)}


def test_weights_choose_the_lengths(genomes: Genomes) -> None:
    stream = batches(genomes)
    weighted = TrainingBatches(stream.windows, [63, 1000], 6000, [3.0, 1.0])
    drawn = Counter(weighted.length_of(step) for step in range(2000))
    assert abs(drawn[63] - 1500) < 120


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_where_it_stopped_with_any_number_of_workers(genomes: Genomes, workers: int) -> None:
    whole = list(itertools.islice(batches(genomes), 9))
    loader = DataLoader(batches(genomes, start=4), batch_size=None, num_workers=workers)
    rest = list(itertools.islice(loader, 5))
    for (tokens, labels), (expected, expected_labels) in zip(rest, whole[4:], strict=True):
        assert torch.equal(tokens, expected)
        assert torch.equal(labels, expected_labels)


def test_processes_share_lengths_and_nothing_else(genomes: Genomes) -> None:
    one, two = (batches(genomes, rank=rank, world_size=2).batch(3)[0] for rank in (0, 1))
    assert one.shape == two.shape
    assert not torch.equal(one, two)


def test_evaluation_windows_are_fixed_balanced_and_count_what_is_disjoint(genomes: Genomes) -> None:
    splits = split_by_region(genomes.records)
    one, two = (evaluation_windows(genomes, splits.of("test"), 400, 7, seed=3) for _ in range(2))
    assert one.places == two.places
    assert one.labels == [0] * 7 + [1] * 7 + [2] * 7
    assert len(one) == 21
    lengths = {label: [i.length for i in splits.of("test") if i.label == label] for label in genomes.labels}
    assert one.disjoint == {label: sum(n // 400 for n in those) for label, those in lengths.items()}
    codes, label = one[8]
    assert (len(codes), label) == (400, 1)


def test_windows_of_mostly_n_are_drawn_again_or_refused(tmp_path: Path, write_fasta: Callable[..., Path]) -> None:
    some = "ACGTTGCA" * 50 + "N" * 400 + "ACGTTGCA" * 50
    write_fasta(tmp_path / "g" / "a" / "x.fa", {"some": some})
    genomes = Genomes(tmp_path / "g")
    places = Places(genomes, split_by_record(genomes.records).of("train"))
    rng = np.random.default_rng(0)
    assert max(np.mean(places.sample(rng, 100)[1] == 4) for _ in range(300)) <= 0.2
    write_fasta(tmp_path / "g" / "a" / "x.fa", {"gaps": "N" * 500})
    genomes = Genomes(tmp_path / "g")
    with pytest.raises(TooFewData, match=r"record 'gaps' of a/x\.fa"):
        Places(genomes, split_by_record(genomes.records).of("train")).sample(rng, 100)


def test_a_class_without_a_long_enough_stretch_is_named(genomes: Genomes) -> None:
    splits = split_by_region(genomes.records)
    with pytest.raises(TooFewData, match=r"class 'beta' has no stretch of 5000 bases in .* longest has 3300"):
        evaluation_windows(genomes, splits.of("test"), 5000, 3)
    with pytest.raises(TooFewData, match="its longest has 0"):
        evaluation_windows(genomes, Splits(()).of("test"), 5, 3)


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [([], None, "lengths"), ([0], None, "lengths"), ([7000], None, "batch_tokens = 6000"), ([5], [1.0, 2.0], "weight")],
)
def test_impossible_lengths(genomes: Genomes, lengths: list[int], weights: list[float] | None, message: str) -> None:
    windows = batches(genomes).windows
    with pytest.raises(ValueError, match=message):
        TrainingBatches(windows, lengths, 6000, weights)
