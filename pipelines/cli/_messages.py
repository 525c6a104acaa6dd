"""Everything a run says on standard error: log lines, and a progress bar when that is a terminal."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_LEVELS = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}

# set while a progress bar is on the screen: other lines must then go through its console, above the bar
_live_console: "Console | None" = None


def configure(verbosity: int) -> None:
    """Send the package's log to standard error; verbosity is -1 (quiet), 0 or 1 (verbose)."""
    package = logging.getLogger("mamba_seq")
    for handler in package.handlers[:]:
        if isinstance(handler, _StderrHandler):
            package.removeHandler(handler)
    package.addHandler(_StderrHandler())
    package.setLevel(_LEVELS[verbosity])
    package.propagate = False
    # torch and others warn about their own matters, which mean nothing to someone who classifies a FASTA file
    logging.captureWarnings(verbosity < 1)
    if verbosity < 1:
        logging.getLogger("py.warnings").addHandler(logging.NullHandler())
        logging.getLogger("py.warnings").propagate = False


def say(text: str) -> None:
    """Write a line to standard error, whatever the verbosity."""
    if _live_console is not None:
        _live_console.print(text, markup=False, highlight=False, soft_wrap=True)
    elif sys.stderr is not None:
        # a closed standard error must not turn a good run into a failure
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str, *, verbosity: int) -> Iterator[Callable[..., None]]:
    """Show a line of text that the caller renews; nothing when standard error is no terminal.

    What is yielded takes the text and, where it is known, the part that is done (0 to 1), for a bar beside it.

    Args:
        what: the words in front of the text.
        verbosity: as for `configure`; quiet runs show nothing.
    """
    if verbosity < 0 or sys.stderr is None or not sys.stderr.isatty():
        yield lambda text, done=None: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    global _live_console
    console = Console(stderr=True)
    shown = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*shown, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        _live_console = console

        def show(text: str, done: float | None = None) -> None:
            bar.update(task, description=f"{what} {text}", total=None if done is None else 1.0, completed=done or 0.0)

        try:
            yield show
        finally:
            _live_console = None


class _StderrHandler(logging.Handler):
    """Writes `mamba-seq: warning: text`; the level is left out for plain information."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        say(f"mamba-seq: {level}{record.getMessage()}")
