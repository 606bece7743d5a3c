"""Owns what the command line lends to the demo, which knows neither click nor executors."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How the demo runs things.

    Attributes:
        command: runs one of teachonce's commands, given as on the command line, without the program's name.
        leave: frees the workers that commands used.
        say: shows a line to people.
        program: how teachonce was called, as a person types it.
        beside: what to type before the name of a program that is installed beside it; '' where PATH finds it.
        where: options that say where `shard` and `cache` run.
    """

    command: Callable[[Sequence[str]], None]
    leave: Callable[[], None]
    say: Callable[[str], None]
    program: str
    beside: str
    where: tuple[str, ...]

    def run(self, command: str, *given: object, where: Sequence[str] = (), **options: Any) -> None:
        """Show a command, then run exactly that."""
        words = [command, *map(str, given)]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        words += where
        self.say(f"$ {self.line(*words)}")
        self.command(words)

    def line(self, *words: object) -> str:
        """A command of teachonce as a person would type it."""
        return f"{self.program} {shlex.join(map(str, words))}"

    def tool(self, name: str, *words: object) -> str:
        """A command of another program of the same environment."""
        return f"{self.beside}{name} {shlex.join(map(str, words))}"
