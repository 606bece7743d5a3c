"""Runs units in this process. Stages that need it get two threads, so that reading overlaps computing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue

from .. import interrupt
from ..board import Board
from ..ledger import Ledger
from ..types import Stage, Unit
from ..worker import Outcome, Worker


@dataclass(frozen=True, kw_only=True)
class SerialExecutor:
    """One worker in this process."""

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit], board: Board) -> Iterator[Outcome]:
        """Outcomes as units finish; never more than `units_at_once` units are taken from `units` ahead."""
        board.starting("loading what it needs")
        if stage.resources.units_at_once == 1:
            with closing(Worker(stage, ledger, board.at)) as worker:
                yield from map(worker.run, units)
            return
        over = threading.Event()

        def at(key: str, samples: int) -> None:
            if over.is_set():
                raise KeyboardInterrupt  # ends the unit at its next samples, where Ctrl-C would wait for its last
            board.at(key, samples)

        worker = Worker(stage, ledger, at)
        # A queue, not futures: waiting for those takes locks, which Ctrl-C would leave taken.
        ended: SimpleQueue[Outcome | BaseException] = SimpleQueue()

        def run(unit: Unit) -> None:
            try:
                ended.put(worker.run(unit))
            except BaseException as error:
                ended.put(error)

        in_flight = 0
        threads = ThreadPoolExecutor(stage.resources.units_at_once)
        try:
            for unit in units:
                with interrupt.later():
                    threads.submit(run, unit)
                in_flight += 1
                if in_flight >= stage.resources.units_at_once:
                    yield _outcome(ended)
                    in_flight -= 1
            for _ in range(in_flight):
                yield _outcome(ended)
        finally:
            with interrupt.later():
                over.set()
                threads.shutdown()
                worker.close()


def _outcome(ended: SimpleQueue[Outcome | BaseException]) -> Outcome:
    """Of the next unit that ends. Raises what the unit raised."""
    found = ended.get()
    if isinstance(found, BaseException):
        raise found
    return found
