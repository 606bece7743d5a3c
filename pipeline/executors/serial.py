"""Runs units in this process. Stages that ask for it get two threads, so that reading overlaps computing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ..ledger import Ledger
from ..types import Stage, Unit
from ..worker import Outcome, Worker


@dataclass(frozen=True, kw_only=True)
class SerialExecutor:
    """One worker in this process."""

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Outcomes as units finish; never more than `units_at_once` units are taken from `units` ahead."""
        worker = Worker(stage, ledger)
        if stage.resources.units_at_once == 1:
            yield from map(worker.run, units)
            return
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
                threads.shutdown(wait=True, cancel_futures=True)
