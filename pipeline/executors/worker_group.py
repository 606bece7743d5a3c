"""Owns the actors of a run on Ray: what one does, and what all of them report now and then: samples so far, and lines for people.

Counts and lines only: a report is some hundred bytes, requested by the driver so seldom that it costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...storage_schemas.errors import TeachonceError, WorkerLost
from .. import lean_imports
from ..board import Board
from ..captured_stderr import CapturedStderr
from ..cores import assign_cores
from ..terminal import one_line_warnings
from ..types import Resources, Unit
from ..worker import Outcome, Worker
from .site import Site, node_name

#: Seconds between two reports of a worker, and of how many workers the driver requests one in a second at most.
SECONDS_BETWEEN_REPORTS, REPORTS_A_SECOND = 1.0, 50

#: Seconds for the last report of all workers, once their work is done.
LAST_REPORT_SECONDS = 5.0

#: Lines of workers that are printed at most in a run; all are in Ray's logs.
_MOST_LINES = 1000

#: Units whose samples a worker remembers. It works on a few at a time, and only those are reported.
_UNITS_REMEMBERED = 64


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker reports of itself.

    Attributes:
        process: host and process id.
        is_open: whether its stage is loaded, so that units are at work.
        samples: of its latest units, by key.
        lines: what it wrote to stderr since the report before.
    """

    process: str
    is_open: bool
    samples: Mapping[str, int]
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What came of opening the stage.

    Attributes:
        node: Ray's id of the worker's node.
        name: of the node, for people.
        refusal: why no unit can be done there; None where all is well.
    """

    node: str
    name: str
    refusal: TeachonceError | None = None


class RayWorker:
    """The actor: a worker that reports."""

    def __init__(self) -> None:
        lean_imports.install()
        one_line_warnings()
        self._stderr = sys.stderr = CapturedStderr()
        self._samples: dict[str, int] = {}
        self._worker: Worker | None = None

    def open(self, site: Site, given: Sequence[Any]) -> Opened:
        """Open the stage. `given` holds a reference to (stage, ledger), which are read once the node is known to fit the site."""
        import ray

        opened = Opened(node=str(ray.get_runtime_context().get_node_id()), name=node_name())
        try:
            site.enter()
            stage, ledger = ray.get(given[0])
            assign_cores(_share_of_cores(stage.resources))
            name = ray.get_runtime_context().get_actor_name() or ""
            worker = Worker(stage, ledger, self._at, name)
            with _process_ends_if_lost():
                worker.open()
        except TeachonceError as error:
            return replace(opened, refusal=error)
        self._worker = worker
        return opened

    def run(self, unit: Unit) -> Outcome:
        """Do one unit, once the stage is open."""
        assert self._worker is not None
        self._samples.pop(unit.key, None)
        self._at(unit.key, 0)
        while len(self._samples) > _UNITS_REMEMBERED:
            self._samples.pop(next(iter(self._samples)), None)
        with _process_ends_if_lost():
            return self._worker.run(unit)

    def report(self) -> Report:
        return Report(
            process=f"process {os.getpid()} on {socket.gethostname()}",
            is_open=self._worker is not None,
            samples=dict(self._samples),
            lines=self._stderr.take(),
        )

    def _at(self, key: str, samples: int) -> None:
        self._samples[key] = samples


@contextlib.contextmanager
def _process_ends_if_lost() -> Iterator[None]:
    try:
        yield
    except WorkerLost as error:
        print(error, file=sys.__stderr__, flush=True)  # Ray's log: no report comes after it
        os._exit(1)  # another process in its place may go on


def _share_of_cores(needs: Resources) -> int:
    """Cores for this actor: those that it asked for, and with a GPU the node's cores for each of its GPUs."""
    import ray

    context = ray.get_runtime_context()
    here, own = context.get_node_id(), context.get_assigned_resources()
    node: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    cpus, gpus = float(node.get("CPU", 0)), float(node.get("GPU", 0))
    share = cpus * float(own.get("GPU", 0)) / gpus if gpus else 0
    return max(needs.cpus, int(share))


