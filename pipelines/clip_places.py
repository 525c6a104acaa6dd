"""Where clips go: a folder with a table, a file, or standard output, and a page.

Files appear together at the end: they wait in a hidden folder beside where they go, and are renamed.
"""

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from mamba_seq.pipelines.audio_request import AudioRequest, Clip
from mamba_seq.pipelines.errors import OutputError
from mamba_seq.pipelines.output import STDOUT, check_output, open_output
from mamba_seq.pipelines.sound_files import format_of

log = logging.getLogger("mamba_seq.pipelines")

TABLE = "clips.tsv"
COLUMNS = ("file", "label", "seed", "index", "seconds", "log_likelihood", "bits_per_sample", "peak")


class Places:
    """Where files go: beside, and at the end of a with block that does not raise to their names."""

    def __init__(self, request: AudioRequest) -> None:
        self._request, self._form = request, request.form
        self._stack = contextlib.ExitStack()
        self._rows: list[list[str]] = []
        self._page: list[bytes] = []
        self._beside: Path | None = None
        self._made_folder: list[Path] = []

    def __enter__(self) -> "Places":
        output, gallery = self._request.output, self._request.gallery
        try:
            if output not in (STDOUT, "") and not self._request.is_file:
                self._make_folder(Path(output))
            if output == STDOUT or self._request.is_file:
                check_output(output, () if self._request.prompt is None else (self._request.prompt,))
            if gallery is not None:
                check_output(gallery)
                if gallery == STDOUT and output == STDOUT:
                    raise OutputError("clips and gallery are both to go to standard output; name a file for one")
        except BaseException:
            self._forget_folder()
            raise
        return self

    def name(self, clip: Clip) -> str:
        """Return what the table calls the file of a clip."""
        if self._request.output == STDOUT:
            return clip.name
        return Path(self._request.output).name if self._request.is_file else f"{clip.name}.{self._form}"

    def put(self, clip: Clip, sound: bytes, row: list[str]) -> None:
        """Take a clip."""
        self._rows.append(row)
        if self._request.output == STDOUT:
            return
        if self._request.is_file:
            with open_output(self._request.output) as sink:
                sink.write(sound)
            return
        assert self._beside is not None
        self._write(self._beside / self.name(clip), sound)

    def page(self, page: bytes) -> None:
        """Take the gallery."""
        self._page.append(page)

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self._appear()
        finally:
            self._stack.close()
            if kind is not None:
                self._forget_folder()

    def _appear(self) -> None:
        if self._beside is not None:
            lines = ["\t".join(row) for row in [list(COLUMNS), *self._rows]]
            self._write(self._beside / TABLE, ("\n".join(lines) + "\n").encode())
            files = sorted(self._beside.iterdir(), key=lambda file: file.name == TABLE)
            made = {file.name for file in files}
            others = [p for p in Path(self._request.output).iterdir() if format_of(p.name) and p.name not in made]
            if others:
                log.warning(
                    "%s has %d sound file%s from before, such as %s, which the new %s does not list",
                    *(self._request.output, len(others), "s" * (len(others) > 1), others[0].name, TABLE),
                )
            for file in files:
                file.replace(Path(self._request.output) / file.name)
        if self._page:
            assert self._request.gallery is not None
            with open_output(self._request.gallery) as sink:
                sink.write(self._page[0])

    def _make_folder(self, folder: Path) -> None:
        try:
            for each in [folder, *folder.parents]:
                if each.exists():
                    break
                self._made_folder.append(each)
            folder.mkdir(parents=True, exist_ok=True)
            beside = tempfile.TemporaryDirectory(dir=folder, prefix=".clips.", suffix=".part")
        except FileExistsError as error:
            raise OutputError(
                f"cannot write the folder {folder}: it is a file; name a folder, or a file as clip.wav"
            ) from error
        except OSError as error:
            raise OutputError(f"cannot write the folder {folder}: {(error.strerror or str(error)).lower()}") from error
        self._beside = Path(self._stack.enter_context(beside))

    def _forget_folder(self) -> None:
        self._stack.close()
        with contextlib.suppress(OSError):
            for folder in self._made_folder:  # those that are empty, innermost first
                folder.rmdir()

    def _write(self, path: Path, data: bytes) -> None:
        try:
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self._request.output}: {(error.strerror or str(error)).lower()}"
            ) from error
