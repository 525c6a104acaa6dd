"""The shell around every command: help, common options, exit codes, interrupts and closed pipes."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from mamba_seq import __version__
from mamba_seq.pipelines import cli
from mamba_seq.pipelines.cli import _failures, _shell
from mamba_seq.pipelines.cli._shell import Settings

COMMANDS = [
    *["classify", "generate", "finetune", "predict", "evaluate", "score", "embed", "mutate"],
    *["calibrate", "train", "download", "zoo", "push", "export", "convert", "info", "bench"],
]
COMMON = ["--quiet", "--verbose", "--seed", "--device", "--threads", "--debug", "--version", "--help"]
READING = ["--strand", "--context", "--stride", "--max-windows", "--batch-tokens"]
DATA = [
    *[
        "--sequence",
        "--label",
        "--id",
        "--split",
        "--group",
        "--values",
        "--series",
        "--labels-file",
        "--label-pattern",
    ],
    *["--reference", "--flank", "--feature", "--qualifier", "--sample-rate"],
]
# a frozen list: an option that is new, renamed or gone is a change that users see, and belongs in the changelog
OPTIONS = {
    (): [],
    ("classify",): [
        *["--model", "--output", "--format", "--windows", "--kreport", "--report", "--multiqc", "--classified-out"],
        *["--unclassified-out", "--taxonomy", "--min-probability", "--novel", *READING, "--min-length", "--strict"],
    ],
    ("generate",): [
        *["--model", "--output", "--text", "--clips", "--seconds", "--label", "--prompt", "--temperature", "--top-k"],
        *["--top-p", "--guidance", "--format", "--gallery", "--max-tokens", "--stop", "--echo"],
    ],
    ("finetune",): ["--model", "--from-scratch", "--output", "--task", "--tune", "--force", "--max-minutes", *DATA],
    ("predict",): ["--model", "--output", "--strand", "--batch-tokens", *DATA],
    ("evaluate",): [
        *["--model", "--output", "--format", "--lengths", "--per-class", "--splits", "--records", "--only"],
        *["--novel", "--unknown", "--real", "--json", *READING],
        *DATA,
    ],
    ("score",): ["--model", "--output", "--format", "--strand", "--context", "--batch-tokens"],
    ("embed",): [
        *["--model", "--output", "--window", "--stride", "--pooling", "--layer", "--strand", "--batch-tokens"],
    ],
    ("mutate",): [
        *["--model", "--region", "--vcf", "--output", "--vcf-out", "--info", "--picture", "--label", "--score"],
        *["--strand", "--context", "--on-mismatch", "--batch-tokens"],
    ],
    ("calibrate",): ["--model", "--output", "--lengths", "--per-class", "--splits", *READING],
    ("train",): ["--output", "--force", "--max-minutes", "--checkpoint-mib"],
    ("download",): ["--output", "--base-url"],
    ("zoo",): [],
    ("zoo", "list"): [],
    ("zoo", "show"): ["--json"],
    ("zoo", "export"): [],
    ("push",): ["--private", "--license", "--message"],
    ("export",): ["--output", "--length", "--mask"],
    ("convert",): ["--to"],
    ("info",): ["--no-compile"],
    ("bench",): [
        *["--output", "--quick", "--shape", "--lengths", "--d-state", "--dtype", "--op", "--direction", "--peer"],
    ],
}


def own_process(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("path", list(OPTIONS), ids=" ".join)
def test_help_lists_exactly_the_frozen_options(run: Any, path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert (result.code, result.err) == (0, "")
    listed = result.out.split("Options:")[1].split("Commands:")[0]
    assert re.findall(r"^  (?:-\w, )?(--[a-z-]+)", listed, flags=re.MULTILINE) == [*OPTIONS[path], *COMMON]


def test_help_names_every_command(run: Any) -> None:
    result = run("-h")
    assert re.findall(r"^  ([\w-]+)  ", result.out.split("Commands:")[1], flags=re.MULTILINE) == COMMANDS


def test_no_arguments_show_the_help_as_wrong_usage(run: Any) -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert "Commands:" in result.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mamba_seq.pipelines.cli import main\n"
        "for words in ('--help', 'classify --help', 'train --help', 'evaluate --help', 'zoo', 'x', 'info --bad', "
        "'bench --help', 'finetune --help', 'predict --help', 'embed --help', 'mutate --help', 'generate --help', "
        "'download --help', 'push --help', 'export --help'):\n"
        "    main(words.split())\n"
        "heavy = {'torch', 'numpy', 'numba', 'triton', 'lightning', 'jsonargparse', 'rich', 'Bio', 'huggingface_hub'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = own_process(code)
    assert done.returncode == 0, done.stderr[-200:]


def test_version_on_stdout_before_and_after_the_command(run: Any) -> None:
    for arguments in (["--version"], ["classify", "--version"], ["zoo", "list", "--version"]):
        assert run(*arguments) == (0, f"mamba-seq {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clasify"], "Did you mean 'classify'?"),
        (["xyz"], f"Commands: {', '.join(COMMANDS)}."),
        (["zoo", "lst"], "Did you mean 'list'?"),
        (["classify", "--formt", "tsv"], "Did you mean"),
        (["classify", "--threads", "0"], "is not in the range"),
        (["--device", "cuda:x", "info"], "expected auto, cpu, cuda or cuda:N"),
        (["zoo", "show"], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage(run: Any, arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "Traceback" not in result.err


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[Settings]]:
    """Add a command "probe" that runs a body and keeps the settings it saw."""

    def install(body: Callable[[], None]) -> list[Settings]:
        seen: list[Settings] = []

        @click.command(cls=_shell.Command)
        @click.pass_obj
        def command(settings: Settings) -> None:
            seen.append(settings)
            body()

        monkeypatch.setitem(cli.mamba_seq.commands, "probe", command)
        return seen

    return install


def test_common_options_mean_the_same_before_and_after_the_command(run: Any, probe: Any) -> None:
    seen = probe(lambda: None)
    words = ["-q", "--seed", "7", "--device", "cpu", "--threads", "3", "--debug"]
    assert run(*words, "probe").code == run("probe", *words).code == 0
    assert seen[0] == seen[1] == Settings(verbosity=-1, seed=7, device="cpu", threads=3, debug=True)
    run("-q", "--seed", "1", "probe", "-v", "--seed", "2")
    assert (seen[2].verbosity, seen[2].seed) == (1, 2)


def test_threads_from_the_environment_yield_to_the_option(
    run: Any, probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = probe(lambda: None)
    monkeypatch.setenv("MAMBA_SEQ_NUM_THREADS", "5")
    for words in (["probe"], ["--threads", "2", "probe"], ["probe", "--threads", "2"]):
        run(*words)
    assert [settings.threads for settings in seen] == [5, 2, 2]


@pytest.mark.parametrize(
    ("flag", "shown"), [("-q", ["warning"]), ("--seed=1", ["info", "warning"]), ("-v", ["debug", "info", "warning"])]
)
def test_verbosity(run: Any, probe: Any, flag: str, shown: list[str]) -> None:
    log = logging.getLogger("mamba_seq.pipelines")
    probe(lambda: [log.log(level, "words") for level in (logging.DEBUG, logging.INFO, logging.WARNING)])  # type: ignore[func-returns-value]
    result = run("probe", flag)
    lines = {"debug": "mamba-seq: debug: words", "info": "mamba-seq: words", "warning": "mamba-seq: warning: words"}
    assert result.err.splitlines() == [lines[name] for name in shown]
    assert result.out == ""


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "mamba-seq: interrupted"),
        (BrokenPipeError(), 1, ""),
        (FileNotFoundError(2, "No such file or directory", "x.fa"), 1, "x.fa: No such file or directory"),
        (MemoryError("no more"), 1, "out of memory; try a smaller --batch-tokens"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
        (RuntimeError("boom"), 1, "unexpected RuntimeError: boom"),
        (_failures.Terminated(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (SystemExit("words of jsonargparse"), 1, "mamba-seq: error: words of jsonargparse"),
        (SystemExit(2), 2, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(run: Any, probe: Any, error: BaseException, code: int, words: str) -> None:
    probe(raising(error))
    result = run("probe")
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert result.err.count("\n") == (1 if words else 0)
    if words:
        assert "Traceback" in run("probe", "--debug").err


def many_records(folder: Path, count: int = 4000) -> Path:
    path = folder / "in.fa"
    path.write_text("".join(f">record_{i}\nACGTACGTTGCA\n" for i in range(count)))
    return path


def test_ctrl_c_leaves_no_file(start: Any, tmp_path: Path) -> None:
    source = many_records(tmp_path)
    target = tmp_path / "out.tsv"
    process = start("classify", source, "-o", target, "--batch-tokens", 256, delay=0.2)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.tsv.*.part")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "mamba-seq: interrupted\n")
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == [source]


# a process without torch, which starts at once: sends itself the signal in argv[2] while argv[1] is half written
HALF_WRITTEN = """
import os, sys
from mamba_seq.pipelines.cli._failures import guarded
from mamba_seq.pipelines.cli._shell import Settings
from mamba_seq.pipelines.output import open_output

