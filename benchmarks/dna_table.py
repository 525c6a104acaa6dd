"""The table of `dna_contexts.py`: rows of runs, of released models, and of models measured on other windows."""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEASURED = "measured.json"
"""In a folder of `dna_contexts.py measure`: what is known of the model."""
KNOWN = {
    "cupriavidus7": {1024: 0.431, 4096: 0.707, 16384: 0.851, 65536: 0.956, 262144: 0.990, 1048576: 1.000},
    "yeast2": {1024: 0.527, 4096: 0.517, 16384: 0.600, 65536: 0.792, 262144: 0.912},
    "mammals5": {1024: 0.474, 8192: 0.796, 65536: 0.820},
    "primates5": {1024: 0.206, 8192: 0.254, 65536: 0.278},
    "vertebrates21": {65536: 0.732},
}
"""Accuracy of 6-mers in another fit of the same kind to the same collections, on other windows, one seed."""
COLUMNS = (
    *("task", "context", "accuracy", "low", "high", "windows", "independent", "kmer", "composition", "kmer_known"),
    *("chance", "ece", "model", "parameters", "start_from", "steps", "minutes", "seed", "hardware", "date"),
)


def table(asked: argparse.Namespace) -> int:
    """Write the rows of all folders as CSV, and as a table for people."""
    rows = [row for folder in asked.folders for row in rows_of(folder)]
    with asked.output.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells: dict[str, Any] = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(cells)
    lines = ["| task | bases | accuracy | 95 % interval | windows | independent | 6-mers | composition | others' |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        figures = [row[key] for key in ("kmer", "composition", "kmer_known")]
        last = " | ".join("" if value is None else f"{value:.3f}" for value in figures)
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        first = f"| {row['task']} | {row['context']:,} | {row['accuracy']:.3f} | {interval} "
        lines.append(f"{first}| {row['windows']:,} | {row['independent']:,} | {last} |")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if asked.markdown is not None:
        asked.markdown.write_text(text, encoding="utf-8")
    return 0


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's folder, or of one of `measure`; those of the folders below it where it is neither."""
    places = (folder / MEASURED, folder / "record.json", folder / "model" / "record.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return [row for below in sorted(folder.iterdir()) if below.is_dir() for row in rows_of(below)]
    measured = sorted(folder.glob("measured*.tsv")) if file.name == MEASURED else None
    record = json.loads(file.read_text(encoding="utf-8"))
    # a model may be measured on the windows of another task than the one that it is named after
    task = record.get("measured_as", record["name"].removeprefix("mamba-dna."))
    about = {"task": task, "chance": 1 / len(record["labels"]), "model": record["name"]}
    about |= {"start_from": record.get("start_from") or "random weights"}
    about |= {key: record[key] for key in ("parameters", "steps", "minutes", "seed", "hardware", "date")}
    found = record["results"] if measured is None else _measured(measured, folder / "baseline.json")
    rows = []
    for result in found:
        row = {key: result[key] for key in ("accuracy", "low", "high", "windows", "independent", "ece")}
        row |= {"context": result["length"], "kmer": result["baseline"], "composition": result.get("composition")}
        rows.append(about | row | {"kmer_known": KNOWN.get(task, {}).get(result["length"])})
    return rows


def _measured(tables: Sequence[Path], baseline: Path) -> list[dict[str, Any]]:
    """Read what `evaluate` wrote, and the baselines beside it, into the form of a run's results."""
    fitted = json.loads(baseline.read_text(encoding="utf-8")) if baseline.is_file() else {"lengths": []}
    texts = [each.read_text(encoding="utf-8") for each in tables]
    lines = [line for text in texts for line in csv.DictReader(text.splitlines(), delimiter="\t")]
    results = []
    for line in sorted((line for line in lines if line["class"] == "all"), key=lambda line: int(line["length"])):
        length, windows = int(line["length"]), int(line["windows"])
        own = [each for each in lines if each["length"] == line["length"] and each["class"] != "all"]
        independent = sum(min(int(each["windows"]), int(each["disjoint"])) for each in own)
        at = fitted["lengths"].index(length) if length in fitted["lengths"] else None
        result: dict[str, Any] = {key: float(line[key]) for key in ("accuracy", "low", "high", "ece")}
        result |= {name: None if at is None else fitted[name][at] for name in ("baseline", "composition")}
        results.append(result | {"length": length, "windows": windows, "independent": independent})
    return results
