"""One file from a web server, whole: interrupted transfers go on where they stopped, and the checksum decides.

What has come lies beside the target under `.<name>.part` and stays there when the transfer fails or is interrupted;
the next call asks for the rest (HTTP range requests, RFC 9110, section 14). A server that sends the whole file anyway
is taken at its word. The file gets its name when its MD5 checksum is right.
"""

import email.utils
import errno
import hashlib
import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from mamba_seq._version import __version__
from mamba_seq.pipelines.errors import OutputError, PipelineError

log = logging.getLogger(__name__)

T = TypeVar("T")

PIECE = 1 << 20
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is given up."""
TRIES = 6
"""Failures in a row, without a byte between them, after which a transfer is given up."""
LONGEST_PAUSE = 300.0
"""Seconds; a server that asks for a longer one is not waited for."""
SMALL = 64 << 20
"""Bytes that a listing or table may have."""
RETRIED = {408, 425, 429, 500, 502, 503, 504}
pause = time.sleep


class DownloadError(PipelineError):
    """A file cannot be had; the message says why and what to do."""


class _Again(Exception):
    """A failure that may pass, and for how many seconds the server asks to wait."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


def read_small(url: str) -> str:
    """Return the text of a listing or table.

    Raises:
        DownloadError: it cannot be had.
    """

    def read() -> str:
        with _open(url) as response:
            data = _network(lambda: response.read(SMALL))
            expected = _length(response)
            if expected is not None and len(data) < min(expected, SMALL):
                raise _Again(f"{len(data)} of {expected} bytes came")
            return data.decode("utf-8", errors="replace")

    return _patiently(url, read, lambda: 0)


def size_of(url: str) -> int | None:
    """Return how many bytes a file on a server has, None where it does not say.

    Raises:
        DownloadError: there is no such file, or no server.
    """

    def ask() -> int | None:
        try:
            with _open(url, method="HEAD") as response:
                return _length(response)
        except urllib.error.HTTPError:  # a server without HEAD
            return None

    return _patiently(url, ask, lambda: 0)


def fetch(url: str, target: Path, md5: str, show: Callable[[int], None] = lambda done: None) -> int:
    """Fetch a file, or the rest of it, and check it.

    Args:
        url: its address.
        target: what it is called when all of it is there.
        md5: its checksum, in hexadecimal.
        show: told how many bytes there are, whenever there are more.

    Returns:
        Its number of bytes.

    Raises:
        DownloadError: it cannot be had, or has another checksum.
        OutputError: it cannot be written.
    """
    part = part_of(target)
    try:
        _patiently(url, lambda: _rest(url, part, show), lambda: _size(part))
        found = md5_of(part)
        if found != md5:
            part.unlink()
            raise DownloadError(
                f"{url} came with the MD5 checksum {found}, {md5} was expected; what came was removed; run the same "
                "command again, and if that fails too, the server or a proxy before it has a damaged file: try "
                "another --base-url"
            )
        size = _size(part)
        part.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"cannot write {part}: the disk is full; free some space and run the same command again, which goes "
                f"on after the {_size(part):,} bytes that are there"
            ) from error
        raise OutputError(f"cannot write {part}: {(error.strerror or str(error)).lower()}") from error
    return size


def part_of(target: Path) -> Path:
    """Where a file is while it is not whole."""
    return target.with_name(f".{target.name}.part")


def md5_of(path: Path) -> str:
    """The MD5 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_space(folder: Path, needed: int) -> None:
    """Refuse a download that the disk has no room for.

    Raises:
        OutputError: with what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{needed / 1e9:.1f} GB are to be fetched and the disk of {folder} has {free / 1e9:.1f} GB free; free some "
            "space, or choose a folder on another disk with -o"
        )


def _rest(url: str, part: Path, show: Callable[[int], None]) -> None:
    """Fetch what a part still lacks."""
    have = _size(part)
    try:
        response = _open(url, have)
    except urllib.error.HTTPError as error:
        # a part that lacks nothing: its checksum will tell
        if error.code == 416 and have:
            return
        raise
    with response:
        goes_on = response.status == 206
        if goes_on and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            part.unlink()
            raise _Again(f"bytes from {have} on were asked for and {response.headers.get('Content-Range')} came")
        with part.open("ab" if goes_on else "wb") as file:
            _copy(response, file, _length(response), have if goes_on else 0, show)


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, length: int | None, have: int, show: Callable[[int], None]
) -> None:
    got = 0
    show(have)
    while piece := _network(lambda: response.read1(PIECE)):
        file.write(piece)
        got += len(piece)
        show(have + got)
    file.flush()
    os.fsync(file.fileno())
    if length is not None and got < length:
        raise _Again(f"the connection ended after {have + got:,} of {have + length:,} bytes")


def _open(url: str, have: int = 0, method: str = "GET") -> http.client.HTTPResponse:
    headers = {"User-Agent": f"mamba-seq/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        opened: http.client.HTTPResponse = _network(lambda: urllib.request.urlopen(request, timeout=TIMEOUT))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in RETRIED:
            raise _Again(f"the server says {error.code} {error.reason}", _retry_after(error)) from error
        if (error.code == 416 and have) or (error.code in (405, 501) and method == "HEAD"):
            raise
        advice = {
            404: "check the accession and its version, or --base-url",
            403: "the server refuses it: try later, or another --base-url",
        }.get(error.code, "try later, or another --base-url")
        raise DownloadError(f"{url}: the server says {error.code} {error.reason}; {advice}") from error
    return opened


def _network(call: Callable[[], T]) -> T:
    """Call, and tell what the network does from what the disk does: both raise OSError."""
    try:
        return call()
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Again(str(reason) or type(reason).__name__) from error


def _patiently(url: str, call: Callable[[], T], done: Callable[[], int]) -> T:
    """Call until it succeeds; give up after TRIES failures in a row that brought nothing."""
    failures, before = 0, done()
    while True:
        try:
            return call()
        except _Again as error:
            now = done()
            failures = 1 if now > before else failures + 1
            before = now
            wait = min(2.0 ** (failures - 1), 60.0) if error.after is None else error.after
            if failures >= TRIES or wait > LONGEST_PAUSE:
                kept = f"; {now:,} bytes are kept, and the same command goes on after them" if now else ""
                asked = f" and asks to wait {wait:,.0f} s" if wait > LONGEST_PAUSE else f", {failures} times in a row"
                raise DownloadError(
                    f"cannot fetch {url}: {error}{asked}{kept}; check the network and the proxy (HTTPS_PROXY), try "
                    "later, or name a mirror with --base-url"
                ) from error
            log.warning("%s: %s; trying again in %.0f s", url, error, wait)
            pause(wait)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds or a date (RFC 9110, section 10.2.3)."""
    text = str(error.headers.get("Retry-After", "")).strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
