"""Owns the run of several stages whose work is one: each has a ledger of its own, as if it had run alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..storage_schemas.errors import Stopped, TeachonceError
from ..storage_schemas.receipt import Receipt
from .driver import only_driver
from .runner import StageRun, Summary, failure
from .storage import Location
from .types import Stage, Timer, Unit
from .worker import Effort, Outcome, failed, outcome_of


class StageInFolder(Stage, Protocol):
    """A stage of one unit that knows its output folder."""

    @property
    def out(self) -> Location: ...


S = TypeVar("S", bound=StageInFolder)


#: The part of one stage: its unit, and what its times go to.
Job = tuple[S, Unit, Timer]

#: Does the units of several stages, by name, and yields each as it ends: its receipt, or what it failed by.
Work = Callable[[Mapping[str, Job[S]]], Generator[tuple[str, Receipt | Exception], None, None]]


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """What was done.

    Attributes:
        by_name: of each stage.
        failure: the error to end with, where some failed.
    """

    by_name: Mapping[str, Summary]
    failure: TeachonceError | None


def run_together(stages: Mapping[str, S], out: Location, work: Work[S]) -> Summaries:
    """Do the units of all stages that have no intact receipt. One that fails does not stop the others.

    Args:
        stages: by name, each of one unit.
        out: the folder that holds the outputs of all, for errors.
        work: does what is left.

    Raises:
        BusyError: another process drives one of them.
        MismatchError: the folder of one holds work of another fingerprint.
        Stopped: a signal asked for a stop, and some are left. Where others failed, it is their error.
    """
    stopped: Stopped | None = None
    with ExitStack() as locks:
        for stage in stages.values():
            locks.enter_context(only_driver(stage.out, f"teachonce {stage.name}"))
        runs = {name: StageRun(stage, stage.out) for name, stage in stages.items()}
        jobs = {name: (stages[name], unit, Timer()) for name, run in runs.items() for unit in run.left()}
        if jobs:
            with closing(work(jobs)) as ends:
                for name, ended in ends:
                    if isinstance(ended, Stopped):
                        stopped = ended
                        continue
                    runs[name].settle(_commit(runs[name], jobs[name], ended))
        bad = {name: (*run.summary.failed.values(),)[0] for name, run in runs.items() if run.summary.failed}
        codes = {name: code for name in bad for code in runs[name].codes.values()}
        kind = next(iter(stages.values())).name
        error = failure(Summary(stage=kind, units=len(runs), failed=bad), codes, out) if bad else None
        if stopped is not None:
            raise error or stopped
        return Summaries(
            by_name={name: run.summary if name in bad else run.finish() for name, run in runs.items()}, failure=error
        )


def _commit(run: StageRun, job: Job[S], ended: Receipt | Exception) -> Outcome:
    _, unit, timer = job
    if isinstance(ended, Exception):
        return failed(run.ledger, unit, ended)
    try:
        run.ledger.commit(ended, timer.seconds)
    except Exception as error:  # such as a full disk, which is no other stage's fault
        return failed(run.ledger, unit, error)
    return outcome_of(ended, Effort.here(timer, receipt=ended))
