"""Owns how a command runs other commands of this program, as a person would type them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..pipeline.settings import settings_of
from ..pipeline.terminal import say
from ..storage_schemas.errors import InputError
from .executor import ExecutorSettings

if TYPE_CHECKING:
    from ..pipeline.command_runner import Runner


def make_runner(ctx: click.Context, executor: ExecutorSettings) -> Runner:
    """What a command that runs other commands needs: they run here, `shard` and `cache` where the options say."""
    from ..pipeline.command_runner import Runner, to_argv

    if executor.executor == "serial":
        executor.make()  # refuses options that go with Ray only
    root = ctx.find_root()
    group = root.command
    assert isinstance(group, click.Group)

    def make_context(argv: Sequence[str]) -> click.Context:
        return group.commands[argv[0]].make_context(argv[0], list(argv[1:]), parent=root)

    def command(argv: Sequence[str]) -> None:
        with make_context(argv) as call:
            call.command.invoke(call)

    def check(argv: Sequence[str]) -> None:
        try:
            make_context(argv)
        except click.UsageError as error:
            raise InputError(
                "a command's options are wrong",
                code="command-options-wrong",
                where=f"teachonce {argv[0]}",
                found=error.format_message().rstrip("."),
                hint=f"teachonce {argv[0]} --help",
            ) from error

    def leave() -> None:
        if executor.executor == "ray":
            from ..pipeline.executors.connection import disconnect

            disconnect()

    program, beside = called_as()
    return Runner(
        command=command,
        check=check,
        leave=leave,
        say=say,
        program=program,
        beside=beside,
        where=tuple(to_argv(**{field.name: getattr(executor, field.name) for field, _ in settings_of(executor)})),
    )


def called_as() -> tuple[str, str]:
    """How a person calls this program, and what goes before the name of one installed beside it.

    `teachonce` and nothing where PATH finds it; else as it was called: a path, or `python -m teachonce`.
    """
    import shlex
    from pathlib import Path

    script = Path(sys.argv[0])
    if script.resolve() == Path(__file__).resolve().parents[1] / "__main__.py":
        python = Path(sys.executable)
        return f"{shlex.quote(str(python))} -m teachonce", shlex.quote(f"{python.parent}/")
    on_path = str(script.absolute().parent) in os.environ.get("PATH", "").split(os.pathsep)
    if script.name != "teachonce" or on_path:
        return "teachonce", ""
    return shlex.quote(str(script)), shlex.quote(f"{script.parent}/")
