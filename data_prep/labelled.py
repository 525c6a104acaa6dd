"""Labelled sequences of any form that people have, known by what it is, as one list of examples.

    folder of folders        a class a folder: FASTA, sound, or series (.npy, .csv)
    folder of tables         train.csv, dev.csv, test.csv: the file's name is the split
    folder of files          FASTA, sound, .npy, or .csv with `values`: without labels, but for a table's or a header's
    .csv .tsv .txt .parquet  a table with a column of sequences, or columns of numbers (`labelled_tables`)
    .bed                     intervals of a reference (`labelled_intervals`)
    .npy                     series (rows, L) or (rows, L, F)
    FASTA, FASTQ             labels in the header, or in a table of ids (`labelled_fasta`)
    GenBank                  features, one of whose qualifiers is the label (`labelled_features`)
    sound                    one recording, without a label

Text files may be compressed. What an example lacks (label, split, group) is None or "".
"""

import dataclasses
import re
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import BadRecord, DataError, NoRecords, UnreadableFile
from mamba_seq.data_prep.splits import Split

Sequence = str | NDArray[np.float32] | NDArray[np.int64]
"""Letters; or numbers (L, F); or tokens (L,)."""
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What tables call the splits."""
TABLES = (".csv", ".tsv", ".txt", ".tab", ".parquet")
_PACKED = re.compile(r"\.(gz|bgz|bz2|xz|zst)$")


@dataclasses.dataclass(frozen=True)
class Example:
    """One sequence.

    Args:
        id: Its name.
        sequence: Letters, numbers (L, F) float32, or tokens (L,) int64.
        label: A text for each label column; for `per_position` data one for each position; None when it has none.
        split: What it is for, where the data say so.
        group: What must stay in one split with it, where the data say so.
        where: The file and line, for messages.
    """

    id: str
    sequence: Sequence
    label: tuple[str, ...] | None = None
    split: Split | None = None
    group: str = ""
    where: str = ""

    @property
    def length(self) -> int:
        """Positions of it."""
        return len(self.sequence)


@dataclasses.dataclass
class Labelled:
    """What was read.

    Args:
        kind: What the data are, in words.
        examples: In the order of the files.
        label_names: Of the label columns, where there are several.
        per_position: Labels are one a position.
        sample_rate: Of sound.
        codec: That made tokens of sound.
        warnings: What a person must know: ids without a partner, rows left out.
    """

    kind: str
    examples: list[Example]
    label_names: list[str] = dataclasses.field(default_factory=list)
    per_position: bool = False
    sample_rate: int | None = None
    codec: str | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(kw_only=True)
class LabelledConfig:
    """How labelled data are to be read, where they do not say it themselves."""

    sequence: str | None = None
    """Column of the sequences; by default "sequence", "seq" or "text"."""
    label: list[str] | None = None
    """Columns of the labels; by default "label", "labels", "class", "target" or "y". Several make several targets."""
    id: str | None = None
    """Column of the names; by default "id" or "name", and else the line's number."""
    split: str | None = None
    """Column of the splits; by default "split"."""
    group: str | None = None
    """Column of what must stay in one split together; by default "group"."""
    values: list[str] | None = None
    """Columns of numbers: a row is a series, or, with `series`, a position of one."""
    series: str | None = None
    """Column that says which series a row is a position of."""
    labels_file: str | None = None
    """Table of ids and labels (id, label, split, group) for sequences that come without."""
    label_pattern: str | None = None
    """Regular expression for the label in a FASTA header: its group "label", or its first; "group" may be another."""
    reference: str | None = None
    """FASTA file of the sequences that a BED file's intervals lie on."""
    flank: int = 0
    """Bases added on either side of an interval of a BED file."""
    feature: str | None = None
    """Kind of feature to take from GenBank files, such as CDS; by default any with the qualifier."""
    qualifier: str | None = None
    """Qualifier of a feature that is its label, such as product; for GenBank files."""
    sample_rate: int = 16000
    """Rate that sound is brought to."""

    def __post_init__(self) -> None:
        if self.flank < 0 or self.sample_rate < 1:
            raise ValueError(f"flank is {self.flank} and sample_rate {self.sample_rate}, expected 0 and 1 or more")
        if self.label_pattern is not None:
            try:
                groups = re.compile(self.label_pattern).groups
            except re.error as error:
                raise ValueError(f"label_pattern {self.label_pattern!r} is no regular expression: {error}") from error
            if not groups:
                raise ValueError(f"label_pattern {self.label_pattern!r} has no group; put ( ) around the label")


Form = Literal["folder", "table", "bed", "npy", "records"]


def read_labelled(path: str | Path, config: LabelledConfig | None = None) -> Labelled:
    """Read data of any of the forms above.

    Raises:
        DataError: The data are missing, of no known form, or break their form; with file and line.
    """
    config, path = config or LabelledConfig(), Path(path)
    if not path.exists():
        raise UnreadableFile(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        from mamba_seq.data_prep.labelled_folders import read_folder

        found = read_folder(path, config)
    else:
        found = read_file(path, config)
    if config.labels_file is not None and path.suffix != ".npy":
        from mamba_seq.data_prep.labelled_join import join_labels

        found = join_labels(found, Path(config.labels_file), config)
    from mamba_seq.data_prep.labelled_missing import blank_missing

    found = blank_missing(found)
    if not found.examples:
        raise NoRecords(f"{path} holds no example: {found.kind} came, at least one sequence was expected")
    return found


def read_file(path: Path, config: LabelledConfig) -> Labelled:
    """Read one file of any form."""
    suffix = Path(_PACKED.sub("", path.name.lower())).suffix
    if suffix == ".npy":
        from mamba_seq.data_prep.labelled_series import read_npy

        return read_npy(path, config)
    if suffix in (".bed", ".narrowpeak", ".broadpeak"):
        from mamba_seq.data_prep.labelled_intervals import read_bed

        return read_bed(path, config)
    if suffix in TABLES:
        from mamba_seq.data_prep.labelled_tables import read_table_file

        return read_table_file(path, config)
    with open_input(path) as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"LOCUS "):
        from mamba_seq.data_prep.labelled_features import read_features

        return read_features(path, config)
    if start[:1] in (b">", b"@", b";"):
        from mamba_seq.data_prep.labelled_fasta import read_fasta

        return read_fasta(path, config)
    from mamba_seq.data_prep.labelled_folders import SOUNDS, read_sound

    if suffix in SOUNDS:
        return read_sound(path, config)
    raise NoRecords(
        f"{path} is of no known form: its name ends in {suffix or 'nothing'!r} and it starts with {start[:30]!r}; "
        "FASTA, FASTQ, GenBank, sound, .csv, .tsv, .parquet, .bed or .npy, or a folder, was expected"
    )


def split_named(text: str, where: str) -> Split | None:
    """Return the split that a table names; None for an empty cell.

    Raises:
        BadRecord: It is none that is known.
    """
    if not text:
        return None
    try:
        return SPLIT_NAMES[text.lower()]
    except KeyError:
        raise BadRecord(f"{where}: split {text!r} came; train, validation (or dev, val) or test was expected") from None


__all__ = ["SPLIT_NAMES", "DataError", "Example", "Labelled", "LabelledConfig", "read_file", "read_labelled"]
