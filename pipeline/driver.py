"""Owns the rule that one command at a time writes to an output: a lock that names its holder and dies with it.

The lock is `OUT/ledger/driver.json`, held by the kernel (flock) for as long as its process lives, and removed by it. A
process that was killed holds nothing: the next one takes the file over, whatever is in it. On NFS the server does the
same for a client that went away, once its lease has run out (90 seconds on Linux). In a bucket the holder renews a lease
(`places/bucket_lease.py`). Of places that cannot lock, this is said, and two commands are kept apart only by their plans.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..storage_schemas.errors import BusyError
from ..storage_schemas.plain_text import typed
from .contents import DRIVER, LEDGER, SLICES
from .output import foreign_names
from .slices import Slice
from .storage import HeldLock, Location, NoLocksError
from .terminal import say

#: Locks of this process; None where the place has none.
_held: dict[Path | Location, HeldLock | None] = {}

#: Between two looks at whether an output is set up.
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Who writes to an output.

    Attributes:
        command: such as `teachonce cache`.
        host, pid: where it runs.
        since: local time with its offset, ISO 8601.
        slice: `I/N` of one that does a part of the units; '' for all of them.
    """

    command: str
    host: str
    pid: int
    since: str
    slice: str = ""

    @staticmethod
    def here(command: str, part: Slice | None = None) -> Driver:
        """This process."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        return Driver(
            command=command,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=now,
            slice="" if part is None else str(part),
        )

    @staticmethod
    def from_bytes(data: bytes) -> Driver:
        """From the content of a lock; what it does not hold stays unknown."""
        try:
            fields = json.loads(data)
            return Driver(
                command=str(fields["command"]),
                host=str(fields["host"]),
                pid=int(fields["pid"]),
                since=str(fields["since"]),
                slice=str(fields.get("slice", "")),
            )
        except (ValueError, KeyError, TypeError):
            return Driver(command="another command", host="unknown", pid=0, since="unknown")

    def to_bytes(self) -> bytes:
        fields = {name: value for name, value in asdict(self).items() if value != "" or name != "slice"}
        return json.dumps(fields).encode() + b"\n"

    def __str__(self) -> str:
        part = f", slice {self.slice}" if self.slice else ""
        return f"{self.command}{part}, process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def only_driver(out: Location, command: str, part: Slice | None = None) -> Iterator[None]:
    """Inside, no other process does what this one does to `out`: all units of a stage, or a slice of them. May be entered again inside.

    Slices work side by side. The first look at an output and the making of its plan is one at a time for them too: others wait
    until it has called `set_up`, or has ended.

    Raises:
        BusyError: another one does; names it.
    """
    lock = out / LEDGER / DRIVER
    key = _key(lock)
    if key in _held or not _may_be_ours(out):
        yield
        return
    with contextlib.ExitStack() as locks:
        try:
            whole = _turn(lock, out, command, part)
            locks.callback(_release, key)
            _held[key] = whole
            if part is None:
                _refuse(out, _slices_at_work(out))
                (out / LEDGER / SLICES).remove_folder()  # of slices that were killed
            else:
                _refuse(out, [slice_ for slice_ in _slices_at_work(out) if not slice_.slice.endswith(f"/{part.count}")])
                own = _slice_lock(out, part).hold(Driver.here(command, part).to_bytes())
                if own is None:
                    _refuse(out, [_holder(_slice_lock(out, part)) or Driver.from_bytes(b"")])
                else:
                    locks.callback(own.release)
        except NoLocksError:
            print(
                f"{out}: {_no_locks(out)}: see to it that no other command writes there",
                file=sys.stderr,
            )
        yield


def set_up(out: Location) -> None:
    """The plan is there, and all that units need: other slices may begin. Nothing for a command that does all units."""
    lock = out / LEDGER / DRIVER
    key = _key(lock)
    held = _held.get(key)
    if held is not None and (driver := _holder(lock)) is not None and driver.slice:
        _held[key] = None
        held.release()


def _key(lock: Location) -> Path | Location:
    """One for all names by which a lock is reached."""
    path = lock.local_path()
    return lock if path is None else path.resolve()


def _release(key: Path | Location) -> None:
    held = _held.pop(key)
    if held is not None:
        held.release()


def _turn(lock: Location, out: Location, command: str, part: Slice | None) -> HeldLock:
    """Hold the lock of the output. A slice waits for another that sets the output up.

    Raises:
        BusyError: a command holds it that does all units.
    """
    content, waits = Driver.here(command, part).to_bytes(), False
    while True:
        held = lock.hold(content)
        if held is not None:
            return held
        holder = _holder(lock)
        known = holder is not None and holder.pid > 0  # one that has just begun has not said who it is
        if part is None or (known and holder is not None and not holder.slice):
            _refuse(out, [holder or Driver.from_bytes(b"")])
        if known and not waits:
            waits = True
            say(f"waiting for what sets {out} up: {holder}")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _refuse(out: Location, drivers: Sequence[Driver]) -> None:
    for driver in drivers:
        raise BusyError(
            "another command is writing there",
            code="output-busy",
            where=out,
            expected="one at a time",
            found=driver,
            hint=f"wait for it: teachonce status {typed(out)}",
        )


def _slice_lock(out: Location, part: Slice) -> Location:
    return out / LEDGER / SLICES / part.name


def _slices_at_work(out: Location) -> list[Driver]:
    folder = out / LEDGER / SLICES
    locks = [folder / name for name in sorted(folder.names())]
    return [_holder(lock) or Driver.from_bytes(b"") for lock in locks if lock.is_held()]


def _no_locks(out: Location) -> str:
    return (
        "this file system has no locks"
        if out.local_path()
        else "this object store has no conditional writes, so no locks"
    )


def _may_be_ours(out: Location) -> bool:
    """A folder with other things in it, or a file, is refused later, by a stage that knows what must be there."""
    return not out.exists() or (out.is_dir() and ((out / LEDGER).exists() or not foreign_names(out)))


def drivers_of(out: Location) -> list[Driver]:
    """The processes that are writing to an output now."""
    lock = out / LEDGER / DRIVER
    whole = [_holder(lock)] if lock.is_held() else []
    slices = _slices_at_work(out)
    own = {driver.slice for driver in slices}
    return [driver for driver in whole if driver is not None and driver.slice not in own] + slices


def _holder(lock: Location) -> Driver | None:
    """Who has written a lock; None where it has just finished, or has not said who it is yet."""
    try:
        return Driver.from_bytes(lock.read_bytes())
    except FileNotFoundError:
        return None
