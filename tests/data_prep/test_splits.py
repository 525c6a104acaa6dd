from collections import defaultdict

import numpy as np
import pytest

from mamba_seq.data_prep.errors import BadRecord, TooFewData
from mamba_seq.data_prep.genomes import GenomeRecord
from mamba_seq.data_prep.splits import Interval, Splits, split_by_record, split_by_region


def random_records(seed: int) -> list[GenomeRecord]:
    rng = np.random.default_rng(seed)
    records = []
    for label in "abc"[: rng.integers(1, 4)]:
        for file in range(rng.integers(1, 4)):
            many = int(rng.choice([1, 3, 40]))
            for i in range(many):
                length = int(rng.integers(0, 10 ** int(rng.integers(2, 7))))
                records.append(GenomeRecord(label, f"{label}/{file}.fa", f"r{i}", length))
    return records


def covered(splits: Splits, records: list[GenomeRecord]) -> None:
    """Every base of every record is in exactly one interval."""
    by_record = defaultdict(list)
    for interval in splits.intervals:
        by_record[interval.file, interval.record].append((interval.start, interval.end))
    assert set(by_record) == {(record.file, record.name) for record in records if record.length}
    for record in records:
        at = 0
        for start, end in sorted(by_record.get((record.file, record.name), [])):
            assert start == at < end
            at = end
        assert at == record.length


@pytest.mark.parametrize("seed", range(60))
def test_a_split_by_region_takes_every_base_once(seed: int) -> None:
    records = random_records(seed)
    rng = np.random.default_rng(seed)
    test, validation = float(rng.choice([0.0, 0.1, 0.3])), float(rng.choice([0.0, 0.05, 0.3]))
    regions = int(rng.integers(1, 4))
    splits = split_by_region(records, test, validation, seed, regions)
    covered(splits, records)
    assert splits == split_by_region(records, test, validation, seed, regions)
    for file in {record.file for record in records}:
        its = [record for record in records if record.file == file]
        total, longest = sum(r.length for r in its), max(r.length for r in its)
        held = {s: sum(i.length for i in splits.of(s) if i.file == file) for s in ("test", "validation")}
        if (test + validation) * total + 2 * regions < 0.9 * longest:
            assert abs(held["test"] - test * total) <= regions
            assert abs(held["validation"] - validation * total) <= regions
            assert sum(i.file == file for i in splits.of("test")) <= regions


def test_a_region_is_contiguous_moves_with_the_seed_and_not_with_other_genomes() -> None:
    records = [GenomeRecord("a", "a/1.fa", "chr", 100_000), GenomeRecord("a", "a/1.fa", "plasmid", 1000)]
    one, other = split_by_region(records, seed=1), split_by_region(records, seed=2)
    assert [i.length for i in one.of("test")] == [10_100]
    assert one.of("test") != other.of("test")
    more = split_by_region([GenomeRecord("0", "0/0.fa", "x", 5000), *records], seed=1)
    assert [i for i in more.intervals if i.label == "a"] == list(one.intervals)


def test_a_file_of_short_contigs_gives_whole_records() -> None:
    records = [GenomeRecord("a", "a/1.fa", f"c{i}", 100) for i in range(100)]
    splits = split_by_region(records, 0.1, 0.05)
    assert {s: len(splits.of(s)) for s in ("train", "validation", "test")} == {"train": 85, "validation": 5, "test": 10}
    assert all(interval.length == 100 for interval in splits.intervals)


@pytest.mark.parametrize("seed", range(20))
def test_a_split_by_record_takes_whole_records(seed: int) -> None:
    records = random_records(seed)
    splits = split_by_record(records, ["r0"], test_fraction=0.2, validation_fraction=0.1, seed=seed)
    covered(splits, records)
    assert {i.split for i in splits.intervals if i.record == "r0"} <= {"test"}
    lengths = {(record.file, record.name): record.length for record in records}
    assert all(interval.length == lengths[interval.file, interval.record] for interval in splits.intervals)


def test_records_are_held_out_by_name_and_by_file() -> None:
    records = [GenomeRecord("a", f"a/{s}.fa", f"{s}_chr{n}", 10) for s in ("s1", "s2") for n in ("I", "IV", "V")]
    splits = split_by_record(records, test_records=["*_chrIV"], validation_records=["a/s2.fa"])
    assert [(i.record, i.split) for i in splits.intervals] == [
        ("s1_chrI", "train"),
        ("s1_chrIV", "test"),
        ("s1_chrV", "train"),
        ("s2_chrI", "validation"),
        ("s2_chrIV", "test"),
        ("s2_chrV", "validation"),
    ]
    with pytest.raises(TooFewData, match="no record or file matches 'chrX'; there are s1_chrI"):
        split_by_record(records, ["chrX"])


def test_the_table_round_trips_and_is_checked() -> None:
    records = random_records(3)
    splits = split_by_region(records)
    text = splits.to_tsv()
    assert text.startswith("label\tfile\trecord\tstart\tend\tsplit\n")
    again = Splits.from_tsv(text)
    assert again == splits
    again.check_against(records)
    with pytest.raises(BadRecord, match="no such record"):
        again.check_against(records[1:])
    for bad, message in (
        (text.replace("label", "class"), "has the columns"),
        (text.replace("train", "training"), "line 2: split 'training' came"),
        (text + "a\ta/0.fa\tr0\tone\t5\ttest\n", "whole numbers"),
        ("label\tfile\trecord\tstart\tend\tsplit\na\tf\tr\t0\t5\ttrain\na\tf\tr\t4\t9\ttest\n", "overlap"),
    ):
        with pytest.raises(BadRecord, match=message):
            Splits.from_tsv(bad)
    with pytest.raises(BadRecord, match="start < end"):
        Splits((Interval("a", "f", "r", 5, 5, "test"),))


@pytest.mark.parametrize("fractions", [(0.6, 0.4), (-0.1, 0.1)])
def test_impossible_fractions(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="together below 1"):
        split_by_region([], *fractions)
