"""What every command shares: the common options, lazy loading, and suggestions for a misspelt name.

The common options mean the same before and after the subcommand; the last one given wins.
"""

import dataclasses
import difflib
import importlib
import re
from typing import Any

import click

from mamba_seq._version import __version__
from mamba_seq.pipelines.cli import _messages


@dataclasses.dataclass
class Settings:
    """The values of the common options."""

    verbosity: int = 0
    """-1 quiet, 0 normal, 1 verbose."""
    seed: int | None = None
    """Seed of every random choice; None leaves them to the command's default."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    threads: int | None = None
    """CPU threads; None takes the libraries' default, all cores."""
    debug: bool = False
    """Show tracebacks."""


class Command(click.Command):
    """A Click command that also takes the common options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(common_options(with_environment=False))

    def invoke(self, ctx: click.Context) -> Any:
        """Set up the messages, then run the body."""
        _messages.configure(ctx.ensure_object(Settings).verbosity)
        return super().invoke(ctx)


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are needed."""

    command_class = Command

    def __init__(self, *args: Any, subcommands: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])
        self.subcommands = subcommands or {}
        self.params.extend(common_options(with_environment=bool(subcommands)))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the subcommands in the order of a user's work."""
        return [*self.subcommands, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand `cmd_name`; None when there is no such name."""
        if cmd_name not in self.subcommands:
            return super().get_command(ctx, cmd_name)
        module, attribute = self.subcommands[cmd_name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{self.subcommands[cmd_name]} is not a command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the names that look like it."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], names)
            hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Commands: {', '.join(names)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)


def common_options(*, with_environment: bool) -> list[click.Parameter]:
    """Make the options that every command takes.

    Args:
        with_environment: let MAMBA_SEQ_NUM_THREADS set the threads. Only the outermost group does, or the variable
            would win over a `--threads` that stands before the subcommand.
    """
    return [
        _common(["-q", "--quiet", "verbosity"], flag_value=-1, help="Only warnings and errors on standard error."),
        _common(["-v", "--verbose", "verbosity"], flag_value=1, help="Say more on standard error."),
        _common(["--seed"], metavar="N", type=click.IntRange(0, 2**32 - 1), help="Seed of every random choice."),
        _common(["--device"], callback=_device, metavar="DEVICE", help="auto (default), cpu, cuda or cuda:N."),
        _common(
            ["--threads"],
            metavar="N",
            type=click.IntRange(min=1),
            envvar="MAMBA_SEQ_NUM_THREADS" if with_environment else None,
            help="CPU threads (default: all cores; or set MAMBA_SEQ_NUM_THREADS).",
        ),
        _common(["--debug"], flag_value=True, help="Show the traceback of an error."),
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
        ),
    ]


def _common(names: list[str], callback: Any = None, **kwargs: Any) -> click.Option:
    if "flag_value" in kwargs:
        kwargs.update(is_flag=True, default=None)
    return click.Option(names, expose_value=False, callback=callback or _keep, **kwargs)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(ctx.ensure_object(Settings), str(param.name), value)


def _device(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is not a device, expected auto, cpu, cuda or cuda:N.", ctx, param)
    _keep(ctx, param, value)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"mamba-seq {__version__}")
        ctx.exit()
