"""Runs units in this process. Stages that need it get two threads, so that reading overlaps computing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass

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
        in_flight: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(stage.resources.units_at_once) as threads:
            try:
                for unit in units:
                    in_flight.add(threads.submit(worker.run, unit))
                    if len(in_flight) >= stage.resources.units_at_once:
                        done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                yield from (future.result() for future in in_flight)
            finally:
                over.set()
                threads.shutdown(wait=True, cancel_futures=True)
                worker.close()
