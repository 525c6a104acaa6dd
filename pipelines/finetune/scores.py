"""How good predictions are: the metrics of each task through torchmetrics, with bootstrap intervals.

    classes (also a position)   accuracy, balanced accuracy, F1 (macro), MCC, AUROC
    several labels              F1 (micro, macro), AUROC, average precision
    regression                  Spearman, Pearson, R2, mean absolute error
    ctc                         word error rate, character error rate
    language model              bits a token

An interval is the 2.5th to 97.5th percentile over samples of the examples with replacement; groups are drawn whole.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_seq.data_prep.labelled_targets import Targets

RESAMPLES = 200
Metrics = dict[str, float]


def quick_score(targets: Targets, results: Sequence[Any], values: Sequence[Any]) -> Metrics:
    """Return the metrics that a run is steered by, the first of which is improved; none for those steered by the
    loss.
    """
    if targets.task == "sequence-classification":
        truth, found = torch.tensor(values), torch.tensor(np.array(results))
        return {"mcc": _mcc(found.argmax(1), truth, len(targets.labels)), "accuracy": _accuracy(found.argmax(1), truth)}
    if targets.task == "ctc":
        return _error_rates(*_texts(targets, results, values))
    return {}


def measure(
    targets: Targets, results: Sequence[Any], values: Sequence[Any], groups: Sequence[str], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return value, low and high of each metric of the task.

    Args:
        targets: whose task, labels and scale they are.
        results: as `predictions.predict_inputs` gives them.
        values: the targets, standardised as they were learnt.
        groups: of each example; "" for none.
        seed: of the bootstrap.
    """
    score = _scorer(targets, results, values)
    everything = np.arange(len(results))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics says so when a sample lacks a class
        point = score(everything)
        members: dict[str, list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault(group or f"\0{i}", []).append(i)
        units = [np.array(each) for each in members.values()]
        rng = np.random.default_rng(seed)
        samples = [
            score(np.concatenate([units[u] for u in rng.integers(0, len(units), len(units))])) for _ in range(RESAMPLES)
        ]
    table = {}
    for name, value in point.items():
        drawn = np.array([sample[name] for sample in samples])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        table[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return table


def to_json(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return the table with None for what no example says, such as an area with one class: JSON has no NaN."""
    return {
        name: {key: value if np.isfinite(value) else None for key, value in row.items()} for name, row in table.items()
    }


def confusion_of(targets: Targets, results: Sequence[Any], values: Sequence[Any]) -> NDArray[np.int64] | None:
    """Return counts (labels, labels), truth down, of classes; None for other tasks."""
    if not targets.task.endswith("classification"):
        return None
    classes = len(targets.labels)
    if targets.task == "token-classification":
        truth, found = np.concatenate(list(values)), np.concatenate([r.argmax(1) for r in results])
        truth, found = truth[truth >= 0], found[truth >= 0]
    else:
        truth, found = np.array(values), np.array([r.argmax() for r in results])
    return np.bincount(truth * classes + found, minlength=classes * classes).reshape(classes, classes)


def _scorer(targets: Targets, results: Sequence[Any], values: Sequence[Any]) -> Callable[[NDArray[np.int64]], Metrics]:
    task, labels = targets.task, len(targets.labels)
    if task == "sequence-classification":
        found, truth = torch.tensor(np.array(results)), torch.tensor(np.array(values))
        return lambda rows: _of_classes(found[rows], truth[rows], labels)
    if task == "multi-label":
        found, truth = torch.tensor(np.array(results)), torch.tensor(np.array(values)).long()
        return lambda rows: _of_labels(found[rows], truth[rows], labels)
    if task == "token-classification":
        # intervals draw whole sequences: positions of one depend on each other
        classes = labels
        tables = [confusion_of(targets, [r], [v]) for r, v in zip(results, values, strict=True)]
        counts = np.stack([each for each in tables if each is not None])
        return lambda rows: _of_confusion(counts[rows].sum(axis=0), classes)
    if task.endswith("regression"):
        scale, mean = np.array(targets.scale or [1.0]), np.array(targets.mean or [0.0])
        true = [np.atleast_2d(np.asarray(v, dtype=np.float64) * scale + mean) for v in values]
        said = [np.atleast_2d(r) for r in results]
        return lambda rows: _of_numbers(
            np.concatenate([said[i] for i in rows]), np.concatenate([true[i] for i in rows]), targets.labels
        )
    if task == "ctc":
        said_texts, true_texts = _texts(targets, results, values)
        wrong = np.array([_errors(a, b) for a, b in zip(said_texts, true_texts, strict=True)])
        return lambda rows: _rates(wrong[rows])
    bits = np.array([r[0] for r in results])
    return lambda rows: {"bits_per_token": float(bits[rows].mean()), "perplexity": float(2 ** bits[rows].mean())}


def _of_classes(found: Tensor, truth: Tensor, classes: int) -> Metrics:
    from torchmetrics.functional import classification as c

    counts = torch.bincount(truth, minlength=classes)
    areas = c.multiclass_auroc(found.float(), truth, classes, average=None, validate_args=False)
    return {**_of_answers(found.argmax(dim=1), truth, classes), "auroc": _mean(areas, _both(counts, len(truth)))}


def _of_answers(said: Tensor, truth: Tensor, classes: int) -> Metrics:
    from torchmetrics.functional import classification as c

    recalls = c.multiclass_accuracy(said, truth, classes, average=None, validate_args=False)
    return {
        "accuracy": _accuracy(said, truth),
        "balanced_accuracy": _mean(recalls, torch.bincount(truth, minlength=classes) > 0),
        "f1_macro": c.multiclass_f1_score(said, truth, classes, average="macro", validate_args=False).item(),
        "mcc": _mcc(said, truth, classes),
    }


def _of_labels(found: Tensor, truth: Tensor, labels: int) -> Metrics:
    from torchmetrics.functional import classification as c

    # as two classes where there is one label, which torchmetrics does not take for several
    said, counts = found >= 0.5, truth.sum(dim=0)
    scores = [
        torch.stack([score(found[:, k].float(), truth[:, k], validate_args=False) for k in range(labels)])
        for score in (c.binary_f1_score, c.binary_auroc, c.binary_average_precision)
    ]
    micro = c.binary_f1_score(said.long().flatten(), truth.flatten(), validate_args=False).item()
    table = {"f1_micro": micro, "f1_macro": _mean(scores[0], (counts > 0) | said.any(dim=0))}
    if labels == 1:
        del table["f1_macro"]
    precision = _mean(scores[2], counts > 0)
    return {**table, "auroc": _mean(scores[1], _both(counts, len(truth))), "average_precision": precision}


def _of_confusion(counts: NDArray[np.int64], classes: int) -> Metrics:
    said = torch.arange(classes).repeat(classes).repeat_interleave(torch.tensor(counts.ravel()))
    truth = torch.arange(classes).repeat_interleave(torch.tensor(counts.sum(axis=1)))
    return _of_answers(said, truth, classes)


def _of_numbers(said: NDArray[np.float64], true: NDArray[np.float64], labels: Sequence[str]) -> Metrics:
    from torchmetrics.functional import regression as r

    table: Metrics = {}
    for column, label in enumerate(labels):
        known = np.isfinite(true[:, column])
        a, b = torch.tensor(said[known, column]), torch.tensor(true[known, column])
        end = f":{label}" if len(labels) > 1 else ""
        several = len(a) > 2
        table[f"spearman{end}"] = r.spearman_corrcoef(a, b).item() if several else float("nan")
        table[f"pearson{end}"] = r.pearson_corrcoef(a, b).item() if several else float("nan")
        table[f"r2{end}"] = r.r2_score(a, b).item() if several else float("nan")
        table[f"mean_absolute_error{end}"] = r.mean_absolute_error(a, b).item() if len(a) else float("nan")
    return table


def _texts(targets: Targets, results: Sequence[Any], values: Sequence[Any]) -> tuple[list[str], list[str]]:
    return ["".join(targets.labels[i] for i in r) for r in results], [
        "".join(targets.labels[i] for i in v) for v in values
    ]


def _errors(said: str, true: str) -> tuple[float, int, float, int]:
    """Return wrong words, words, wrong characters, characters of one text."""
    from torchmetrics.functional.text import char_error_rate, word_error_rate

    words, letters = max(1, len(true.split())), max(1, len(true))
    return (
        word_error_rate(said, true or " ").item() * words if true else len(said.split()),
        words,
        (char_error_rate(said, true).item() * letters if true else len(said)),
        letters,
    )


def _error_rates(said: Sequence[str], true: Sequence[str]) -> Metrics:
    rates = _rates(np.array([_errors(a, b) for a, b in zip(said, true, strict=True)]))
    return {"character_error_rate": rates["character_error_rate"], "word_error_rate": rates["word_error_rate"]}


def _rates(counts: NDArray[Any]) -> Metrics:
    sums = counts.sum(axis=0)
    return {"word_error_rate": float(sums[0] / sums[1]), "character_error_rate": float(sums[2] / sums[3])}


def _both(counts: Tensor, of: int) -> Tensor:
    """Return which classes some examples have and some do not: without both there is no area under a curve."""
    return (counts > 0) & (counts < of)


def _mean(scores: Tensor, there: Tensor) -> float:
    """Average the scores of the classes that are there, NaN for none.

    torchmetrics counts 0 for a class that the examples lack, as those of few members do in a test split or a sample.
    """
    return scores[there].double().mean().item() if bool(there.any()) else float("nan")


def _accuracy(said: Tensor, truth: Tensor) -> float:
    return (said == truth).float().mean().item()


def _mcc(said: Tensor, truth: Tensor, classes: int) -> float:
    """Return Matthews correlation; 0 where one class alone is said or true, as in scikit-learn.

    torchmetrics gives two classes up to 0.2 there, either way, by the balance of the truth.
    """
    from torchmetrics.functional.classification import multiclass_matthews_corrcoef

    if len(said) == 0 or bool((said == said[0]).all()) or bool((truth == truth[0]).all()):
        return 0.0
    return multiclass_matthews_corrcoef(said, truth, classes, validate_args=False).item()
