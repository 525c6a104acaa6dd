"""What becomes of labelled data: inputs and their alphabet, the task and its targets, splits and their traps."""

from pathlib import Path

import numpy as np
import pytest

from mamba_seq.data_prep.errors import BadRecord, DataError, TooFewData
from mamba_seq.data_prep.labelled import Example, Labelled
from mamba_seq.data_prep.labelled_inputs import choose_reader
from mamba_seq.data_prep.labelled_report import describe
from mamba_seq.data_prep.labelled_splits import assign_splits
from mamba_seq.data_prep.labelled_targets import infer_task, make_targets
from tests.data_prep.test_labelled import read, table, write


@pytest.mark.parametrize(
    ("sequences", "alphabet"),
    [
        (["ACGTN", "acgr"], "dna"),
        (["ACGU"], "rna"),
        (["MKVLAWDEFGHIKSTPQRY"], "protein"),
        (["MKVLAWDEFG*", "HIKSTPQRY*"], "protein"),
        (["abAB[]"], "symbols:AB[]ab"),
        (["1 2 3", "4 0"], None),
    ],
)
def test_alphabets_are_recognised(sequences: list[str], alphabet: str | None, tmp_path: Path) -> None:
    text = "sequence,label\n" + "".join(f"{s},{i}\n" for i, s in enumerate(sequences))
    examples = read(write(tmp_path / "t.csv", text)).examples
    reader = choose_reader(examples)
    assert reader.alphabet == alphabet
    codes = [reader.encode(e) for e in examples]
    assert max(c.max() for c in codes) < (reader.vocab_size or 0)


def test_whole_numbers_are_tokens_unless_negative_or_said_otherwise(tmp_path: Path) -> None:
    for low, asked, features in ((0, None, None), (-2, None, 1), (0, "numbers", 1)):
        np.save(tmp_path / "a.npy", np.arange(low, low + 6).reshape(2, 3))
        examples = read(tmp_path / "a.npy").examples
        reader = choose_reader(examples, asked)
        assert reader.input_features == features
        assert len(reader.encode(examples[1])) == 3


def test_numbers_in_a_cell_are_as_long_as_there_are_numbers(tmp_path: Path) -> None:
    tokens = table(tmp_path, ["10 11 3,HEH", "7,H", "4 10,EE"])
    assert [e.length for e in tokens.examples] == [3, 1, 2]
    assert make_targets(tokens, "token-classification").values[0].tolist() == [1, 0, 1]
    readings = table(tmp_path, ["1.5 -2 3,x", ",z", "1 2,y"])
    assert [np.asarray(e.sequence).tolist() for e in readings.examples] == [[[1.5], [-2], [3]], [], [[1], [2]]]
    assert [e.sequence for e in table(tmp_path, ["1 x 3,x", "1 2,y"]).examples] == ["1x3", "1 2"]


def test_a_wrong_letter_is_named_with_its_position(tmp_path: Path) -> None:
    examples = read(write(tmp_path / "t.csv", "id,sequence,label\nk,ACGTACGTACGJ,1\n")).examples
    with pytest.raises(BadRecord, match=r"t.csv, line 2: 'J' at position 12 of 'k' is no letter of the alphabet 'dna'"):
        choose_reader(examples).encode(examples[0])


@pytest.mark.parametrize(
    ("cells", "task", "labels"),
    [
        ([("10",), ("9",), ("2",), ("9",)], "sequence-classification", ["2", "9", "10"]),
        ([("0.5",), ("1",), ("2",)], "sequence-regression", ["value"]),
        ([("a;b",), ("b",), ("-",)], "multi-label", ["a", "b"]),
        ([("HHHEE",), ("EEEHH",), ("HEHEH",)], "token-classification", ["E", "H"]),
        ([(f"{i}",) for i in range(40)], "sequence-regression", ["value"]),
        ([(f"w{i}",) for i in range(60)], "ctc", None),
        ([None, None], "language-model", []),
    ],
)
def test_the_task_is_seen_from_the_labels(cells: list[tuple[str, ...] | None], task: str, labels: object) -> None:

    data = Labelled("test", [Example(str(i), "ACGTA", label) for i, label in enumerate(cells)])
    assert infer_task(data) == task
    if labels is not None:
        assert make_targets(data, task).labels == labels


