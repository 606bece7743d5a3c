"""Owns that one process at a time writes an output: from a command's first look at it to its last line."""

from __future__ import annotations

import functools
from typing import Any

import click

from ..pipeline.terminal import starting
from .command import Command


def one_driver(command: Command) -> Command:
    """For every command that writes a stage's --out."""

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
