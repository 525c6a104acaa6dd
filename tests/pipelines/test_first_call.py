"""What `mamba-seq info` says of the first call: compiled or from a cache, how long, and where the cache is."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_seq.pipelines import first_call
from mamba_seq.pipelines.first_call import Kernels, in_words

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("compiled", "loaded", "words"),
    [
        (9, 0, "compiled in 4.2 s (9 kernels)"),
        (2, 7, "compiled in 4.2 s (2 of 9 kernels)"),
        (0, 9, "from the cache in 4.2 s (9 kernels)"),
        (0, 0, "in this process already"),
    ],
)
def test_words(compiled: int, loaded: int, words: str) -> None:
    assert in_words(Kernels(compiled, loaded, 4.21, frozenset())) == words


def test_numba_compiles_once_and_then_has_it_in_a_cache(tmp_path: Path) -> None:
    code = "import sys; from mamba_seq.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for words in (r"compiled in \d+\.\d s \(2 kernels\)", r"from the cache in \d+\.\d s \(2 kernels\)"):
        command = [sys.executable, "-c", code, "info", "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        kernels, cache = (line[17:] for line in done.stdout.splitlines()[-2:])
        assert re.fullmatch(words, kernels)
        folder, _, rest = cache.partition(", ")
        assert Path(folder).parent == tmp_path
        assert re.fullmatch(r"0\.[1-9] MB \(NUMBA_CACHE_DIR names another folder\)", rest)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.nb[ic]")) / 1e6
    assert rest.startswith(f"{size:.1f} MB")


def test_a_second_call_in_a_process_compiles_nothing(run: Any) -> None:
    run("info", "--device", "cpu")
    result = run("info", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert "\nscan kernels     in this process already\n" in result.out
    assert "scan kernels" not in run("info", "--device", "cpu", "--no-compile").out


def test_triton_tells_a_listener(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    knobs = pytest.importorskip("triton").knobs
    heard = []

    def listener(**told: Any) -> None:
        heard.append(told["cache_hit"])

    def call() -> None:
        for hit in (True, False, True):
            knobs.compilation.listener(src=None, metadata={}, metadata_group={}, times=None, cache_hit=hit)

    monkeypatch.setattr(knobs.compilation, "listener", listener)
    monkeypatch.setattr(first_call, "scan_call", lambda *_: call)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(first_call, "choose_backend", lambda *_: "triton")
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "scan.cubin").write_bytes(bytes(1_200_000))
    lines = list(first_call.report(CPU))
    assert re.fullmatch(r"compiled in 0\.0 s \(1 of 3 kernels\)", lines[0][1])
    assert lines[1] == ("kernel cache", f"{tmp_path}, 1.2 MB (TRITON_CACHE_DIR names another folder)")
    assert heard == [True, False, True]
    assert knobs.compilation.listener is listener


def test_a_failure_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("ptxas died\nof something")

    monkeypatch.setattr(first_call, "scan_call", fail)
    assert list(first_call.report(CPU)) == [("scan kernels", "failed: ptxas died")]


def test_the_reference_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_call, "choose_backend", lambda *_: "reference")
    assert list(first_call.report(CPU)) == [("scan kernels", "none: the reference is plain torch")]


def test_kernels_that_are_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_call, "with_numba", lambda device: Kernels(2, 0, 2.6, frozenset()))
    assert list(first_call.report(CPU))[1][1].startswith("none: every process compiles anew; NUMBA_CACHE_DIR")


@pytest.mark.gpu
def test_on_a_gpu(run: Any) -> None:
    result = run("info", "--device", "cuda")
    assert result.code == 0, result.err
    assert re.search(r"^scan kernels     (compiled|from the cache) in \d+\.\d s|process already", result.out, re.M)
    assert "TRITON_CACHE_DIR names another folder" in result.out
