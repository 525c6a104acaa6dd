"""A summary for MultiQC: how many records of each file got which class, as custom content that it finds by its name.

MultiQC takes files whose names end in `_mqc.json` for custom content and merges those of one id, so that many runs make
one bar graph (MultiQC's manual, "Custom content").
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence

from mamba_seq.data_prep.compression import input_name
from mamba_seq.pipelines.compressed import SUFFIXES
from mamba_seq.pipelines.rows import Row

ENDING = "_mqc.json"
_SEQUENCES = (".fa", ".fasta", ".fna", ".ffn", ".fas", ".fq", ".fastq", ".gb", ".gbk", ".gbff", ".genbank", ".txt")
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
_GREYS = {
    "unclassified": "#b0b5bd", "novel": "#8d939c", "too_short": "#cfd3d9", "empty": "#dfe2e6", "no_bases": "#dfe2e6",
    "invalid": "#6b7078",
}  # fmt: skip


class MultiQC:
    """A bar for each input file, a part for each class, and for the records without one a part for each status.

    Args:
        paths: the input files in order.
        labels: of the model, in order.
        model: what the user called it.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[str], model: str) -> None:
        self._paths = paths
        self._labels = labels
        self._model = model
        self._counts: list[Counter[str]] = [Counter() for _ in paths]

    def head(self) -> tuple[bytes, ...]:
        """Return nothing."""
        return ()

    def row(self, row: Row) -> tuple[bytes, ...]:
        """Count a record."""
        self._counts[row.source][row.status if row.prediction is None else f"class {row.prediction}"] += 1
        return ()

    def tail(self) -> Iterator[bytes]:
        """Yield the JSON."""
        total: Counter[str] = sum(self._counts, Counter())
        classes = [label for label in self._labels if total[f"class {label}"]]
        parts = {
            **{
                f"class {label}": {"name": label, "color": _COLOURS[self._labels.index(label) % len(_COLOURS)]}
                for label in classes
            },
            **{status: {"name": status, "color": grey} for status, grey in _GREYS.items() if total[status]},
        }
        content = {
            "id": "mamba_seq_classify",
            "section_name": "mamba-seq classify",
            "description": f"Records of each file by the class that the model {self._model} gives them.",
            "plot_type": "bargraph",
            "pconfig": {"id": "mamba_seq_classify_plot", "title": "mamba-seq: records by class", "ylab": "records"},
            "categories": parts,
            "data": {
                sample: {part: counts[part] for part in parts}
                for sample, counts in zip(samples(self._paths), self._counts, strict=True)
            },
        }
        yield (json.dumps(content, indent=1) + "\n").encode("ascii")


def samples(paths: Sequence[str]) -> list[str]:
    """Name the sample of each file: its name without folder and suffixes, or its path where two would be alike."""
    short = [_sample(path) for path in paths]
    times = Counter(short)
    names = [name if times[name] == 1 else input_name(path) for name, path in zip(short, paths, strict=True)]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):  # the same file given twice
        seen[name] += 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return names


def _sample(path: str) -> str:
    name = os.path.basename(input_name(path))
    for endings in (SUFFIXES, _SEQUENCES):
        ending = next((ending for ending in endings if name.lower().endswith(ending) and len(name) > len(ending)), "")
        name = name[: len(name) - len(ending)]
    return name