def call():
    with open_output(sys.argv[1]) as sink:
        sink.write(b"half" * 100_000)
        os.kill(os.getpid(), int(sys.argv[2]))

sys.exit(guarded(call, Settings()))
"""


# what numpy does when Ctrl-C comes while it is imported: another error takes the interrupt's place
SWALLOWED = """
import os, sys
from mamba_seq.pipelines.cli._failures import guarded
from mamba_seq.pipelines.cli._shell import Settings

def call():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        [None for _ in range(1000)]
    except BaseException:
        raise AttributeError("module has no attribute") from None

sys.exit(guarded(call, Settings()))
"""


@pytest.mark.parametrize(("name", "words"), [("SIGINT", "interrupted"), ("SIGTERM", "stopped by SIGTERM")])
def test_signal_that_surfaces_as_another_error(name: str, words: str) -> None:
    number = int(signal.Signals[name])
    done = own_process(SWALLOWED, str(number))
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"mamba-seq: {words}\n")


# ends with 9 when the signal cuts it short
IMPORTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    [None for _ in range(1000)]
except BaseException:
    os._exit(9)
"""
IMPORTING = """
import sys, time
from mamba_seq.pipelines.cli._failures import guarded
from mamba_seq.pipelines.cli._shell import Settings

def call():
    sys.path.insert(0, sys.argv[1])
    import imported
    time.sleep(30)

sys.exit(guarded(call, Settings()))
"""


