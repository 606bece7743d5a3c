"""Owns docs/cli.md: writes the command reference from the commands themselves, for `make docs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click
from teachonce.cli import main
from teachonce.commands.command import COMMON, Subcommand

REFERENCE = Path(__file__).with_name("cli.md")

HEAD = """\
# Commands

Written by `make docs` from the commands themselves; change their docstrings and options, not this page.
`teachonce COMMAND --help` prints the same. Data goes to stdout, progress to stderr.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    program = click.Context(main, info_name="teachonce")
    parts = [HEAD, _index(program)]
    for name, command, context in commands(program):
        parts.append(f"## `{name}`\n")
        parts.append(_usage(command, context))
        parts.append(_words(command))
        parts.append(_options(command, context))
    return "\n".join(part for part in parts if part)


def commands(parent: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """(full name, command, its context) of every command below `parent`, in the order of the work."""
    assert isinstance(parent.command, click.Group)
    for name, command in parent.command.commands.items():
        context = click.Context(command, info_name=name, parent=parent)
        yield context.command_path.strip(), command, context
        if isinstance(command, click.Group):
            yield from commands(context)


def _index(program: click.Context) -> str:
    rows = [
        f"- [`{name}`](#{name.replace(' ', '-')}): {command.get_short_help_str(200)}"
        for name, command, _ in commands(program)
    ]
    return "\n".join(rows) + "\n"


def _usage(command: click.Command, context: click.Context) -> str:
    return f"    {context.command_path} {' '.join(command.collect_usage_pieces(context))}\n"


def _words(command: click.Command) -> str:
    """The docstring, with click's marks (\\b keeps a paragraph's lines) turned into Markdown."""
    paragraphs = inspect.cleandoc(command.help or "").split("\f")[0].split("\n\n")
    lines = []
    for paragraph in paragraphs:
        if paragraph.startswith("\b\n"):
            lines.append("\n".join(f"    {line}".rstrip() for line in paragraph.splitlines()[1:]))
        else:
            lines.append(paragraph)
    return "\n\n".join(lines) + "\n"


def _options(command: click.Command, context: click.Context) -> str:
    """A table for each section of `--help`."""
    if not isinstance(command, Subcommand):
        return ""
    tables = []
    for section, records in command.sections(context).items():
        # A bar would end the cell, even in code.
        cells = [
            (names.replace("|", "\\|"), text.replace("|", "\\|")) for names, text in records if "--help" not in names
        ]
        rows = [f"| `{names}` | {text} |" for names, text in cells]
        head = "" if section == COMMON else f"{section}:\n\n"
        tables.append(f"{head}| option | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(tables)


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    print(f"wrote {REFERENCE}")
