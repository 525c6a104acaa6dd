"""What is wrong with input files: those that cannot be opened, and those whose records are no DNA."""

import logging
import os
from collections.abc import Sequence

from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import DataError
from mamba_seq.data_prep.records import SequenceRecord

log = logging.getLogger("mamba_seq.pipelines")

# warnings about single records of a file; one line counts the rest
MOST_WARNINGS = 10


def check_inputs(paths: Sequence[str]) -> None:
    """Refuse files that cannot be opened or whose first bytes are wrong, before a model is loaded.

    Standard input and named pipes are left alone: they can be read only once.

    Raises:
        DataError: with what to do about it.
    """
    for path in paths:
        if path == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
            continue
        open_input(path).close()


class InvalidRecords:
    """Judges the records of one file that have letters no DNA code has."""

    def __init__(self, source: str, strict: bool) -> None:
        self._source = source
        self._strict = strict
        self._records = 0
        self._invalid = 0
        self._first: list[str] = []

    def note(self, record: SequenceRecord) -> None:
        """Take in a record; with `strict`, refuse an invalid one."""
        self._records += 1
        if record.invalid is None:
            return
        self._invalid += 1
        if len(self._first) < MOST_WARNINGS:
            self._first.append(f"record {record.name!r} has {record.invalid}")
        if self._strict:
            raise DataError(
                f"{self._source}: {self._first[0]}, which is no DNA code; mend the record, or leave out --strict "
                "to get a row that says invalid"
            )

    def judge(self) -> None:
        """At the end of the file, warn of its invalid records; refuse it when there is no other."""
        if self._records and self._invalid == self._records:
            all_of_them = "its only record" if self._records == 1 else f"each of its {self._records:,} records"
            raise DataError(
                f"{self._source} holds no DNA: {all_of_them} has letters that are no DNA code ({self._first[0]}); "
                "is it a protein file?"
            )
        for text in self._first:
            log.warning("%s: %s, which is no DNA code; its row says invalid", self._source, text)
        if self._invalid > len(self._first):
            log.warning("%s: %d more records are invalid", self._source, self._invalid - len(self._first))
