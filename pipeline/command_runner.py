"""Owns what the command line lends to whoever runs several commands, and knows neither click nor executors."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How commands are run and shown.

    Attributes:
        command: runs one of teachonce's commands, given as on the command line, without the program's name.
        check: refuses what `command` would refuse as wrong usage, and runs nothing.
        leave: frees the workers that commands used.
        say: shows a line to people.
        program: how teachonce was called, as a person types it.
        beside: what to type before the name of a program that is installed beside it; '' where PATH finds it.
        where: options that say where `shard` and `cache` run.
    """

    command: Callable[[Sequence[str]], None]
    check: Callable[[Sequence[str]], None]
    leave: Callable[[], None]
    say: Callable[[str], None]
    program: str
    beside: str
    where: tuple[str, ...]

    def run(self, command: str, *given: object, where: Sequence[str] = (), **options: Any) -> None:
        """Show a command, then run exactly that."""
        self.do([*to_argv(command, *given, **options), *where])

    def do(self, command: Sequence[str]) -> None:
        """Show a command that is spelled out, then run exactly that."""
        self.say(f"$ {self.line(*command)}")
        self.command(command)

    def line(self, *words: object) -> str:
        """A command of teachonce as a person would type it."""
        return f"{self.program} {shlex.join(map(str, words))}"

    def tool(self, name: str, *words: object) -> str:
        """A command of another program of the same environment."""
        return f"{self.beside}{name} {shlex.join(map(str, words))}"


def to_argv(command: str, *given: object, **options: object) -> list[str]:
    """A command as on the command line; options that are None or False are left out, those that are True take no value."""
    spelled = [command, *map(str, given)]
    for name, value in options.items():
        if value is not None and value is not False:
            spelled += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return spelled
