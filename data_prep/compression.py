"""Open a file or standard input as plain bytes, whatever compressed it: known by its first bytes, never by its name.

Plain, gzip and BGZF, bzip2, xz and zstd, with all members or frames one after another. A stream that stops in the
middle or whose check sum is wrong raises TruncatedFile: nothing is ever read as if it ended there. Zero bytes after
the last member are padding, which tapes and block devices leave; anything else there is an error, because it may be
half of a file.
"""

import bz2
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard

from mamba_seq.data_prep.errors import EmptyFile, NotText, TruncatedFile, UnreadableFile

BUFFER = 256 * 1024
MAGIC_BYTES = 6


def open_input(path: str | os.PathLike[str], on_read: Callable[[int], object] | None = None) -> io.BufferedReader:
    """Open `path`, or standard input for "-", for reading decompressed bytes.

    Args:
        path: File of any of the compressions, or "-".
        on_read: Called with the number of compressed bytes that were read; never for a plain file.

    Raises:
        UnreadableFile: The path is missing, a folder, or may not be read.
        EmptyFile: There is not one byte.
        NotText: A zip archive or another container that is not a compressed stream of text.
        TruncatedFile: While reading: compressed data stop in the middle or are damaged.
    """
    name = input_name(path)
    raw = sys.stdin.buffer if os.fspath(path) == "-" else _open_file(path, name)
    try:
        head = _read_exactly(raw, MAGIC_BYTES)
        if not head:
            raise EmptyFile(f"{name} is empty: 0 bytes came, sequence records were expected")
        for magic, what, advice in _REFUSED:
            if head.startswith(magic):
                raise NotText(f"{name} is {what}, which is not read here; {advice}")
        kind = next((kind for kind in _COMPRESSIONS if head.startswith(kind.magic)), None)
        plain = _Prefixed(head, raw, on_read if kind else None)
        return io.BufferedReader(_Inflated(plain, name, kind) if kind else plain, buffer_size=BUFFER)
    except BaseException:
        if raw is not sys.stdin.buffer:
            raw.close()
        raise


def input_name(path: str | os.PathLike[str]) -> str:
    """What messages call an input: its path, or "standard input"."""
    return "standard input" if os.fspath(path) == "-" else os.fspath(path)


def _open_file(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise UnreadableFile(f"{name}: no such file; check the path") from None
    except IsADirectoryError:
        raise UnreadableFile(f"{name} is a folder; name the sequence files in it, such as {name}/*.fa.gz") from None
    except PermissionError:
        raise UnreadableFile(f"{name} may not be read by this user; change its permissions (chmod +r)") from None
    except OSError as error:
        raise UnreadableFile(f"{name} cannot be opened: {error.strerror or error}") from error


def _read_exactly(stream: BinaryIO, n: int) -> bytes:
    """`n` bytes, or fewer at the end only: a pipe may hand over one byte at a time."""
    parts = bytearray()
    while len(parts) < n and (part := stream.read(n - len(parts))):
        parts += part
    return bytes(parts)


class _Decoder(Protocol):
    """What zlib, bz2, lzma and zstandard decoders have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True)
class _Compression:
    name: str
    magic: tuple[bytes, ...]
    new_decoder: Callable[[], _Decoder]
    error: type[Exception]
    bounded: bool = True  # decompress() takes the most that it may return
    piece: int = 64 * 1024


_COMPRESSIONS = (
    _Compression("gzip", (b"\x1f\x8b",), lambda: zlib.decompressobj(wbits=31), zlib.error),
    _Compression("bzip2", (b"BZh",), bz2.BZ2Decompressor, OSError),
    _Compression("xz", (b"\xfd7zXZ\x00",), lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ), lzma.LZMAError),
    # zstd has no bound on what one call returns, so little goes in: 512 bytes of runs become some 17 MB.
    _Compression(
        "zstd",
        (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
        lambda: zstandard.ZstdDecompressor().decompressobj(),
        zstandard.ZstdError,
        bounded=False,
        piece=512,
    ),
)
_REFUSED = (
    (b"PK\x03\x04", "a zip archive", "unpack it first (unzip)"),
    (b"\x1f\x9d", "a file of the old compress program", "unpack it first (uncompress)"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it first (lz4 -d)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first (7z x)"),
    (b"%PDF-", "a PDF document", "give the sequences themselves as FASTA or FASTQ"),
)


class _Prefixed(io.RawIOBase):
    """A stream with the bytes put back that were read to learn what it is; a pipe cannot seek."""

    def __init__(self, head: bytes, rest: BinaryIO, on_read: Callable[[int], object] | None = None) -> None:
        self._head = head
        self._rest = rest
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            part, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        else:
            part = self._rest.read(len(buffer))
        buffer[: len(part)] = part
        if self._on_read is not None:
            self._on_read(len(part))
        return len(part)

    def close(self) -> None:
        if not self.closed and self._rest is not sys.stdin.buffer:
            self._rest.close()
        super().close()


class _Inflated(io.RawIOBase):
    """The decompressed bytes of all members of a stream, in bounded memory."""

    def __init__(self, source: _Prefixed, name: str, kind: _Compression) -> None:
        self._source = source
        self._name = name
        self._kind = kind
        self._decoder = kind.new_decoder()
        self._waiting = b""  # compressed bytes that were read and not yet decoded
        self._started = True  # within a member: the end of the stream here is an error
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            part = self._decode_some()
            if part is None:
                return 0
            self._ready = memoryview(part)
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def _decode_some(self) -> bytes | None:
        """Some decompressed bytes, perhaps none yet; None at the end of the last member."""
        if not self._waiting and self._wants_input():
            self._waiting = self._source.read(self._kind.piece) or b""
            if not self._waiting:
                if self._started:
                    raise TruncatedFile(
                        f"{self._name} is truncated: its {self._kind.name} data stop before their end; "
                        "copy or download the file again"
                    )
                return None
        if not self._started and not self._next_member():
            return b""
        data, self._waiting = self._waiting, b""
        try:
            if not self._kind.bounded:
                out = self._decoder.decompress(data)
            else:
                out = self._decoder.decompress(data, BUFFER)  # type: ignore[call-arg]
        except (self._kind.error, EOFError) as error:
            raise TruncatedFile(
                f"{self._name} is damaged: its {self._kind.name} data cannot be decoded ({error}); "
                "copy or download the file again"
            ) from error
        if self._decoder.eof:
            self._started = False
            self._waiting = self._decoder.unused_data
        else:
            self._waiting = getattr(self._decoder, "unconsumed_tail", b"")
        return out

    def _wants_input(self) -> bool:
        return not self._started or getattr(self._decoder, "needs_input", True)

    def _next_member(self) -> bool:
        """Begin the member that the waiting bytes start, if they are more than padding."""
        self._waiting = self._waiting.lstrip(b"\0")
        if not self._waiting:
            return False
        longest = max(map(len, self._kind.magic))
        while len(self._waiting) < longest and (part := self._source.read(longest - len(self._waiting))):
            self._waiting += part
        if not self._waiting.startswith(self._kind.magic):
            raise TruncatedFile(
                f"{self._name} goes on after the end of its {self._kind.name} data with something else "
                f"({self._waiting[:8]!r}); compress the whole file again, or cut off what follows"
            )
        self._decoder = self._kind.new_decoder()
        self._started = True
        return True

    def close(self) -> None:
        self._source.close()
        super().close()
