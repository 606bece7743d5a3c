"""Owns what stages that run several commands get from the command line; independent of click and executors."""

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

    def line(self, *arguments: object) -> str:
        """A command of teachonce as a person would type it."""
        return f"{self.program} {shlex.join(map(str, arguments))}"

    def tool(self, name: str, *arguments: object) -> str:
        """A command of another program of the same environment."""
        return f"{self.beside}{name} {shlex.join(map(str, arguments))}"


def to_argv(*arguments: object, **options: object) -> list[str]:
    """A command as on the command line: arguments as they are, then options by name, with underscores for hyphens.

    An option that is None or False is left out, one that is True takes no value; a list repeats its option, and numbers in a
    list become one comma-separated value.
    """
    spelled = [str(word) for word in arguments]
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            spelled.append(flag)
        elif not isinstance(value, (list, tuple)):
            spelled += [flag, str(value)]
        elif all(isinstance(part, (int, float)) for part in value):
            spelled += [flag, ",".join(map(str, value))]
        else:
            spelled += [text for part in value for text in (flag, str(part))]
    return spelled
