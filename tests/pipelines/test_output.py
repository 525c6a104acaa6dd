"""Output files appear whole or not at all."""

import gzip
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_seq.pipelines import output
from mamba_seq.pipelines.errors import OutputError
from mamba_seq.pipelines.output import check_output, open_output


def write_and_fail(target: str, failure: BaseException) -> None:
    with open_output(target) as sink:
        sink.write(b"new")
        raise failure


def test_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out.tsv"
    with open_output(str(target)) as sink:
        sink.write(b"half")
        assert not target.exists()
        sink.write(b" and half")
    assert target.read_bytes() == b"half and half"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tsv"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out.tsv"
    target.write_text("old")
    with pytest.raises(failure):
        write_and_fail(str(target), failure())
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_gz_suffix_compresses_the_same_bytes_every_time(tmp_path: Path) -> None:
    files = [tmp_path / "a.tsv.gz", tmp_path / "b.tsv.gz"]
    for target in files:
        with open_output(str(target)) as sink:
            sink.write(b"row\n" * 1000)
    assert gzip.decompress(files[0].read_bytes()) == b"row\n" * 1000
    assert files[0].read_bytes() == files[1].read_bytes()


def test_failed_gz_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        write_and_fail(str(tmp_path / "a.gz"), ValueError("stop"))
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_the_replaced_file_or_of_a_new_one(tmp_path: Path) -> None:
    old, new, plain = tmp_path / "old", tmp_path / "new", tmp_path / "plain"
    old.touch(mode=0o600)
    plain.touch()
    for target in (old, new):
        with open_output(str(target)) as sink:
            sink.write(b"x")
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    assert new.stat().st_mode == plain.stat().st_mode


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.tsv"
    link.symlink_to(tmp_path / "real" / "data.tsv")
    with open_output(str(link)) as sink:
        sink.write(b"x")
    assert link.is_symlink()
    assert (tmp_path / "real" / "data.tsv").read_text() == "x"


def test_stdout_gets_everything_or_nothing(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with open_output("-") as sink:
        sink.write(b"rows\n")
        assert capfdbinary.readouterr().out == b""
    assert capfdbinary.readouterr().out == b"rows\n"
    with pytest.raises(ValueError, match="stop"):
        write_and_fail("-", ValueError("stop"))
    assert capfdbinary.readouterr().out == b""


def test_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    with open_output(os.devnull) as sink:
        sink.write(b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        with open_output(str(pipe)) as sink:
            sink.write(b"through the pipe")
        assert reader.communicate()[0] == b"through the pipe"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_full_device() -> None:
    message = r"cannot write /dev/full: no space left on device; free some space"
    with pytest.raises(OutputError, match=message), open_output("/dev/full") as sink:
        sink.write(b"x" * 100_000)


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["at-close", "at-write"])
def test_full_disk_leaves_nothing(tmp_path: Path, size: int) -> None:
    # a process of its own, because the limit on the size of files cannot be raised again
    code = (
        "import resource, signal, sys\n"
        "from mamba_seq.pipelines.output import open_output\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from mamba_seq.pipelines.errors import OutputError\n"
        "try:\n"
        "    with open_output(sys.argv[1]) as sink:\n"
        "        sink.write(b'x' * int(sys.argv[2]))\n"
        "except OutputError as error:\n"
        "    sys.exit(str(error))\n"
    )
    target = tmp_path / "out.tsv"
    done = subprocess.run([sys.executable, "-c", code, str(target), str(size)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"cannot write {target}: file too large\n"
    assert not list(tmp_path.iterdir())


def test_refusals_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.fa"
    source.write_text(">a\nA\n")
    with pytest.raises(OutputError, match="it is a folder"):
        check_output(str(tmp_path))
    with pytest.raises(OutputError, match="the name of the output is empty"):
        check_output("")
    with pytest.raises(OutputError, match=r"there is no folder .*mkdir -p"):
        check_output(str(tmp_path / "missing" / "out.tsv"))
    with pytest.raises(OutputError, match="it is also an input"):
        check_output(str(source), (str(source),))
    monkeypatch.setattr(output.os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write to"):
        check_output(str(tmp_path / "out.tsv"))
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="standard output is closed"):
        check_output("-")


def test_full_temporary_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match=r"temporary folder .*TMPDIR"), open_output("-") as sink:
        sink.write(b"x")
