"""Faults: `kill -9` at random points of every stage on every executor.

A point is the n-th thing that Python does in the output's folder, or up to a moment behind it. Cases are numbered, and drawn from
the seed, the way and their number alone: `--only "kill -9: cache, slices" --case 7` repeats one.
"""

from __future__ import annotations

import functools
import itertools
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from .fault import Fault, Unmet, check
from .orders import countermand, end_group, order
from .programs import wait
from .room import Room
from .ways import WAYS, Way, Works

#: A case is killed so often before it may finish.
_MOST_IN_A_CASE = 3

#: So many outputs for each kill, and it is given up: commands end before they are killed.
_MOST_CASES = 5

#: Exit codes of `status`: all is done, something is left to do, and something failed, as where a worker was killed.
_TOLD = (0, 3, 4)


@dataclass(frozen=True)
class Point:
    """Where a process is killed.

    Attributes:
        at: share of what there is to do in the folder: of an undisturbed run, or of what the last kill left.
        delay: seconds behind that, as a share of an undisturbed run's between two.
        whom: as in the hook.
    """

    at: float
    delay: float
    whom: str


def case(way: Way, number: int, seed: int) -> list[Point]:
    """The points of one output."""
    chance = random.Random(f"{seed}/{way.name}/{number}")
    return [
        Point(chance.random(), chance.choice([0.0, chance.uniform(0, 3)]), chance.choice(way.whom))
        for _ in range(chance.randint(1, _MOST_IN_A_CASE))
    ]


def quotas(kills: int) -> dict[str, int]:
    """How many of all kills each way gets; at least one."""
    shares = sum(way.share for way in WAYS)
    return {way.name: max(1, round(kills * way.share / shares)) for way in WAYS}


def measured(works: Works, way: Way) -> tuple[int, float]:
    """How many things an undisturbed run does in its folder, and in how many seconds."""

    def measure() -> tuple[int, float]:
        room = works.room
        folder = way.folder(room)
        way.before(works, folder)
        order(room, folder, 0)
        start = time.monotonic()
        for done in [wait(process) for process in way.start(works, folder, hook=True)]:
            check(done.code == 0, f"undisturbed, exit code {done.code}: {done.last}")
        countermand(room)
        events = (room.control / "count").stat().st_size
        shutil.rmtree(folder)
        return events, time.monotonic() - start

    return works.room.remembered(("measured", way.name), measure)  # type: ignore[no-any-return]


def receipts(folder: Path) -> dict[str, int]:
    """When each receipt in a folder was written."""
    return {str(at): at.stat().st_mtime_ns for at in folder.glob("*/ledger/*/receipts/*.json")}


def kill(works: Works, way: Way, folder: Path, point: Point, left: float) -> bool:
    """Start the command, of which this share is left, and kill it at a point, or let it end. Returns whether something was killed."""
    room = works.room
    events, seconds = measured(works, way)
    order(room, folder, 1 + int(point.at * left * events), delay=point.delay * seconds / events, whom=point.whom)
    processes = way.start(works, folder, hook=True)
    ended = [wait(process) for process in processes]
    countermand(room)
    acted = (room.control / "acted").exists()
    for process, done in zip(processes, ended, strict=True):
        check("Traceback" not in done.stderr, f"a traceback: {done.last}")
        if not acted:
            check(done.code == 0, f"exit code {done.code} without a kill: {done.last}")
        end_group(process.pid)
    return acted


def run_case(works: Works, way: Way, points: list[Point]) -> int:
    """One output: killed at each point, then finished. Returns how many kills came in time."""
    room = works.room
    measured(works, way)  # this and the next line use the same folder, once
    way.undisturbed(works)
    folder = way.folder(room)
    way.before(works, folder)
    killed, left = 0, 1.0
    for point in points:
        before = {} if way.redoes else receipts(folder)
        hit = kill(works, way, folder, point, left)
        killed, left = killed + hit, left * (1 - point.at)
        check_status(room, folder)
        _check_kept(before, folder)
    before = {} if way.redoes else receipts(folder)
    way.finish(works, folder)
    _check_kept(before, folder)
    way.check_same(works, folder)
    shutil.rmtree(folder)
    return killed


def check_status(room: Room, folder: Path) -> None:
    """`status` can tell of whatever a kill leaves."""
    for out in sorted(at for at in folder.iterdir() if (at / "ledger").exists()):
        done = room.run(["status", out])
        nothing = "[nothing-started]" in done.last  # killed before it had a plan
        check(done.code in _TOLD or nothing, f"status: exit code {done.code}: {done.last}")


def _check_kept(before: dict[str, int], folder: Path) -> None:
    after = receipts(folder)
    again = [name for name, at in before.items() if name in after and after[name] != at]
    check(not again, f"finished work was done again: {', '.join(again[:5])}")


def run_kills(room: Room, *, way: Way) -> str:
    """One output after another, until there were as many kills as this way has to have."""
    works, killed, planned = Works.of(room), 0, 0
    wanted = quotas(room.kills)[way.name]
    numbers = itertools.count() if room.only_case is None else iter([room.only_case])
    for tried, number in enumerate(numbers, 1):
        points = case(way, number, room.seed)
        try:
            killed += run_case(works, way, points)
        except Unmet as error:
            raise Unmet(f"case {number} of seed {room.seed}: {error}") from error
        planned += len(points)
        if killed >= wanted:
            break
        check(tried < _MOST_CASES * wanted, f"only {killed} of {planned} kills came before the end")
    late = f"; {planned - killed} came after the end" if planned > killed else ""
    return f"{killed} kills of {tried} outputs{late}: the same bytes"


def _whom(way: Way) -> str:
    if way.executor == "slices":
        return "one of three slices that run side by side"
    if way.executor == "torchrun":
        return "one of two ranks, or torchrun with both"
    return (
        "the driver, or one of two Ray workers" if way.executor == "workers" else "the command and what it has started"
    )


def _fault(way: Way) -> Fault:
    return Fault(
        name=f"kill -9: {way.name}",
        kind="`kill -9` at random points",
        provoked=f"`{way.stage}`, {way.executor}: {_whom(way)} is killed at random points",
        must="the same command ends with the bytes of an undisturbed run; no finished unit is done again; `status` tells of what is left",
        run=functools.partial(run_kills, way=way),
    )


FAULTS = tuple(_fault(way) for way in WAYS)
