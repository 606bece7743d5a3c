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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..storage_schemas.errors import BusyError
from ..storage_schemas.plain_text import typed
from .contents import DRIVER, LEDGER
from .output import foreign_names
from .storage import Location, NoLocksError

#: Locks of this process.
_held: set[Path | Location] = set()


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Who writes to an output.

    Attributes:
        command: such as `teachonce cache`.
        host, pid: where it runs.
        since: local time with its offset, ISO 8601.
    """

    command: str
    host: str
    pid: int
    since: str

    @staticmethod
    def here(command: str) -> Driver:
        """This process."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        return Driver(command=command, host=socket.gethostname(), pid=os.getpid(), since=now)

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
            )
        except (ValueError, KeyError, TypeError):
            return Driver(command="another command", host="unknown", pid=0, since="unknown")

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    def __str__(self) -> str:
        return f"{self.command}, process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def only_driver(out: Location, command: str) -> Iterator[None]:
    """Inside, no other process drives a stage whose output is `out`. May be entered again inside.

    Raises:
        BusyError: another one does; names it.
    """
    lock = out / LEDGER / DRIVER
    path = lock.local_path()
    key = lock if path is None else path.resolve()
    if key in _held or not _may_be_ours(out):
        yield
        return
    try:
        held = lock.hold(Driver.here(command).to_bytes())
    except NoLocksError:
        print(
            f"{out}: {_no_locks(out)}: see to it that no other command writes there",
            file=sys.stderr,
        )
        yield
        return
    if held is None:
        raise BusyError(
            "another command is writing there",
            code="output-busy",
            where=out,
            expected="one at a time",
            found=_holder(lock) or Driver.from_bytes(b""),
            hint=f"wait for it: teachonce status {typed(out)}",
        )
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        held.release()


def _no_locks(out: Location) -> str:
    return (
        "this file system has no locks"
        if out.local_path()
        else "this object store has no conditional writes, so no locks"
    )


def _may_be_ours(out: Location) -> bool:
    """A folder with other things in it, or a file, is refused later, by a stage that knows what must be there."""
    return not out.exists() or (out.is_dir() and ((out / LEDGER).exists() or not foreign_names(out)))


def driver_of(out: Location) -> Driver | None:
    """The process that is writing to an output now; None if there is none."""
    lock = out / LEDGER / DRIVER
    return _holder(lock) if lock.is_held() else None


def _holder(lock: Location) -> Driver | None:
    """Who has written a lock; None where it has just finished, or has not said who it is yet."""
    try:
        return Driver.from_bytes(lock.read_bytes())
    except FileNotFoundError:
        return None
