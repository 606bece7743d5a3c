"""Owns the loop of a run on Ray: units go to workers whose stage is open, outcomes come back, and workers that ended are replaced.

Ray itself restarts nothing here: it would restart for ever where a process ends before it does any work.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from ...storage_schemas.errors import StorageError, TeachonceError
from ..board import Board
from ..ledger import Ledger
from ..types import Unit
from ..worker import Outcome
from .deaths import Death
from .head import RayHead
from .unit_queue import TRIES, UnitQueue
from .worker_group import Seat, WorkerGroup

#: How often in a row processes of one worker may end before their stage is open, and in all without a unit finished. Then it is given up.
EARLY_DEATHS, DEATHS = TRIES, 3 * TRIES


class Dispatch:
    """The units of a run, on the workers of a group.

    Args:
        start: starts an actor; returns its handle and Ray's reference to what its `open` gives.
        units_at_once: how many a worker has at hand.
        unit_timeout: seconds after which a worker that is still at a unit is killed; None for no such limit.
        what: the note on how workers start.
        name_of: what Ray shows of a unit, by its key.
    """

    def __init__(
        self,
        start: Callable[[], tuple[Any, Any]],
        ledger: Ledger,
        queue: UnitQueue,
        *,
        workers: int,
        units_at_once: int,
        unit_timeout: float | None,
        head: RayHead,
        what: str,
        board: Board,
        name_of: Callable[[str], str],
    ) -> None:
        self._name_of = name_of
        self._start, self._ledger, self._queue, self._head, self._board = start, ledger, queue, head, board
        self._units_at_once, self._unit_timeout = units_at_once, unit_timeout
        self._seats = [Seat(*start()) for _ in range(queue.waiting(workers))]
        self.group = WorkerGroup(self._seats, what, board)

    def outcomes(self) -> Iterator[Outcome]:
        """As units finish.

        Raises:
            ClusterEnded: the cluster's head is gone.
            TeachonceError: opening the stage failed; or the processes of every worker ended, again and again.
        """
        import ray

        while True:
            for seat in self._seats:
                self._feed(seat)
            waits = {ref: seat for seat in self._seats for ref in seat.at_work}
            if not waits and not self._queue.waiting(1):
                return
            waits |= {seat.opening: seat for seat in self._seats if seat.opening is not None}
            ready, _ = ray.wait(list(waits), num_returns=1, timeout=self.group.seconds_between_reports)
            for reference in ready:
                yield from self._take(waits[reference], reference)
            for seat in self._seats:
                yield from self._end_overdue(seat)
            self.group.collect_reports()
            self._head.look()

    def _feed(self, seat: Seat) -> None:
        while seat.is_open and not seat.is_alone and len(seat.at_work) < self._units_at_once:
            idle = sum(other.actor is not None and not other.at_work for other in self._seats if other is not seat)
            unit = self._queue.take(at_hand=len(seat.at_work), idle=idle)
            if unit is None:
                return
            seat.is_alone = self._queue.is_suspect(unit)
            seat.at_work[seat.actor.run.options(name=self._name_of(unit.key)).remote(unit)] = unit, time.monotonic()

    def _take(self, seat: Seat, reference: Any) -> Iterator[Outcome]:
        """What has come of a reference of this worker."""
        import ray

        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            opening = reference is seat.opening
            if opening or (isinstance(cause, TeachonceError) and not isinstance(cause, StorageError)):
                raise cause from error  # opening the stage failed: so will every other worker
            unit, _ = seat.at_work[reference]
            result = self._fail(unit, f"{type(cause).__name__}: {cause}", cause, None)
        except ray.exceptions.RayError as error:
            self._head.check()
            yield from self._replace(seat, Death.of(error), error)
            return
        if reference is seat.opening:
            seat.opening, seat.node, seat.early_deaths = None, result, 0
            return
        unit, _ = seat.at_work.pop(reference)
        seat.is_alone, seat.deaths = False, 0
        self._queue.finished(unit)
        yield result

    def _end_overdue(self, seat: Seat) -> Iterator[Outcome]:
        if self._unit_timeout is None or not seat.at_work:
            return
        before = time.monotonic() - self._unit_timeout
        overdue = {ref for ref, (_, since) in seat.at_work.items() if since < before}
        if overdue:
            death = Death(found="it was killed", after_seconds=self._unit_timeout)
            yield from self._replace(seat, death, TimeoutError("--unit-timeout"), overdue)

    def _replace(
        self, seat: Seat, death: Death, error: Exception, suspects: set[Any] | None = None
    ) -> Iterator[Outcome]:
        """Another process takes the seat; units at hand go back to the queue, or have failed.

        Args:
            suspects: references to those units that may be the cause; None for all, unless the whole node is gone.
        """
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(seat.actor)
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]} if suspects is None else set()
        if suspects is None:
            suspects = set(seat.at_work) if seat.node in nodes else set()
        self.group.tell_of_end(seat, death.how)
        at_work, seat.at_work, seat.is_alone = seat.at_work, {}, False
        seat.deaths += 1
        seat.early_deaths += not seat.is_open
        for reference, (unit, _) in at_work.items():
            self._board.at(unit.key, 0)
            if reference not in suspects:
                self._queue.give_back(unit)
            elif (times := self._queue.died(unit)) is not None:
                failure = death.of_unit(times)
                yield self._fail(unit, str(failure), error, failure.code)
        seat.actor = seat.opening = seat.node = None
        if seat.early_deaths < EARLY_DEATHS and seat.deaths < DEATHS:
            seat.actor, seat.opening = self._start()
        elif all(other.actor is None for other in self._seats) and self._queue.waiting(1):
            raise death.of_all(seat.deaths) from error

    def _fail(self, unit: Unit, reason: str, cause: Exception, code: str | None) -> Outcome:
        self._queue.finished(unit)
        self._ledger.fail(unit.key, reason, str(cause), code)
        return Outcome(key=unit.key, rows=unit.rows, error=reason, code=code)