@dataclass(eq=False)
class Seat:
    """A worker's place in the group, whatever process takes it.

    Attributes:
        actor: a handle of `RayWorker`; None once it was given up.
        opening: Ray's reference to what `open` gives; None when it is done.
        is_extra: whether the run goes on without it: its worker starts when there is room, and is let go when nothing is left for it.
        refusal: why its node does no unit; its worker stays, so that Ray places no other there.
        node: the id of its node, from then on.
        at_work: units by Ray's references to their outcomes, each with the time by the monotonic clock at which it was sent.
        is_alone: whether its unit is one that may have ended a process before: it gets no other meanwhile.
        deaths: of processes in a row, without a unit finished.
        early_deaths: of those in a row that came before the stage was open.
    """

    actor: Any
    opening: Any
    is_extra: bool = False
    refusal: TeachonceError | None = None
    node: str | None = None
    at_work: dict[Any, tuple[Unit, float]] = field(default_factory=dict)
    is_alone: bool = False
    deaths: int = 0
    early_deaths: int = 0

    @property
    def is_open(self) -> bool:
        return self.may_open and self.opening is None

    @property
    def may_open(self) -> bool:
        """Whether it is open or may become so."""
        return self.actor is not None and self.refusal is None


class WorkerGroup:
    """In the driver: the actors, and their latest reports.

    Args:
        seats: one for each worker; the list changes as workers come and go.
        what: the note on how they start, until the first report.
    """

    def __init__(self, seats: list[Seat], what: str, board: Board) -> None:
        self.seats = seats
        self._what, self._board = what, board
        self._requested: dict[Any, tuple[Seat, Any]] = {}
        self._last: dict[Seat, Report] = {}
        self._lines: set[str] = set()
        self._next_round = 0.0

    @property
    def seconds_between_reports(self) -> float:
        return max(SECONDS_BETWEEN_REPORTS, len(self.seats) / REPORTS_A_SECOND)

    def collect_reports(self) -> None:
        """Take the reports that have come, and request new ones, if it is time. Waits for none."""
        now = time.monotonic()
        if now < self._next_round:
            return
        self._next_round = now + self.seconds_between_reports
        self._collect(seconds=0)
        self._request()
        if not self._last:
            self._board.starting(self._what)
        elif not any(report.is_open for report in self._last.values()):
            many = f"{len(self.seats)} workers" if len(self.seats) > 1 else "a worker"
            self._board.starting(f"loading what it needs in {many}")

    def collect_last_reports(self) -> None:
        """What workers wrote after their last report, once their work is done."""
        self._collect(seconds=0)
        self._requested = {r: (seat, actor) for r, (seat, actor) in self._requested.items() if seat.is_open}
        self._request(only_open=True)
        self._collect(seconds=LAST_REPORT_SECONDS)

    def tell_of_end(self, seat: Seat, how: str) -> None:
        """A line for people: the process of a seat has ended, if it ever reported."""
        report = self._last.pop(seat, None)
        if report is not None:
            self._board.say(f"a worker {how} ({report.process}); its work was begun anew", "warning")

    def let_go(self, seats: Sequence[Seat]) -> None:
        """Their workers end, and the seats are gone: there is nothing left for them."""
        import ray

        for seat in seats:
            ray.kill(seat.actor)
            self.seats.remove(seat)
            self._last.pop(seat, None)

    def kill_all(self) -> None:
        """End all workers, whatever they do."""
        import ray

        for seat in self.seats:
            if seat.actor is not None:
                ray.kill(seat.actor)

    def _request(self, *, only_open: bool = False) -> None:
        requested = {id(actor) for _, actor in self._requested.values()}
        for seat in self.seats:
            if seat.actor is not None and id(seat.actor) not in requested and (seat.is_open or not only_open):
                self._requested[seat.actor.report.remote()] = seat, seat.actor

    def _collect(self, seconds: float) -> None:
        import ray

        self._requested = {r: (seat, actor) for r, (seat, actor) in self._requested.items() if seat.actor is actor}
        if not self._requested:
            return
        ready, _ = ray.wait(list(self._requested), num_returns=len(self._requested), timeout=seconds)
        for reference in ready:
            seat, _ = self._requested.pop(reference)
            try:
                report: Report = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # its process died, which its units show too
            self._take(seat, report)

    def _take(self, seat: Seat, report: Report) -> None:
        self._last[seat] = report
        for unit, _ in seat.at_work.values():
            self._board.at(unit.key, report.samples.get(unit.key, 0))
        for line in report.lines:
            # All workers print the same; once is enough.
            if line not in self._lines and len(self._lines) < _MOST_LINES:
                self._lines.add(line)
                self._board.say(line)
