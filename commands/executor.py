"""Owns where units of work run: the options that say it, and the executor that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ..storage_schemas.errors import InputError
from .command import Command
from .types import Choice

if TYPE_CHECKING:
    from ..pipeline.runner import Executor


def executor_options(
    default: str, workers: str = "Worker processes on Ray (default: what fits)."
) -> Callable[[Command], Command]:
    """--executor, --ray-address and --workers, for every command that does units of work."""

    def decorate(command: Command) -> Command:
        for option in (
            click.option("--workers", type=click.IntRange(1), help=workers),
            click.option("--ray-address", help="Join this Ray cluster: `auto` or HOST:PORT. Without it, Ray starts here."),
            click.option("--executor", type=Choice(["ray", "serial"]), default=default, show_default=True,
                         help="Where units of work run."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def make_executor(executor: str, ray_address: str | None, workers: int | None) -> Executor:
    """The executor that the options name."""
    if executor == "ray":
        from ..pipeline.executors.ray import RayExecutor

        return RayExecutor(address=ray_address, workers=workers)
    if ray_address is not None:
        raise InputError("--ray-address needs --executor ray", where=ray_address)
    if workers not in (None, 1):
        raise InputError("several workers need --executor ray", where="--workers", found=workers)
    from ..pipeline.executors.serial import SerialExecutor

    return SerialExecutor()


def make_training_executor(executor: str, ray_address: str | None, workers: int | None) -> Executor:
    """The executor for a student: several workers train it together."""
    if workers is None or workers == 1:
        return make_executor(executor, ray_address, workers)
    from ..pipeline.executors.ray_train import RayTrainExecutor

    return RayTrainExecutor(address=ray_address, workers=workers)
