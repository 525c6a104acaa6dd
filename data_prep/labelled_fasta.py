"""FASTA and FASTQ with the label in the header: by a pattern, `kraken:taxid|N|`, or the header's last field."""

import re
from pathlib import Path

from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import BadRecord, DataError
from mamba_seq.data_prep.fastq import FastqParser
from mamba_seq.data_prep.labelled import Example, Labelled, LabelledConfig
from mamba_seq.data_prep.text import TextSource

_TAXID = re.compile(r"kraken:taxid\|(?P<label>\d+)")


def read_fasta(path: Path, config: LabelledConfig, label: str | None = None) -> Labelled:
    """Read records, and the label of each from its header unless one is given for all.

    Without a pattern, a header holds the label when all do: as `kraken:taxid|N`, or behind a last `|`.

    Raises:
        BadRecord: A header does not match the pattern.
    """
    records = list(fasta_records(path))
    pattern = re.compile(config.label_pattern) if config.label_pattern is not None else None
    given = label is not None or config.labels_file is not None
    if pattern is None and not given:
        pattern = next(
            (
                p
                for p in (_TAXID, re.compile(r"\|(?P<label>[^|\s]+)\s*$"))
                if all(p.search(head) for head, _, _ in records)
            ),
            None,
        )
    examples = []
    for header, letters, line in records:
        where = f"{path}, line {line}"
        found, group = label, ""
        if pattern is not None and label is None:
            match = pattern.search(header)
            if match is None:
                raise BadRecord(
                    f"{where}: header {header[:60]!r} does not match the label pattern {pattern.pattern!r}; "
                    "correct one "
                    "of them, or give the labels in a table (--labels-file)"
                )
            named = match.groupdict()
            found = named.get("label") or match[1]
            group = named.get("group") or ""
        words = header.split(None, 1)
        text = None if found is None else (found.strip(),)
        examples.append(Example(words[0] if words else str(line), letters, text, group=group, where=where))
    return Labelled("FASTA", examples)


def fasta_records(path: Path) -> list[tuple[str, str, int]]:
    """Read header, letters and line of every record of a FASTA or FASTQ file."""
    with open_input(path) as file:
        start = file.peek(1)[:1]
        if start == b"@":
            return _fastq(path)
        raw = file.read()
    text = raw.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    records: list[tuple[str, str, int]] = []
    header, at, parts = None, 0, list[str]()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith(">"):
            if header is not None:
                records.append((header, "".join(parts), at))
            header, at, parts = line[1:].strip(), number, []
        elif line.startswith(";") or not line.strip():
            continue
        elif header is None:
            raise BadRecord(f"{path}, line {number}: {line[:40]!r} came before the first header, '>' was expected")
        else:
            parts.append("".join(line.split()))
    if header is not None:
        records.append((header, "".join(parts), at))
    if not records:
        raise DataError(f"{path} holds no FASTA record; '>' was expected")
    return records


def _fastq(path: Path) -> list[tuple[str, str, int]]:
    from mamba_seq.data_prep.alphabet import DNA

    with open_input(path) as file:
        source = TextSource(file, str(path))
        source.skip_blank()
        return [
            (f"{record.name} {record.description}".strip(), DNA.decode(record.codes()), 4 * i + 1)
            for i, record in enumerate(FastqParser(source).records())
        ]
