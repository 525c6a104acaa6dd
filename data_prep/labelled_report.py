"""What labelled data are, in a few lines that a person reads before anything is trained."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mamba_seq.data_prep.labelled import Example, Labelled
from mamba_seq.data_prep.labelled_inputs import Reader
from mamba_seq.data_prep.labelled_splits import Assigned, sequence_key
from mamba_seq.data_prep.labelled_targets import Targets
from mamba_seq.data_prep.splits import SPLITS

SHOWN = 12
UNBALANCED = 10


def describe(data: Labelled, reader: Reader, targets: Targets, assigned: Assigned) -> list[str]:
    """Return lines on counts, lengths, letters, classes, their balance, duplicates and splits."""
    examples = data.examples
    lengths = np.array([e.length for e in examples])
    lines = [
        f"{len(examples):,} sequences ({data.kind}) of {lengths.min():,} to {lengths.max():,} positions, "
        f"median {int(np.median(lengths)):,}"
    ]
    lines.append(_letters(examples, reader))
    lines.append(f"task {targets.task}{_labels(targets)}")
    counts = Counter(assigned.splits)
    lines.append(f"splits {assigned.how}: " + ", ".join(f"{split} {counts[split]:,}" for split in SPLITS))
    lines += _duplicates(examples, targets)
    return lines


def _letters(examples: Sequence[Example], reader: Reader) -> str:
    if reader.input_features is not None:
        return f"{reader.input_features} numbers a position, brought to mean 0 and standard deviation 1"
    if reader.alphabet is None:
        return f"integer tokens 0 to {(reader.vocab_size or 1) - 1}"
    counts: Counter[str] = Counter()
    for e in examples:
        counts.update(str(e.sequence).upper() if reader.alphabet in ("dna", "rna", "protein") else str(e.sequence))
    total = max(1, sum(counts.values()))
    most = ", ".join(f"{letter} {n / total:.1%}" for letter, n in counts.most_common(SHOWN))
    return f"alphabet {reader.alphabet.split(':')[0]}: {most}{' and more' if len(counts) > SHOWN else ''}"


def _labels(targets: Targets) -> str:
    if targets.task == "sequence-classification":
        counts = Counter(v for v in targets.values if v is not None)
        named = [f"{targets.labels[i]} {n:,}" for i, n in sorted(counts.items())]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        odds = max(counts.values()) / max(1, min(counts.values()))
        balance = f"; unbalanced, {odds:.0f} to 1: look at F1 and MCC" if odds > UNBALANCED else ""
        return f", {len(named)} classes: {', '.join(named[:SHOWN])}{more}{balance}"
    if targets.task == "multi-label":
        sums = np.sum([v for v in targets.values if v is not None], axis=0).astype(int)
        return f", {len(targets.labels)} labels: " + ", ".join(
            f"{name} {n:,}" for name, n in list(zip(targets.labels, sums, strict=True))[:SHOWN]
        )
    if targets.task.endswith("regression"):
        return ": " + ", ".join(
            f"{name} {mean:.4g} +- {scale:.4g}"
            for name, mean, scale in zip(targets.labels, targets.mean, targets.scale, strict=True)
        )
    if targets.task == "token-classification":
        places = np.concatenate([v for v in targets.values if v is not None])
        return f", {len(targets.labels)} classes of positions: " + ", ".join(
            f"{name} {np.mean(places == i):.1%}" for i, name in enumerate(targets.labels[:SHOWN])
        )
    if targets.task == "ctc":
        return f", texts of {len(targets.labels)} symbols: {''.join(targets.labels)[:60]!r}"
    return ", the next token"


def _duplicates(examples: Sequence[Example], targets: Targets) -> list[str]:
    same: dict[object, list[int]] = {}
    for i, e in enumerate(examples):
        same.setdefault(sequence_key(e), []).append(i)
    repeated = [places for places in same.values() if len(places) > 1]
    lines = []
    if repeated:
        lines.append(f"{sum(map(len, repeated)) - len(repeated):,} sequences repeat an earlier one")
    if targets.task == "sequence-classification":
        torn = [p for p in repeated if len({targets.values[i] for i in p}) > 1]
        if torn:
            a, b = torn[0][0], next(i for i in torn[0] if targets.values[i] != targets.values[torn[0][0]])
            lines.append(
                f"{len(torn)} sequences stand under two labels, such as {examples[a].where} and {examples[b].where}"
            )
    names = Counter(e.id for e in examples)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        lines.append(f"{len(twice)} ids stand more than once, such as {twice[0]!r}")
    return lines
