"""A checkpoint as one file, or in parts of limited size that can be carried to another machine one by one.

    checkpoints/last.ckpt                  one file, or
    checkpoints/last.json                  names, sizes and digest of the parts, and
    checkpoints/last.<digest>.<number>     the parts

The parts of a new checkpoint have names of their own, and the list of them is renamed into place when they are all
there: a run that is killed while it writes keeps the old checkpoint. A run goes on from either form.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mamba_seq.errors import ModelError
from mamba_seq.saving import write_whole

CHUNK = 1 << 20


def write_checkpoint(path: Path, save: Callable[[Path], Any], part_bytes: int | None = None) -> None:
    """Write a checkpoint, whole or not at all, in place of the one before.

    Args:
        path: of the one file, last.ckpt.
        save: writes the checkpoint into the file it is given.
        part_bytes: split it into parts of at most so many bytes; None writes one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    save(beside)
    if part_bytes is None:
        beside.replace(path)
        _list(path).unlink(missing_ok=True)
        _remove_parts(path, keep=())
        return
    digest = _digest(beside)
    parts: list[dict[str, Any]] = []
    with beside.open("rb") as file:
        while data := file.read(part_bytes):
            part = path.with_name(f"{path.stem}.{digest[:12]}.{len(parts):03d}")
            write_whole(part, data)
            parts.append({"name": part.name, "bytes": len(data)})
    write_whole(_list(path), (json.dumps({"sha256": digest, "parts": parts}, indent=2) + "\n").encode())
    path.unlink(missing_ok=True)
    beside.unlink()
    _remove_parts(path, keep=tuple(part["name"] for part in parts))


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint in either form."""
    return path.is_file() or _list(path).is_file()


@contextlib.contextmanager
def whole_checkpoint(path: Path) -> Iterator[Path]:
    """Give the checkpoint as one file, put together for the time being if it is in parts.

    Raises:
        ModelError: a part is missing or damaged.
    """
    # with both there, the run was killed between writing the newer one and removing the older one
    if path.is_file() and not (_list(path).is_file() and _list(path).stat().st_mtime > path.stat().st_mtime):
        yield path
        return
    joined = path.with_name(f".{path.name}.joined")
    try:
        _join(path, joined)
        yield joined
    finally:
        joined.unlink(missing_ok=True)


def _join(path: Path, joined: Path) -> None:
    advice = "copy all parts again, or say --force to begin anew"
    try:
        described = json.loads(_list(path).read_text(encoding="utf-8"))
        parts, digest = [(part["name"], part["bytes"]) for part in described["parts"]], described["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{_list(path)} is no list of a checkpoint's parts: {error}; {advice}") from error
    with joined.open("wb") as file:
        for name, size in parts:
            part = path.with_name(Path(name).name)
            if not part.is_file() or part.stat().st_size != size:
                found = f"has {part.stat().st_size:,} bytes" if part.is_file() else "is missing"
                raise ModelError(f"{part}, a part of the checkpoint, {found}, expected {size:,} bytes; {advice}")
            file.write(part.read_bytes())
    if _digest(joined) != digest:
        raise ModelError(f"the parts of {path} do not make up what was saved: a part is damaged; {advice}")


def _remove_parts(path: Path, keep: tuple[str, ...]) -> None:
    for part in path.parent.glob(f"{path.stem}.*.[0-9][0-9][0-9]"):
        if part.name not in keep:
            part.unlink()


def _list(path: Path) -> Path:
    return path.with_suffix(".json")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
