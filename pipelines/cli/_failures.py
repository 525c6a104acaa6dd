"""How a run ends: the one place that turns exceptions and signals into messages and exit codes."""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import click

from mamba_seq.pipelines.cli import _messages
from mamba_seq.pipelines.cli._shell import Settings

DONE, FAILED, WRONG_USAGE = 0, 1, 2
PAUSE = 0.05
"""Seconds between two looks at whether the import is over that a signal came into."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP came; as an exception, so that half-written files are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def guarded(call: Callable[[], None], settings: Settings) -> int:
    """Run `call` and return the exit code of the process."""
    came: list[int] = []
    try:
        with _signals_raise(came):
            call()
            if sys.stdout is not None:
                sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return WRONG_USAGE
    except SystemExit as end:  # jsonargparse, behind train, ends a process this way
        if isinstance(end.code, str):
            _tell(f"error: {end.code}", settings)
        return end.code if isinstance(end.code, int) else FAILED if end.code else DONE
    except (KeyboardInterrupt, click.Abort):
        return _stopped(signal.SIGINT, settings)
    except Terminated as error:
        return _stopped(error.number, settings)
    except BrokenPipeError:
        _give_up_stdout()
        return FAILED
    except Exception as error:  # the outermost frame: whatever came is told, and nothing is swallowed
        if came:  # a signal in the middle of an import may surface as any error, numpy's for one
            return _stopped(came[0], settings)
        if isinstance(error, OSError):
            _give_up_stdout()
        _tell(f"error: {explain(error)}", settings)
        return FAILED
    return DONE


def explain(error: Exception) -> str:
    """Put a failure in words for the person at the terminal."""
    from mamba_seq.data_prep.errors import DataError
    from mamba_seq.errors import ModelError
    from mamba_seq.pipelines.errors import PipelineError

    if isinstance(error, (DataError, ModelError, PipelineError)):
        return str(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if _out_of_memory(error):
        return "out of memory; try a smaller --batch-tokens or --context (the first line of the cause: {})".format(
            (str(error).splitlines() or ["none given"])[0]
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return (
        f"unexpected {type(error).__name__}: {error}. This looks like a fault of mamba-seq: "
        "please report it with what --debug shows"
    )


def _stopped(number: int, settings: Settings) -> int:
    _tell("interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}", settings)
    return 128 + number


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # the CPU allocator of torch raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _tell(text: str, settings: Settings) -> None:
    if settings.debug:
        _messages.say(traceback.format_exc().rstrip())
    _messages.say(f"mamba-seq: {text}")


def _give_up_stdout() -> None:
    """Point standard output at nothing: what is still buffered would fail again when the interpreter flushes it."""
    with contextlib.suppress(AttributeError, ValueError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _signals_raise(came: list[int]) -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP raise, unless the caller (nohup) ignores them, and note them in `came`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        # cut short, an import of torch aborts the process; a second signal does not wait
        if len(came) == 1 and _importing(frame) and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
            signal.signal(signal.SIGALRM, look_again)
            signal.setitimer(signal.ITIMER_REAL, PAUSE, PAUSE)
        else:
            raise_first()

    def look_again(number: int, frame: FrameType | None) -> None:
        if not _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise_first()

    def raise_first() -> None:
        raise KeyboardInterrupt if came[0] == signal.SIGINT else Terminated(came[0])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    taken = [number for number, set_to in before.items() if set_to in (signal.SIG_DFL, signal.default_int_handler)]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is look_again:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number in taken:
            signal.signal(number, before[number])


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
