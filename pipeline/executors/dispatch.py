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
from ..worker_range import WorkerRange
from .deaths import Death
from .head import RayHead
from .unit_queue import TRIES, UnitQueue
from .worker_group import Opened, Seat, WorkerGroup

#: How often in a row processes of one worker may end before their stage is open, and in all without a unit finished. Then it is given up.
EARLY_DEATHS, DEATHS = TRIES, 3 * TRIES


class Dispatch:
    """The units of a run, on the workers of a group.

    Args:
        start: starts an actor; returns its handle and Ray's reference to what its `open` gives.
        units_at_once: how many a worker has at hand.
        workers: the run begins with the least of them, and takes more as there is room; with as many as there are units at most.
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
        workers: WorkerRange,
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
        self._refused: dict[str, TeachonceError] = {}
        self._told: set[str] = set()
        self._most = workers.most if workers.most > workers.least else 0
        self._seats = [Seat(*start()) for _ in range(queue.waiting(workers.least or 1))]
        for seat in self._seats[workers.least :]:
            seat.is_extra = True
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
            self._come_and_go()
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
            others = [other for other in self._seats if other is not seat and not other.at_work]
            idle = sum(other.is_open if other.is_extra else other.may_open for other in others)
            unit = self._queue.take(at_hand=len(seat.at_work), idle=idle)
            if unit is None:
                return
            seat.is_alone = self._queue.is_suspect(unit)
            seat.at_work[seat.actor.run.options(name=self._name_of(unit.key)).remote(unit)] = unit, time.monotonic()

    def _come_and_go(self) -> None:
        """Where their number may change: ask for as many more workers as have a unit to do, and let those go that have none.

        Those that Ray has no room for wait there, which is what makes an autoscaler start nodes. None is asked for before one is open:
        what keeps all from it is told without them.
        """
        if not self._most:
            return
        waiting = self._queue.waiting(self._most)
        extra = [seat for seat in self._seats if seat.is_extra and seat.may_open and not seat.at_work]
        coming = [seat for seat in extra if not seat.is_open]
        if any(seat.is_open for seat in self._seats):
            for _ in range(min(self._most - len(self._seats), waiting - len(coming))):
                self._seats.append(Seat(*self._start(), is_extra=True))
        self.group.let_go(coming[waiting:] if waiting else extra)

    def _take(self, seat: Seat, reference: Any) -> Iterator[Outcome]:
        """What has come of a reference of this worker."""
        import ray

        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            opening = reference is seat.opening
            if opening or (isinstance(cause, TeachonceError) and not isinstance(cause, StorageError)):
                raise cause from error  # so will every other worker
            unit, _ = seat.at_work[reference]
            result = self._fail(unit, f"{type(cause).__name__}: {cause}", cause, None)
        except ray.exceptions.RayError as error:
            self._head.check()
            yield from self._replace(seat, Death.of(error), error)
            return
        if reference is seat.opening:
            self._opened(seat, result)
            return
        unit, _ = seat.at_work.pop(reference)
        seat.is_alone, seat.deaths = False, 0
        self._queue.finished(unit)
        yield result

    def _opened(self, seat: Seat, opened: Opened) -> None:
        """A worker can do units, or its node is refused: the others go on, if there are any."""
        seat.opening, seat.node, seat.early_deaths, seat.refusal = None, opened.node, 0, opened.refusal
        if opened.refusal is not None:
            self._refused.setdefault(opened.name, opened.refusal)
        if not any(other.may_open for other in self._seats):
            raise next(iter(self._refused.values()))
        if any(other.is_open for other in self._seats):
            for name, refusal in self._refused.items():
                if name not in self._told:
                    self._told.add(name)
                    self._board.say(f"{name} does no work: {refusal}", "warning")

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
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        is_gone = death.of_node or (seat.node is not None and seat.node not in nodes)
        if suspects is None:
            suspects = set() if is_gone else set(seat.at_work)
        self.group.tell_of_end(seat, "is gone with its node" if is_gone else death.how)
        at_work, seat.at_work, seat.is_alone = seat.at_work, {}, False
        if not is_gone:  # nodes may come and go as often as they like
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
        elif not any(other.may_open for other in self._seats) and self._queue.waiting(1):
            raise death.of_all(seat.deaths) from error

    def _fail(self, unit: Unit, reason: str, cause: Exception, code: str | None) -> Outcome:
        self._queue.finished(unit)
        self._ledger.fail(unit.key, reason, str(cause), code)
        return Outcome(key=unit.key, rows=unit.rows, error=reason, code=code)
