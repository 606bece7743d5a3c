"""Owns what every command is: how its words are read, and that one process at a time writes an output."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..pipeline.terminal import starting

#: Where a path begins in a word of a command line: at once, behind `=`, or behind the prefix of a model in a folder.
_HOME = re.compile(r"^((?:[^~/]*[=:]|[^~]*coop:[^=~]*=)?)~(?=/|$)")


Command = TypeVar("Command", bound=Callable[..., Any])


class Stage(click.Command):
    """A command whose arguments may begin with `~` where a shell leaves it: in `--out=~/x`, `NAME=~/x`, run files."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [expand_homes(word) for word in args])


def expand_homes(word: str) -> str:
    """A word of a command line with `~` in full, wherever in it a path begins."""
    from ..pipeline.storage import expand_home

    return _HOME.sub(lambda found: found[1] + expand_home("~"), word)


def one_driver(command: Command) -> Command:
    """For every command that writes a stage's --out: one process at a time, from the first look at it to the last word."""

    @functools.wraps(command)
    def alone(*arguments: Any, out: str, **options: Any) -> None:
        from ..pipeline.driver import only_driver
        from ..pipeline.output import check_output
        from ..pipeline.storage import Location

        context = click.get_current_context()
        name = str(context.info_name)
        given = (options[p.name] for p in context.command.params if isinstance(p, click.Argument) and p.name)
        inputs = [one for value in given for one in (value if isinstance(value, tuple) else (value,))]
        # The lock is a file in it. Plans, which know what else is an input, look again.
        check_output(Location.of(out), name, inputs)
        with only_driver(Location.of(out), f"teachonce {name}"):
            starting(f"{name}: loading libraries, and what was given")
            command(*arguments, out=out, **options)

    return alone  # type: ignore[return-value,no-any-return]
