"""The progress bar: it never says more than is done, never falls, and ends at the end."""

import gzip
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_seq.pipelines.classify import Classifier, Options, Summary
from mamba_seq.pipelines.cli import _messages
from mamba_seq.pipelines.progress import Progress

CASES: dict[str, tuple[list[str], dict[str, int]]] = {
    "reads": (["ACGTTGCA" * 9] * 3000, {}),
    "long and short": (["ACGTTGCA" * 40_000, *["ACGT" * 20] * 500, "GGCA" * 50_000], {}),
    "one record, some windows": (["ACGTTGCA" * 200_000], {"max_windows": 16, "batch_tokens": 128}),
    "one record, all windows": (["ACGTTGCA" * 40_000], {"max_windows": 0}),
    "nothing for the model": ([""] * 2000, {}),
    "too short": (["ACGT"] * 2000, {"min_length": 9}),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("case", CASES)
def test_it_tells_the_truth(fake: Any, tmp_path: Path, case: str, pack: Callable[[bytes], bytes]) -> None:
    sequences, options = CASES[case]
    half = len(sequences) // 2
    paths = []
    for number, part in enumerate((sequences[:half], sequences[half:])):
        if part:
            path = tmp_path / f"{number}.fa"
            path.write_bytes(pack("".join(f">r{i}\n{s}\n" for i, s in enumerate(part)).encode()))
            paths.append(str(path))
    told: list[tuple[float, int, int]] = []

    def tell(summary: Summary) -> None:
        assert summary.done is not None
        told.append((summary.done, sum(summary.statuses.values()), summary.windows))

    settings = Options(**{"context": 64, "stride": 64, "batch_tokens": 1024, **options})
    classifier = Classifier(fake, fake.config.labels, torch.device("cpu"), settings, tell)
    rows = sum(1 for _ in classifier.rows(paths))
    parts = [done for done, _, _ in told]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert rows == len(sequences)
    if case != "long and short":
        windows = max(1, classifier.summary.windows)
        for done, finished, through in told:
            # no more than its rows or, within a record, its windows; compressed bytes are estimated
            assert done <= max(finished / rows, through / windows) + (0.02 if pack is bytes else 0.3)
    if case.startswith("one record"):
        assert len({round(done, 1) for done in parts}) > 5


def test_a_chromosome_that_was_read_is_not_done(tmp_path: Path) -> None:
    path = tmp_path / "in.fa"
    path.write_bytes(bytes(1000))
    progress = Progress([str(path), str(path)])
    position = progress.open(0)
    position.follow(type("Source", (), {"read": 1000, "used": 1000, "offset": 1000})())  # type: ignore[arg-type]
    assert progress.done(0, 0) == 0
    progress.cut(500, 1000)
    assert progress.done(4, 8) == 0.125
    progress.cut(1000, 1000)
    assert progress.end_record() == 1000
    assert progress.done(8, 32) == 0.125
    assert progress.done(16, 32) == 0.25
    assert progress.done(16, 40) == 0.25
    progress.finish(1000, 32)
    assert progress.done(32, 40) == 0.5
    progress.open(1)
    assert progress.done(40, 40) == 0.5
    progress.end()
    assert progress.done(40, 40) == 1.0


def test_standard_input_and_pipes_have_no_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    for extra in ("-", str(tmp_path / "pipe"), str(tmp_path / "none")):
        assert Progress([str(tmp_path / "file"), extra]).done(1, 1) is None


def test_the_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with _messages.progress("classifying", verbosity=0) as show:
            show("3 records", 0.37)
        text = stream.getvalue()
        assert ("37%" in text) == drawn
        assert ("3 records" in text) == drawn


@pytest.mark.usefixtures("fake")
def test_a_thousand_files(run: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.fa" for i in range(1000)]
    for i, path in enumerate(paths):
        path.write_text(f">r{i}\nACGTTGCA\n")
    options = ["--classified-out", tmp_path / "yes", "--multiqc", tmp_path / "x_mqc.json", "--report", tmp_path / "r"]
    result = run("classify", *paths, *options)
    assert result.code == 0, result.err
    assert [row[0] for row in result.rows] == [f"r{i}" for i in range(1000)]
    assert (tmp_path / "yes").read_text() == "".join(path.read_text() for path in paths)
