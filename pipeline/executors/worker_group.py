"""Owns the actors of a run on Ray: what one does, and what all of them report now and then: samples so far, and lines for people.

Counts and lines only: a report is some hundred bytes, requested by the driver so seldom that it costs nothing.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...storage_schemas.errors import WorkerLost
from .. import lean_imports
from ..board import Board
from ..captured_stderr import CapturedStderr
from ..cores import assign_cores
from ..terminal import one_line_warnings
from ..types import Resources, Unit
from ..worker import Outcome, Worker

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


class RayWorker:
    """The actor: a worker that reports. Its stage comes with its first unit."""

    def __init__(self) -> None:
        lean_imports.install()
        one_line_warnings()
        self._stderr = sys.stderr = CapturedStderr()
        self._samples: dict[str, int] = {}
        self._worker: Worker | None = None
        self._making = threading.Lock()

    def run(self, given: Sequence[Any], unit: Unit) -> Outcome:
        """Do one unit. `given` holds a reference to (stage, ledger): in a list, so that Ray does not fetch them for each unit."""
        import ray

        with self._making:
            if self._worker is None:
                stage, ledger = ray.get(given[0])
                assign_cores(_share_of_cores(stage.resources))
                self._worker = Worker(stage, ledger, self._at)
        self._samples.pop(unit.key, None)
        self._at(unit.key, 0)
        while len(self._samples) > _UNITS_REMEMBERED:
            self._samples.pop(next(iter(self._samples)), None)
        try:
            return self._worker.run(unit)
        except WorkerLost as error:
            print(error, file=sys.__stderr__, flush=True)  # Ray's log: no report comes after it
            os._exit(1)  # Ray starts another process in its place, which may go on

    def report(self) -> Report:
        return Report(
            process=f"process {os.getpid()} on {socket.gethostname()}",
            is_open=self._worker is not None and self._worker.is_open,
            samples=dict(self._samples),
            lines=self._stderr.take(),
        )

    def _at(self, key: str, samples: int) -> None:
        self._samples[key] = samples


def _share_of_cores(needs: Resources) -> int:
    """Cores for this actor: those that it asked for, and with a GPU the node's cores for each of its GPUs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    node: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    cpus, gpus = float(node.get("CPU", 0)), float(node.get("GPU", 0))
    share = cpus * needs.gpus / gpus if gpus else 0
    return max(needs.cpus, int(share))


class WorkerGroup:
    """In the driver: the actors, and their latest reports.

    Args:
        actors: handles of `RayWorker`.
        what: the note on how they start, until the first report.
    """

    def __init__(self, actors: Sequence[Any], what: str, board: Board) -> None:
        self.actors = actors
        self._what, self._board = what, board
        self._requested: dict[Any, int] = {}
        self._last: dict[int, Report] = {}
        self._lines: set[str] = set()
        self._next_round = 0.0

    @property
    def seconds_between_reports(self) -> float:
        return max(SECONDS_BETWEEN_REPORTS, len(self.actors) / REPORTS_A_SECOND)

    def collect_reports(self, at_work: Iterable[tuple[Any, Unit]]) -> None:
        """Take the reports that have come, and request new ones, if it is time. Waits for none.

        Args:
            at_work: (actor, unit) of all units that have no outcome yet.
        """
        now = time.monotonic()
        if now < self._next_round:
            return
        self._next_round = now + self.seconds_between_reports
        units: dict[int, list[str]] = {}
        for actor, unit in at_work:
            units.setdefault(self.actors.index(actor), []).append(unit.key)
        self._collect(units, seconds=0)
        self._request()
        if not self._last:
            self._board.starting(self._what)
        elif not any(report.is_open for report in self._last.values()):
            many = f"{len(self.actors)} workers" if len(self.actors) > 1 else "a worker"
            self._board.starting(f"loading what it needs in {many}")

    def collect_last_reports(self) -> None:
        """What workers wrote after their last report, once their work is done."""
        self._collect({}, seconds=0)
        self._request()
        self._collect({}, seconds=LAST_REPORT_SECONDS)

    def kill_all(self) -> None:
        """End all workers, whatever they do."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def _request(self) -> None:
        for index in set(range(len(self.actors))) - set(self._requested.values()):
            self._requested[self.actors[index].report.remote()] = index

    def _collect(self, units: Mapping[int, Sequence[str]], seconds: float) -> None:
        import ray

        if not self._requested:
            return
        ready, _ = ray.wait(list(self._requested), num_returns=len(self._requested), timeout=seconds)
        for reference in ready:
            index = self._requested.pop(reference)
            try:
                report: Report = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # its process died; its units fail, if it does not start again
            self._take(index, report, units.get(index, ()))

    def _take(self, index: int, report: Report, keys: Sequence[str]) -> None:
        last = self._last.get(index)
        if last is not None and last.process != report.process:
            self._board.say(f"a worker ended unforeseen ({last.process}); its work was begun anew")
        self._last[index] = report
        for key in keys:
            self._board.at(key, report.samples.get(key, 0))
        for line in report.lines:
            # All workers print the same; once is enough.
            if line not in self._lines and len(self._lines) < _MOST_LINES:
                self._lines.add(line)
                self._board.say(line)
