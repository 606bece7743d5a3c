"""Owns --log-json: the log of a command as JSON lines, from its first look at its inputs to its exit code."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import click

from ..storage_schemas.errors import InputError, Stopped, TeachonceError
from .command import Command, option


def log_option(command: Command, *, leads: Callable[[], bool] = lambda: True) -> Command:
    """For every command whose work may take long.

    Args:
        leads: whether this process is the one that speaks, of several that were started with the same command line.
    """

    @functools.wraps(command)
    def logged(*arguments: Any, log_json: str | None, **options: Any) -> None:
        if log_json is None or not leads():
            command(*arguments, **options)
            return
        if log_json == "-" and options.get("as_json"):
            raise InputError(
                "two things cannot both have stdout",
                code="options-exclude-each-other",
                where="--json, --log-json -",
                hint="give --log-json a file",
            )
        with _logging(log_json, str(click.get_current_context().info_name)):
            command(*arguments, **options)

    return option(
        "--log-json",
        metavar="FILE|-",
        help="Log to a file, which is added to, or to stdout, as JSON lines: units with node, worker and seconds by kind; a summary.",
    )(logged)  # type: ignore[return-value]


@contextlib.contextmanager
def _logging(target: str, stage: str) -> Iterator[None]:
    from ..pipeline import json_log

    with json_log.log_to(target, stage):
        json_log.event("start", f"{stage} begins")
        try:
            yield
        except BaseException as error:
            json_log.event("end", **_end(error))
            raise
        json_log.event("end", f"{stage} has ended", exit_code=0)


def _end(error: BaseException) -> dict[str, Any]:
    """Message, level and exit code of the last line."""
    from ..pipeline import interrupt, stopping

    if isinstance(error, click.exceptions.Exit):
        return {"message": f"ended with exit code {error.exit_code}", "exit_code": error.exit_code}
    if isinstance(error, KeyboardInterrupt) or interrupt.happened():
        return {"message": interrupt.end_line(), "level": "warning", "exit_code": interrupt.exit_code()}
    if isinstance(error, Stopped) or stopping.asked():
        return {"message": stopping.line(), "level": "warning", "exit_code": stopping.EXIT_CODE}
    if isinstance(error, TeachonceError):
        return {"message": str(error), "level": "error", "code": error.code, "exit_code": 1}
    return {"message": f"{type(error).__name__}: {error}", "level": "error", "exit_code": 1}