@pytest.mark.parametrize(("name", "words"), [("SIGINT", "interrupted"), ("SIGTERM", "stopped by SIGTERM")])
def test_signal_waits_for_the_end_of_an_import(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "imported.py").write_text(IMPORTED.format(name=name))
    done = own_process(IMPORTING, str(tmp_path))
    expected = (128 + int(signal.Signals[name]), "", f"mamba-seq: {words}\n")
    assert (done.returncode, done.stdout, done.stderr) == expected


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_leave_no_file(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    for target in (str(tmp_path / "out.tsv"), "-"):
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = own_process(HALF_WRITTEN, target, str(int(number)), env=environment)
        words = "interrupted" if name == "SIGINT" else f"stopped by {name}"
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"mamba-seq: {words}\n")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_closed_pipe_is_silent(unbuffered: str) -> None:
    # more than a pipe holds, and signal 0, which is none
    command = [sys.executable, "-c", HALF_WRITTEN, "-", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"half"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


def test_closed_pipe_of_a_short_text_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from mamba_seq.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "--version"], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_full_standard_output_is_an_error() -> None:
    code = "import sys; from mamba_seq.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "--version"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"mamba-seq: error: No space left on device\n")


@pytest.mark.parametrize(("before", "after"), [(None, "1000"), ("5", "5")])
def test_threads_of_torch_do_not_spin_for_long(before: str | None, after: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if before is not None:
        environment["GOMP_SPINCOUNT"] = before
    code = "import os, sys; from mamba_seq.pipelines.cli import main; main(['--version']); "
    code += "assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.split()[-1] == after, done.stderr


def test_progress_is_for_terminals_only(start: Any, tmp_path: Path) -> None:
    source = many_records(tmp_path, 300)
    leader, follower = os.openpty()
    process = start("classify", source, "-o", tmp_path / "out.tsv", stderr=follower)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 4096):
            shown += part
    except OSError:  # Linux reports the end of a pseudo-terminal as an input/output error
        pass
    os.close(leader)
    assert process.wait(timeout=60) == 0
    assert b"classifying" in shown
    assert b"\x1b[" in shown
