"""Faults: signals that ask a command to stop, at random points; and a terminal that goes away."""

from __future__ import annotations

import functools
import random
import shutil
import signal

from .fault import Fault, check
from .kills import check_status, measured
from .orders import countermand, order
from .programs import Done, wait
from .room import Room
from .ways import ALONE, WAYS, Way, Works

#: Exit codes that a signal leads to: the scheduler's stop, Ctrl-C's, and death by it.
_CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130, signal.SIGHUP: -signal.SIGHUP}

#: Points for each signal and stage.
_TIMES = 3


def stopped(room: Room, way: Way, number: signal.Signals) -> str:
    """Stop it some times, each a new output; then it goes on."""
    works = Works.of(room)
    events, _ = measured(works, way)
    way.undisturbed(works)
    codes: list[int] = []
    for turn in range(_TIMES):
        chance = random.Random(f"{room.seed}/{way.name}/{number}/{turn}")
        folder = way.folder(room)
        way.before(works, folder)
        order(room, folder, chance.randint(1, events), whom="first", number=number)
        ended = [wait(process) for process in way.start(works, folder, hook=True)]
        countermand(room)
        codes += [_check_end(done, number) for done in ended]
        check_status(room, folder)
        way.finish(works, folder)
        way.check_same(works, folder)
        shutil.rmtree(folder)
    wanted = _CODES[number]
    check(wanted in codes, f"never exit code {wanted}: {codes}")
    ended_before = sum(code != wanted for code in codes)
    return f"exit code {wanted}{f' ({ended_before} had ended by then)' if ended_before else ''}; the same bytes"


def _check_end(done: Done, number: signal.Signals) -> int:
    check("Traceback" not in done.stderr, f"a traceback: {done.last}")
    check(done.code in (0, _CODES[number]), f"exit code {done.code}: {done.last}")
    if done.code > 0:
        check("the same command resumes" in done.last, f"it does not say how it goes on: {done.last}")
    return done.code


def _fault(way: Way, number: signal.Signals) -> Fault:
    name = signal.Signals(number).name
    says = "one line, and exit code 75" if _CODES[number] == 75 else "one line, and exit code 130"
    return Fault(
        name=f"{name}: {way.name}",
        kind="Signals",
        provoked=f"{name} to `{way.stage}` at {_TIMES} random points, then the same command",
        must=f"{'it ends' if number == signal.SIGHUP else says}; the same command ends with the bytes of an undisturbed run",
        run=functools.partial(stopped, way=way, number=number),
    )


_SLICED = next(way for way in WAYS if way.name == "cache, slices")

FAULTS = (
    *(_fault(way, signal.SIGTERM) for way in ALONE.values()),
    *(_fault(ALONE[stage], signal.SIGUSR1) for stage in ("cache", "distill", "pretrain")),
    *(_fault(ALONE[stage], signal.SIGINT) for stage in ("shard", "cache", "distill")),
    *(_fault(ALONE[stage], signal.SIGHUP) for stage in ("cache", "distill")),
    _fault(_SLICED, signal.SIGTERM),
)
