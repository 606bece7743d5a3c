"""Runs units on the processes that torchrun has started, all of them together: this is the first one's part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...storage_schemas.errors import Stopped, WorkerError
from ..board import Board
from ..ledger import Ledger
from ..types import Stage, Unit
from ..worker import Outcome, Worker, failed
from .launched import Launched


@dataclass(frozen=True, kw_only=True)
class TorchrunExecutor:
    """A group of processes that does one unit after another, all of them together. The others `follow`.

    Attributes:
        launched: this process among them.
    """

    launched: Launched

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit], board: Board) -> Iterator[Outcome]:
        """Outcomes in the order of the units.

        Raises:
            WorkerLost: another process is gone.
            SystemExit: another process tells what went wrong.
        """
        board.starting(f"waiting for {self.launched.size} processes")
        for unit in units:
            self.launched.announce(stage, unit)
            yield self._outcome(stage, ledger, unit, board)

    def _outcome(self, stage: Stage, ledger: Ledger, unit: Unit, board: Board) -> Outcome:
        try:
            with self.launched.at_work(stage), contextlib.closing(Worker(stage, ledger, board.at)) as worker:
                return worker.attempt(unit)
        except Stopped:
            raise
        except Exception as error:
            if not self.launched.tells():
                raise SystemExit(1) from error
            clear = self.launched.error(error)
            if isinstance(clear, WorkerError):
                raise clear from error
            return failed(ledger, unit, clear)