def test_splits_keep_groups_and_equal_sequences_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(150)]
    rows = [f"{s},{i % 3},g{i // 3}" for i, s in enumerate(sequences)] + [
        f"{sequences[0].lower()},0,g49",
        "ACACACAC,9,g7",
    ]
    data = table(tmp_path, rows, "sequence,label,group")
    targets = make_targets(data, "sequence-classification")
    first = assign_splits(data.examples, targets, seed=3)
    assert first.splits == assign_splits(data.examples, targets, seed=3).splits
    assert first.splits != assign_splits(data.examples, targets, seed=4).splits
    assert all(8 <= first.splits.count(split) <= 25 for split in ("test", "validation"))
    by_group: dict[str, set[str]] = {}
    for e, split in zip(data.examples, first.splits, strict=True):
        by_group.setdefault(e.group, set()).add(split)
    assert all(len(each) == 1 for each in by_group.values())
    assert by_group["g0"] == by_group["g49"]  # they share a sequence
    assert any("'9' has" in warning for warning in first.warnings) or first.splits[-1] == "train"


def test_three_large_groups_are_one_a_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("ACGT"), 20)) + f",{'ab'[i % 2]},chr{1 + (i >= 19) + (i >= 39)}" for i in range(60)]
    data = table(tmp_path, rows, "sequence,label,group")
    targets = make_targets(data, "sequence-classification")
    sizes = {group: sum(e.group == group for e in data.examples) for group in ("chr1", "chr2", "chr3")}
    assigned = assign_splits(data.examples, targets)
    found = {(e.group, split) for e, split in zip(data.examples, assigned.splits, strict=True)}
    assert len(found) == 3
    assert {split for _, split in found} == {"train", "validation", "test"}
    smallest = min(sizes, key=lambda group: sizes[group])
    assert (smallest, "test") in found
    assert any(f"test is {sizes[smallest]} of 60 examples that must stay together" in w for w in assigned.warnings)
    two = table(tmp_path, [row for row in rows if not row.endswith("chr3")], "sequence,label,group")
    with pytest.raises(TooFewData, match=r"make no test split.*leaves 2 parts"):
        assign_splits(two.examples, make_targets(two, "sequence-classification"))


def test_given_splits_and_their_traps(tmp_path: Path) -> None:
    rows = ["ACGT,a,train", "ACGA,b,train", "acgt,a,test", "AGGT,b,dev", "ATGT,a,val"]
    data = table(tmp_path, rows, "sequence,label,split")
    targets = make_targets(data, "sequence-classification")
    assigned = assign_splits(data.examples, targets)
    assert assigned.how == "as the data say"
    assert any("1 sequences stand in both train and test" in w and "line 2 and" in w for w in assigned.warnings)
    lines = describe(data, choose_reader(data.examples), targets, assigned)
    assert "5 sequences (a table) of 4 to 4 positions" in lines[0]
    assert "a 3, b 2" in lines[2]
    unseen = table(tmp_path, [*rows, "AAAA,c,test"], "sequence,label,split")
    with pytest.raises(DataError, match=r"class 'c' has no training example, only 1 of validation or test .*line 7"):
        assign_splits(unseen.examples, make_targets(unseen, "sequence-classification"))
    partly = table(tmp_path, [*rows, "AAAA,a,"], "sequence,label,split")
    with pytest.raises(DataError, match="line 7 names no split, others do"):
        assign_splits(partly.examples, make_targets(partly, "sequence-classification"))
    lonely = table(tmp_path, [f"{'ACGT'[i % 4] * (i + 1)},{'ab'[i % 2]}" for i in range(20)] + ["CCCCG,z"])
    assigned = assign_splits(lonely.examples, make_targets(lonely, "sequence-classification"))
    assert assigned.splits[-1] == "train"
    assert any("class 'z' has one member" in w for w in assigned.warnings)


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    data = table(tmp_path, ["ACGT,HH", "ACGA,HHHH"])
    with pytest.raises(BadRecord, match=r"line 2: 2 labels came for 4 positions"):
        make_targets(data, "token-classification")
    with pytest.raises(BadRecord, match=r"line 2: 'HH' came as a number to learn"):
        make_targets(data, "sequence-regression")
    with pytest.raises(
        BadRecord, match=r"line 3: a text of 4 symbols came for a sequence of 4 positions; ctc needs.*7"
    ):
        make_targets(table(tmp_path, ["ACGTACGT,HH", "ACGA,HHHH"]), "ctc")
    with pytest.raises(TooFewData, match="all examples are of 'x'; two classes"):
        make_targets(table(tmp_path, ["ACGT,x"]), "sequence-classification")
