"""Which examples are for training, validation and test: as the data say, or made by seed.

Examples of one group, and those with the same sequence, stay together. Classes keep their shares in each split as far
as that lets them; a class of one member stays in training.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from mamba_seq.data_prep.errors import DataError, TooFewData
from mamba_seq.data_prep.labelled import Example
from mamba_seq.data_prep.labelled_targets import Targets
from mamba_seq.data_prep.splits import SPLITS, Split


@dataclasses.dataclass
class Assigned:
    """The split of each example, and what a person must know about it."""

    splits: list[Split]
    how: str
    warnings: list[str]


def assign_splits(
    examples: Sequence[Example], targets: Targets, test: float = 0.1, validation: float = 0.1, seed: int = 0
) -> Assigned:
    """Return the split of each example.

    Raises:
        DataError: Some rows name a split and some do not, a split is empty, or one to measure on has a class that
            training lacks.
    """
    given = [e.split for e in examples]
    if any(given) and not all(given):
        missing = next(e for e in examples if e.split is None)
        raise DataError(f"{missing.where} names no split, others do; name one in every row, or in none")
    splits: list[Split] = [s or "train" for s in given]
    present = set(splits) if all(given) else set()
    wanted: list[tuple[Split, float]] = [("test", test), ("validation", validation)]
    made = [(split, part) for split, part in wanted if split not in present]
    rng = np.random.default_rng(seed)
    total = len(splits)
    warnings = []
    for split, part in made:
        _carve(splits, examples, targets, split, max(1, round(part * total)), rng)
        if split not in splits and _take_one(splits, examples, targets, split):
            warnings.append(
                f"{split} is {splits.count(split)} of {total} examples that must stay together: no fewer were to be had"
            )
    warnings += across(examples, splits)
    for split in SPLITS:
        if split not in splits:
            raise TooFewData(
                f"{total} examples make no {split} split: those of one group (in BED and GenBank, a sequence) and "
                f"equal ones stay together, which leaves {len(clusters(examples))} parts; give more, or name splits or "
                "groups yourself, in columns `split` or `group`"
            )
    warnings += _check_classes(examples, targets, splits)
    groups = " by group" if any(e.group for e in examples) else " by record"
    how = "as the data say" if not made else f"{' and '.join(s for s, _ in made)} made{groups} with seed {seed}"
    return Assigned(splits, how, warnings)


def clusters(examples: Sequence[Example]) -> list[list[int]]:
    """Return what must stay together: the numbers of examples that share a group or a sequence."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[object, int] = {}
    for i, e in enumerate(examples):
        for key in (sequence_key(e), *([("group", e.group)] if e.group else [])):
            j = first.setdefault(key, i)
            parent[root(i)] = root(j)
    found: dict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        found[root(i)].append(i)
    return list(found.values())


def sequence_key(example: Example) -> object:
    """Return what equal sequences share; the case of letters does not matter."""
    sequence = example.sequence
    return sequence.upper() if isinstance(sequence, str) else (sequence.shape, sequence.tobytes())


def across(examples: Sequence[Example], splits: Sequence[Split]) -> list[str]:
    """Return a warning for each pair of splits that the same sequence stands in."""
    seen: dict[object, dict[Split, int]] = defaultdict(dict)
    for i, e in enumerate(examples):
        seen[sequence_key(e)].setdefault(splits[i], i)
    pairs: dict[tuple[Split, Split], list[tuple[int, int]]] = defaultdict(list)
    for places in seen.values():
        ordered = [s for s in SPLITS if s in places]
        for n, a in enumerate(ordered):
            for b in ordered[n + 1 :]:
                pairs[a, b].append((places[a], places[b]))
    return [
        f"{len(found)} sequences stand in both {a} and {b}, such as {examples[found[0][0]].where} and "
        f"{examples[found[0][1]].where}: what is measured on {b} is too good"
        for (a, b), found in pairs.items()
    ]


def _carve(
    splits: list[Split],
    examples: Sequence[Example],
    targets: Targets,
    split: Split,
    count: int,
    rng: np.random.Generator,
) -> None:
    """Move clusters of training examples to a split, from each class its share."""
    pools: dict[object, list[list[int]]] = defaultdict(list)
    for cluster in clusters(examples):
        if all(splits[i] == "train" for i in cluster):
            pools[_stratum(targets, cluster[0])].append(cluster)
    size = sum(splits[i] == "train" for i in range(len(splits)))
    left = Counter(_stratum(targets, i) for i, s in enumerate(splits) if s == "train")
    for stratum in sorted(pools, key=str):
        pool = pools[stratum]
        members = sum(map(len, pool))
        wanted = count * members / max(1, size)
        taken = 0
        order = rng.permutation(len(pool))
        for place in order[: len(pool) - 1]:  # one always stays in training
            cluster = pool[place]
            if taken + len(cluster) / 2 > wanted and (taken or wanted < 0.5):
                break
            leaving = Counter(_stratum(targets, i) for i in cluster)
            if taken + len(cluster) > 2 * wanted + 1 or any(left[c] <= n for c, n in leaving.items()):
                continue
            left -= leaving
            taken += len(cluster)
            for i in cluster:
                splits[i] = split


def _take_one(splits: list[Split], examples: Sequence[Example], targets: Targets, split: Split) -> bool:
    """Move the smallest cluster of training examples without which training keeps every class, if others are left."""
    pool = [cluster for cluster in clusters(examples) if all(splits[i] == "train" for i in cluster)]
    left = Counter(_stratum(targets, i) for i, s in enumerate(splits) if s == "train")
    still = 1 + ("validation" not in splits and split == "test")  # parts for what is not made yet
    if len(pool) <= still:
        return False
    for cluster in sorted(pool, key=len):
        leaving = Counter(_stratum(targets, i) for i in cluster)
        if all(left[c] > n for c, n in leaving.items()):
            for i in cluster:
                splits[i] = split
            return True
    return False


def _stratum(targets: Targets, i: int) -> object:
    return targets.values[i] if targets.task == "sequence-classification" else None


def _check_classes(examples: Sequence[Example], targets: Targets, splits: Sequence[Split]) -> list[str]:
    if targets.task != "sequence-classification":
        return []
    counts = {split: Counter(v for v, s in zip(targets.values, splits, strict=True) if s == split) for split in SPLITS}
    warnings = []
    for number, name in enumerate(targets.labels):
        total = sum(count[number] for count in counts.values())
        if not counts["train"][number]:
            i = targets.values.index(number)
            raise DataError(
                f"class {name!r} has no training example, only {total} of validation or test (first "
                f"{examples[i].where}); "
                "move some to training, or leave the class out"
            )
        if total == 1:
            warnings.append(f"class {name!r} has one member, which is trained on and never tested")
        elif not counts["test"][number]:
            warnings.append(f"class {name!r} has {total} members, none of them for the test")
    return warnings
