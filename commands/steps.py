"""Owns running the generations that a growing store needs, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..pipeline.terminal import say
from ..storage_schemas.errors import InputError
from .executor import ExecutorSettings
from .output import report

if TYPE_CHECKING:
    from ..pipeline.runner import Summary
    from ..pipeline.storage import Location
    from ..pipeline.types import Stage
    from ..stages.growth.room import Step
    from .executor import SlicedExecutorSettings


def run_or_finish(stage: Stage, out: Location, executor: SlicedExecutorSettings) -> Summary:
    """All units of a stage, or a slice of them; or what comes after the last slice."""
    from ..pipeline.runner import finish_stage, run_stage

    return finish_stage(stage, out) if executor.finish else run_stage(stage, out, executor.make(), part=executor.part)


def refuse_slices(option: str, executor: SlicedExecutorSettings) -> None:
    """
    Raises:
        InputError: slices together with an option that does its work as a whole.
    """
    if executor.part is not None or executor.finish:
        raise InputError(
            f"{option} is not done in slices",
            code="options-exclude-each-other",
            where=f"{option}, {'--finish' if executor.finish else '--slice'}",
            hint="leave one out; on many nodes use --executor ray",
        )


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
