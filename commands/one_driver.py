"""Owns that one process at a time writes an output: from a command's first look at it to its last line."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..pipeline.terminal import starting
from ..storage_schemas.errors import InputError
from .command import Command

if TYPE_CHECKING:
    from ..pipeline.slices import Slice


def one_driver(command: Command) -> Command:
    """For every command that writes a stage's --out. With an option `dry_run` that is given it writes nothing, and locks nothing."""

    @functools.wraps(command)
    def alone(*arguments: Any, out: str, **options: Any) -> None:
        context = click.get_current_context()
        given = (options[p.name] for p in context.command.params if isinstance(p, click.Argument) and p.name)
        inputs = [one for value in given for one in (value if isinstance(value, tuple) else (value,))]
        if options.get("dry_run"):
            command(*arguments, out=out, **options)
            return
        part = getattr(options.get("executor"), "part", None)
        if part is None:
            _refuse_torchrun(str(context.info_name))
        with driving(out, str(context.info_name), inputs, part=part):
            command(*arguments, out=out, **options)

    return alone  # type: ignore[return-value,no-any-return]


def _refuse_torchrun(name: str) -> None:
    """
    Raises:
        InputError: torchrun has started several processes, and the command is one whose processes do not work together.
    """
    from ..pipeline.executors.launched import Launched

    launched = Launched.here()
    if launched is not None:
        raise InputError(
            f"torchrun starts several processes, and `teachonce {name}` is one alone",
            code="not-under-torchrun",
            where=f"WORLD_SIZE={launched.size}",
            expected="`teachonce distill`, or no torchrun",
            found=f"teachonce {name}",
            hint="start it without torchrun",
        )


@contextlib.contextmanager
def driving(
    out: str, name: str, inputs: Iterable[object], *, form: str | None = None, part: Slice | None = None
) -> Iterator[None]:
    """Inside, no other process writes to `out`.

    Args:
        out: the output folder.
        name: of the command.
        inputs: what the user gave to read; plans, which know what else is an input, look again.
        part: the slice that it does; None for all units.
        form: the command as `check_output` distinguishes its folders; None for `name`.

    Raises:
        BusyError: another process writes there.
        InputError: the folder cannot be this command's.
    """
    from ..pipeline import stopping
    from ..pipeline.driver import only_driver
    from ..pipeline.output import check_output
    from ..pipeline.storage import Location

    # The lock is a file in it.
    check_output(Location.of(out), form or name, inputs)
    stopping.arm(0)  # nothing is at hand yet that could be finished
    with only_driver(Location.of(out), f"teachonce {name}", part):
        starting(f"{name}: loading libraries, and what was given")
        yield
