"""Compressed output, chosen by the suffix of its name: .gz, .bz2, .xz and .zst.

The same data give the same bytes: no name and no time is written into a header.
"""

import bz2
import contextlib
import gzip
import lzma
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol


class Sink(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> int:
        """Append bytes."""


# the levels of the command-line programs, gzip -6, bzip2 -9, xz -6, zstd -3
_PACKERS: Final[dict[str, Callable[[Any], Any]]] = {
    ".gz": lambda sink: gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=sink, mtime=0),
    ".bz2": lambda sink: bz2.BZ2File(sink, "wb"),
    ".xz": lambda sink: lzma.LZMAFile(sink, "wb", preset=6),  # noqa: SIM115 - the caller closes it
    ".zst": lambda sink: _zstd(sink),
}
SUFFIXES: Final = tuple(_PACKERS)


@contextlib.contextmanager
def packed(sink: Sink, name: str) -> Iterator[Sink]:
    """Give a sink that compresses into `sink` as the suffix of `name` says, or `sink` itself.

    Args:
        sink: takes the compressed bytes; left open.
        name: of the output, such as "table.tsv.gz".
    """
    pack = next((pack for suffix, pack in _PACKERS.items() if name.endswith(suffix)), None)
    if pack is None:
        yield sink
        return
    with pack(sink) as packing:
        yield packing


def _zstd(sink: Any) -> Any:
    import zstandard  # a small package, but one that most outputs do without

    return zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(sink, closefd=False)
