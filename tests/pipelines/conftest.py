import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numba
import pytest
import torch

from mamba_seq.pipelines import models
from mamba_seq.pipelines.cli import main
from tests.pipelines.tiny_run import genomes, recipe, whole

__all__ = ["genomes", "recipe", "whole"]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()[1:]]


Run = Callable[..., Result]
HERE = Path(__file__).parent
GOLDEN = HERE / "golden"


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_children() -> Iterator[None]:
    """A suite in the background (nohup, a job with &) ignores SIGINT or SIGHUP, and its children would with it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def fake_module() -> Any:
    """tests/pipelines/fake.py, which is a script as well."""
    spec = importlib.util.spec_from_file_location("fake", HERE / "fake.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(fake_module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model behind every -m."""
    model = fake_module.FakeClassifier()
    monkeypatch.setattr(models, "load_model", lambda spec, device: model.to(device))
    return model


@pytest.fixture(autouse=True)
def _runtime_as_before() -> Iterator[None]:
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other
    yield
    torch.set_num_threads(threads)
    numba.set_num_threads(numba_threads)
    package = logging.getLogger("mamba_seq")
    package.handlers.clear()
    package.propagate = True
    logging.captureWarnings(False)
    logging.getLogger("py.warnings").propagate = True


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def golden(run: Run) -> Callable[..., None]:
    """Compare standard output, byte for byte, with a file; MAMBA_SEQ_WRITE_GOLDEN=1 writes it anew."""

    def compare(name: str, *arguments: object) -> None:
        result = run(*arguments)
        assert result.code == 0, result.err
        if os.environ.get("MAMBA_SEQ_WRITE_GOLDEN"):
            (GOLDEN / name).write_text(result.out)
        assert result.out == (GOLDEN / name).read_text()

    return compare


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line in a process of its own, with the fake model pausing `delay` seconds at every batch."""
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: object, delay: float = 0.0, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", str(HERE / "fake.py"), str(delay)]
        pipes = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            "text": True,
            **options,
        }
        process = subprocess.Popen([*command, *map(str, arguments)], **pipes)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
