"""Owns running the generations that a growing store needs, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..pipeline.terminal import say
from ..storage_schemas.errors import InputError
from .executor import ExecutorSettings
from .output import report

if TYPE_CHECKING:
    from ..stages.growth.room import Step


def run_steps(command: str, steps: Iterable[Step], executor: ExecutorSettings, as_json: bool) -> None:
    """Make each generation, then let readers have it. Reports the last one.

    Raises:
        InputError: there is nothing to do.
    """
    from ..pipeline.runner import run_stage

    last = None
    for step in steps:
        for note in step.notes:
            say(f"{command}: {note}")
        last = run_stage(step.stage, step.store, executor.make()), step.store
    if last is None:
        raise InputError(
            "there is nothing to grow: the store has all of that",
            code="growth-nothing-new",
            where=f"{command} --grow",
            hint="ask for more views, targets, images or classes than it has",
        )
    report(*last, as_json)
