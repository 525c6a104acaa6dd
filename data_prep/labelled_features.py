"""GenBank features as examples: the sequence of each, in its own direction, and a qualifier of it as the label."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from Bio import BiopythonParserWarning, SeqIO
from Bio.Seq import UndefinedSequenceError

from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import BadRecord, NoRecords
from mamba_seq.data_prep.labelled import Example, Labelled, LabelledConfig
from mamba_seq.data_prep.labelled_intervals import by_stretches


def read_features(path: Path, config: LabelledConfig) -> Labelled:
    """Read the features with the qualifier; without one, whole records, with no label.

    A feature that lies on a "-" strand is reverse-complemented, one of several parts joined. The record is the group;
    features of a single record have groups of `by_stretches`.

    Raises:
        DataError: The file is damaged, has no sequence, or no such feature.
    """
    with open_input(path) as file:
        text = io.StringIO(file.read().decode("utf-8-sig", "replace"))
    examples, places, qualifiers = [], list[int](), set[str]()
    try:
        for record in _records(text):
            whole = str(record.seq)
            if config.qualifier is None:
                examples.append(Example(record.id, whole, where=f"{path}, {record.id}"))
                continue
            for feature in record.features:
                if config.feature is not None and feature.type != config.feature:
                    continue
                qualifiers.update(feature.qualifiers)
                label = feature.qualifiers.get(config.qualifier)
                if not label:
                    continue
                place = str(feature.location)
                where = f"{path}, {record.id} {feature.type} {place}"
                if int(feature.location.end) > len(whole):
                    raise BadRecord(f"{where} ends beyond the {len(whole)} bases of the record")
                # a source feature is the whole record, and its letters may be many
                letters = whole if feature.type == "source" else str(feature.extract(record.seq))
                name = f"{record.id}:{feature.type}:{place}".replace(" ", "")
                places.append(int(feature.location.start))
                examples.append(Example(name, letters, (label[0].strip(),), group=record.id, where=where))
    except UndefinedSequenceError as error:
        raise BadRecord(f"{path} has records without a sequence under ORIGIN; export it with its sequence") from error
    except (ValueError, AssertionError, BiopythonParserWarning) as error:
        raise BadRecord(f"{path} cannot be read as GenBank: {error}") from error
    if not examples:
        raise NoRecords(
            f"{path} has no {config.feature or 'feature'} with the qualifier {config.qualifier!r}; those there have "
            f"{', '.join(sorted(qualifiers)[:12]) or 'none'}"
        )
    if config.qualifier is None:
        return Labelled("GenBank records", examples)
    found = Labelled("GenBank features", examples)
    by_stretches(found, places)
    return found


def _records(text: io.StringIO) -> Iterator[Any]:
    """Read the records; of what Biopython only warns of, a sequence that stops too early is an error."""
    with warnings.catch_warnings():
        for message in ("Premature end of file", "Expected sequence length"):
            warnings.filterwarnings("error", message, BiopythonParserWarning)
        yield from SeqIO.parse(text, "genbank")
