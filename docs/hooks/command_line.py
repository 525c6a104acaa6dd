"""The commands and options on the page of the command line, of the commands' own help when the site is built."""

import inspect

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from mamba_seq.pipelines.cli import mamba_seq as command_line
from mamba_seq.pipelines.cli._shell import Settings, common_options

PAGE = "reference/command_line.md"
COMMON = {option.name for option in common_options(with_environment=True)}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add what all commands say of themselves."""
    return f"{markdown}\n\n{reference()}" if page.file.src_uri == PAGE else markdown


def reference() -> str:
    """Return, as Markdown, every command with its usage, what it does, and its options."""
    with click.Context(command_line, info_name="mamba-seq", obj=Settings()) as context:
        common = [option for option in command_line.params if option.name in COMMON]
        head = ["## Options of every command", table(context, common)]
        return "\n\n".join([*head, *commands(context, command_line, level=2)]) + "\n"


def commands(context: click.Context, group: click.Group, level: int) -> list[str]:
    """Return the sections of a group's commands, and of the commands of those that are groups."""
    sections = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        with click.Context(command, info_name=name, parent=context) as inner:
            path = inner.command_path
            sections += [f"{'#' * level} {path}", usage(inner), paragraphs(command)]
            options = [option for option in command.params if option.name not in COMMON]
            if any(isinstance(option, click.Option) for option in options):
                sections.append(table(inner, options))
            if isinstance(command, click.Group):
                sections += commands(inner, command, level + 1)
    return sections


def usage(context: click.Context) -> str:
    """Return how the command is called, as a block."""
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return f"```text\n{context.command_path} {pieces}\n```"


def paragraphs(command: click.Command) -> str:
    """Return what a command says of itself; what stands indented in it stays a block."""
    text = inspect.cleandoc(command.help or "").replace("\f", "")
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith("\b"):
            blocks.append("```text\n" + block.removeprefix("\b").strip("\n") + "\n```")
        else:
            blocks.append(plain(" ".join(block.split())))
    return "\n\n".join(blocks)


def table(context: click.Context, options: list[click.Parameter]) -> str:
    """Return the options as a table, a row each."""
    rows = ["| option | what it does |", "|---|---|"]
    for option in options:
        if isinstance(option, click.Option) and not option.hidden:
            names, text = option_text(option, context)
            rows.append(f"| {names} | {text} |")
    return "\n".join(['<div class="options" markdown>\n', *rows, "\n</div>"])


def option_text(option: click.Option, context: click.Context) -> tuple[str, str]:
    """Return the names of an option with its value's, and its help, as cells of a table."""
    record = option.get_help_record(context)
    assert record is not None, option.name
    names, text = record
    return f"`{names}`", plain(" ".join(text.split()))


def plain(text: str) -> str:
    """Return text of a terminal as Markdown that reads the same."""
    for sign, entity in {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "*": "&#42;", "_": "&#95;"}.items():
        text = text.replace(sign, entity)
    return text.replace("[", "&#91;")
