"""Output files and folders that appear whole or not at all.

A file is written beside its target under a hidden name, synced, and renamed over the target at the end. Standard
output, devices and named pipes cannot be renamed: for these the data wait in an unnamed temporary file and are copied
when all of them are there. Whatever raises in between, an interrupt included, leaves the target as it was, and no
other file.
"""

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from mamba_seq.pipelines.compressed import Sink, packed
from mamba_seq.pipelines.errors import OutputError

STDOUT = "-"
COPY_PIECE = 1 << 20


@contextlib.contextmanager
def open_output(target: str) -> Iterator[Sink]:
    """Write to `target`, which appears when the block ends well and stays as it was when the block raises.

    Args:
        target: a path, or "-" for standard output. A path that ends in .gz, .bz2, .xz or .zst is compressed.

    Raises:
        OutputError: when the target cannot be written: no folder, no permission, a folder of that name, no space.
        BrokenPipeError: when the reader of standard output has gone.
    """
    with open_outputs((target,)) as (sink,):
        yield sink


@contextlib.contextmanager
def open_outputs(targets: Sequence[str]) -> Iterator[list[Sink]]:
    """Write to several targets, which appear together: none before the data of all of them are on the disk.

    Args:
        targets: as for `open_output`.

    Raises:
        OutputError: as for `open_output`.
        BrokenPipeError: when the reader of standard output has gone.
    """
    for target in targets:
        check_output(target)
    with contextlib.ExitStack() as stack:
        waiting: list[_Waiting] = []
        for target in targets:
            waiting.append(_Spooled(target) if _must_spool(target) else _Beside(target))
            stack.callback(waiting[-1].discard)
        with contextlib.ExitStack() as packers:
            yield [packers.enter_context(packed(w.sink, t)) for w, t in zip(waiting, targets, strict=True)]
        for each in waiting:
            each.settle()
        for each in waiting:
            each.appear()


def check_output(target: str, inputs: tuple[str, ...] = ()) -> None:
    """Refuse a target that could not be written, before any work is done.

    Args:
        target: as for `open_output`.
        inputs: files that are read; the target may not be one of them.

    Raises:
        OutputError: with what to do about it.
    """
    if not target:
        raise OutputError("the name of the output is empty; name a file, or - for standard output")
    if target == STDOUT:
        if sys.stdout is None:
            raise OutputError("standard output is closed; name a file with -o")
        return
    path = Path(os.path.realpath(target))
    if path.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {path.parent}; make it first (mkdir -p)")
    for name in inputs:
        if name != STDOUT and _is_regular(path) and os.path.exists(name) and os.path.samefile(path, name):
            raise OutputError(f"cannot write {target}: it is also an input; choose another name for the output")
    place = path.parent if _is_regular(path) or not path.exists() else path
    if not os.access(place, os.W_OK):
        raise OutputError(f"cannot write {target}: no permission to write to {place}")


def check_outputs(targets: Sequence[str], inputs: tuple[str, ...] = ()) -> None:
    """Refuse targets that could not be written, or of which two are the same; see `check_output`.

    Raises:
        OutputError: with what to do about it.
    """
    seen: dict[str, str] = {}
    for target in targets:
        check_output(target, inputs)
        place = target if target == STDOUT else os.path.realpath(target)
        if place in seen and place != os.devnull:
            name = "standard output" if target == STDOUT else target
            raise OutputError(f"two outputs are to go to {name}; give each a name of its own")
        seen[place] = target


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a path to make a folder at, which becomes `target` when the block ends well and is gone when it raises.

    Args:
        target: new, or an empty folder.

    Raises:
        OutputError: when the target is a file, or not empty.
    """
    check_new_folder(target)
    real = target.resolve()
    real.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=real.parent, prefix=f".{real.name[:60]}.", suffix=".part") as beside:
        made = Path(beside) / "made"
        yield made
        made.replace(real)


def check_new_folder(target: Path) -> None:
    """Refuse a folder that is there and not empty, before any work is done.

    Raises:
        OutputError: with what came.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = "is not empty" if target.is_dir() else "is a file"
        raise OutputError(f"cannot write the folder {target}: it {what}, expected a new or empty folder")


class _Waiting(Protocol):
    """Data on their way to a target."""

    sink: "_Told"

    def settle(self) -> None:
        """Bring all that was written to the disk."""

    def appear(self) -> None:
        """Make the target what was written."""

    def discard(self) -> None:
        """Close and remove what did not become the target."""


class _Beside:
    """A hidden file in the folder of the target that is renamed over it."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._path = path = Path(os.path.realpath(target))
        with _telling(target):
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".part")
        self._hidden: str | None = name
        self.sink = _Told(open(descriptor, "wb"), target)  # noqa: SIM115 - closed below, where an error is told

    def settle(self) -> None:
        self.sink.flush()
        with _telling(self._target):
            os.fchmod(self.sink.fileno(), _mode(self._path))
            os.fsync(self.sink.fileno())
        self.sink.close()

    def appear(self) -> None:
        assert self._hidden is not None
        with _telling(self._target):
            os.replace(self._hidden, self._path)
        self._hidden = None

    def discard(self) -> None:
        try:
            self.sink.close()
        finally:
            if self._hidden is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._hidden)


class _Spooled:
    """A temporary file without a name that is copied to the target."""

    def __init__(self, target: str) -> None:
        self._target = target
        place = f"to the temporary folder {tempfile.gettempdir()} (set TMPDIR, or name a file with -o)"
        with _telling(place):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, where an error is told
        self.sink = _Told(self._file, place)

    def settle(self) -> None:
        self.sink.flush()

    def appear(self) -> None:
        self._file.seek(0)
        with _telling(self._target):
            if self._target == STDOUT:
                sys.stdout.flush()
                _copy(self._file, sys.stdout.buffer)
            else:
                with open(self._target, "wb") as device:
                    _copy(self._file, device)

    def discard(self) -> None:
        self.sink.close()


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    """Copy all of it: with PYTHONUNBUFFERED, standard output is a raw file that may take only a part of a write."""
    while piece := source.read(COPY_PIECE):
        left = memoryview(piece)
        while left:
            left = left[target.write(left) :]
    target.flush()


class _Told:
    """Passes bytes on, and says in words what stood in the way."""

    def __init__(self, raw: BinaryIO, target: str) -> None:
        self._raw = raw
        self._target = target

    def write(self, data: bytes, /) -> int:
        with _telling(self._target):
            return self._raw.write(data)

    def flush(self) -> None:
        with _telling(self._target):
            self._raw.flush()

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        # what is still in the buffer may fail once more
        with _telling(self._target):
            self._raw.close()


@contextlib.contextmanager
def _telling(target: str) -> Iterator[None]:
    """Turn an OSError into an OutputError about `target`; a closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if target == STDOUT else target
        advice = "; free some space or write elsewhere" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OutputError(f"cannot write {name}: {(error.strerror or str(error)).lower()}{advice}") from error


def _must_spool(target: str) -> bool:
    return target == STDOUT or (os.path.exists(target) and not _is_regular(Path(target)))


def _is_regular(path: Path) -> bool:
    return path.exists() and stat.S_ISREG(path.stat().st_mode)


def _mode(path: Path) -> int:
    """Give the permissions of the file that is replaced, or those of a new file."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
