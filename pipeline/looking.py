"""Owns the run of a stage that only looks: its units are mapped by an executor, what each saw comes back, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..storage_schemas.errors import UnitsFailed
from ..storage_schemas.receipt import Receipt
from . import stopping
from .board import Board
from .ledger import Ledger
from .progress import Progress
from .run_figures import RunFigures
from .runner import Executor
from .slices import Slice
from .storage import Location
from .types import Stage, Unit
from .worker import Outcome


@dataclass(frozen=True)
class _NoLedger(Ledger):
    """Of a stage without an output: it keeps nothing."""

    def commit(self, receipt: Receipt, seconds: dict[str, float]) -> None:
        raise AssertionError("a stage that only looks has no receipts")

    def fail(self, key: str, reason: str, detail: str, code: str | None) -> None:
        pass


def look(stage: Stage, executor: Executor, where: Location, part: Slice | None = None) -> Iterator[Outcome]:
    """What became of each unit of `stage`, as they finish; a bar shows the samples of those that are done.

    Args:
        where: what it looks at, for errors.
        part: which units; None for all.

    Raises:
        Stopped: a signal asked for a stop.
        UnitsFailed: a unit failed, which is a fault of the program or of the machine, once all others are done.
    """

    def units() -> Iterator[Unit]:
        return stage.plan() if part is None else part.of(stage.plan())

    rows = sum(unit.rows for unit in units())
    failed: Outcome | None = None
    figures = RunFigures(stage=stage.name, gpus=stage.resources.gpus > 0)
    with Progress(stage.name, rows) as bar:
        board = Board(stage.name, bar)
        for outcome in executor.map(stage, _NoLedger(where, stage.name), stopping.unless_asked(units()), board):
            board.settle(outcome)
            figures.add(outcome)
            if outcome.error is None:
                yield outcome
            else:
                failed = failed or outcome
    figures.tell()
    if stopping.asked():
        raise stopping.stopped(where)
    if failed is not None:
        raise UnitsFailed(
            f"{stage.name} could not look at everything, the first is {failed.key}",
            code=failed.code or "unit-failed",
            where=failed.error,
        )
