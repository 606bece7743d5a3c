"""Faults: clocks that jump while a command works, or are years off. libfaketime gives each process such a clock; its timers stay right."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
from pathlib import Path

from .fault import Fault, Lacking, check
from .orders import countermand, order, wait_until_it_stops
from .programs import wait
from .room import Room, check_same
from .ways import ALONE, Works

#: Where Debian's package `libfaketime` puts it.
_LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def _environment(room: Room, start: str) -> dict[str, str]:
    if not _LIBRARIES:
        raise Lacking("libfaketime is missing: apt-get install faketime")
    (room.folder / "clock").write_text(start)
    return {
        "LD_PRELOAD": str(_LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(room.folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def jumps(room: Room, stage: str, start: str, then: str) -> str:
    """A command whose clock starts at one offset, and jumps to another in its middle."""
    works, way = Works.of(room), ALONE[stage]
    calm, folder = way.undisturbed(works), way.folder(room)
    way.before(works, folder)
    words = [*way.command(works, folder), "--executor", "serial"]
    order(room, folder, 25, number=signal.SIGSTOP, whom="first")
    process = room.cold(words, env=_environment(room, start), hook=True)
    wait_until_it_stops(process)
    (room.folder / "clock").write_text(then)
    countermand(room)
    os.kill(process.pid, signal.SIGCONT)
    done = wait(process)
    check("Traceback" not in done.stderr, f"a traceback: {done.last}")
    check(done.code == 0, f"exit code {done.code}: {done.last}")
    check_same(folder, calm)
    _check_status(room, folder / "out", then)
    shutil.rmtree(folder)
    return "it is not noticed; the same bytes; `status` tells of no negative time"


def _check_status(room: Room, out: Path, clock: str) -> None:
    environment = _environment(room, clock)
    for env in (environment, {}):
        done = wait(room.cold(["status", out], env=env))
        check(done.code == 0, f"status: exit code {done.code}: {done.last}")
        negative = re.findall(r"(?<![-\w])-\d.*", done.stdout)
        check(not negative, f"status tells of negative times: {negative}")


def resumed(room: Room, first: str, second: str) -> str:
    """A command that is killed, and goes on where the clock says something else: the machine's, or another machine's."""
    works, way = Works.of(room), ALONE["cache"]
    calm, folder = way.undisturbed(works), way.folder(room)
    words = [*way.command(works, folder), "--executor", "serial"]
    order(room, folder, 60)
    wait(room.cold(words, env=_environment(room, first), hook=True))
    check((room.control / "acted").exists(), "it ended before it was killed")
    countermand(room)
    done = wait(room.cold(words, env=_environment(room, second)))
    check(done.code == 0, f"exit code {done.code}: {done.last}")
    check_same(folder, calm)
    _check_status(room, folder / "out", second)
    shutil.rmtree(folder)
    return "the same bytes; `status` tells of no negative time"


_MUST = "the bytes of an undisturbed run; nothing waits for a moment that does not come; no negative times are shown"
_JUMPS = {"back two days": ("+0", "-2d"), "ten years ahead": ("+0", "+10y"), "from 1971 to now": ("-55y", "+0")}

FAULTS = (
    *(
        Fault(
            name=f"clock jumps {name}: {stage}",
            kind="Clocks",
            provoked=f"`{stage}` under libfaketime, whose clock jumps {name} in its middle",
            must=_MUST,
            run=functools.partial(jumps, stage=stage, start=start, then=then),
        )
        for name, (start, then) in _JUMPS.items()
        for stage in ("shard", "cache", "distill")
    ),
    *(
        Fault(
            name=f"killed, and resumed with a clock {name}",
            kind="Clocks",
            provoked=f"`cache`, killed, goes on under a clock that is {name}",
            must=_MUST,
            run=functools.partial(resumed, first=first, second=second),
        )
        for name, first, second in (("a day behind", "+0", "-1d"), ("a day ahead", "-1d", "+0"))
    ),
)
