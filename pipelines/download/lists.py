"""Download lists: which assemblies make which class, and which chromosomes are held out."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mamba_seq import models_zoo
from mamba_seq.pipelines.errors import RequestError

ACCESSION = re.compile(r"GC[AF]_\d{9}\.\d+")
COLUMNS = ("class", "accession", "test", "validation")
_CLASS = re.compile(r"[^\W_][\w .+-]*")


@dataclass(frozen=True)
class Assembly:
    """One assembly of one class.

    Args:
        label: the class, the name of its folder.
        accession: of GenBank or RefSeq, with its version, such as GCF_000146045.2.
        test: names of the chromosomes that are held out for the test.
        validation: the same for validation.
    """

    label: str
    accession: str
    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()


def read_list(name: str) -> list[Assembly]:
    """Read a list that comes with the package, by its name, or a user's own, by its path.

    A list is a table with tabs between columns: class and accession, and, where the first line names the columns,
    `test` and `validation`, chromosomes with commas between them. Lines that begin with # are comments.

    Raises:
        RequestError: when there is no such list, or it is none; the message names the line.
    """
    path = Path(name)
    if name in models_zoo.downloads():
        path = models_zoo.download_path(name)
    elif not path.is_file():
        raise RequestError(
            f"there is no file {name} and no download list of that name; lists that come with the package: "
            f"{', '.join(models_zoo.downloads())}; one of your own is a file of lines class<TAB>accession"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{name} is no text; a table of class<TAB>accession was expected") from None
    assemblies = list(_rows(name, text))
    if not assemblies:
        raise RequestError(f"{name} lists no assembly; lines of class<TAB>accession were expected")
    return assemblies


def _rows(name: str, text: str) -> Iterator[Assembly]:
    columns: tuple[str, ...] = COLUMNS[:2]
    seen: dict[str, int] = {}
    first = True
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in next(csv.reader([line], delimiter="\t"))]
        if first and "accession" in fields:
            columns, first = _header(name, number, fields), False
            continue
        first = False
        if len(fields) != len(columns):
            raise RequestError(
                f"{name}, line {number}: {len(fields)} columns came, {len(columns)} were expected, "
                f"{'<TAB>'.join(columns)}"
            )
        assembly = _assembly(f"{name}, line {number}", defaultdict(str, zip(columns, fields, strict=True)))
        if assembly.accession in seen:
            raise RequestError(
                f"{name}, line {number}: {assembly.accession} stands in line {seen[assembly.accession]} too; "
                "an assembly belongs to one class, once"
            )
        seen[assembly.accession] = number
        yield assembly


def _header(name: str, number: int, fields: list[str]) -> tuple[str, ...]:
    if "class" not in fields or len(set(fields)) < len(fields) or not set(fields) <= set(COLUMNS):
        raise RequestError(
            f"{name}, line {number}: the columns {', '.join(fields)} came; class and accession were expected, "
            "and perhaps test and validation"
        )
    return tuple(fields)


def _assembly(where: str, row: dict[str, str]) -> Assembly:
    if not _CLASS.fullmatch(row["class"]):
        raise RequestError(
            f"{where}: the class {row['class']!r} came; a name for a folder was expected, a letter or digit and then "
            "letters, digits, spaces and . _ + -"
        )
    if not ACCESSION.fullmatch(row["accession"]):
        raise RequestError(
            f"{where}: the accession {row['accession']!r} came; one of an assembly with its version was expected, "
            "such as GCF_000146045.2"
        )
    test, validation = _names(row["test"]), _names(row["validation"])
    if both := sorted(set(test) & set(validation)):
        raise RequestError(f"{where}: chromosome {both[0]} is held out for test and validation; name it in one")
    return Assembly(row["class"], row["accession"], test, validation)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
