"""Owns what the hook is told: at which thing that a command does in a folder it, or a process of it, gets a signal."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from .fault import Unmet
from .room import Room


def order(
    room: Room, folder: Path, at: int, *, delay: float = 0.0, whom: str = "group", number: int = signal.SIGKILL
) -> None:
    """Tell the hook."""
    for name in ("count", "first", "acted"):
        (room.control / name).unlink(missing_ok=True)
    text = json.dumps({"folder": str(folder), "at": at, "delay": delay, "whom": whom, "signal": int(number)})
    (room.control / "order.json").write_text(text)


def countermand(room: Room) -> None:
    """The hook does nothing more."""
    (room.control / "order.json").unlink(missing_ok=True)


def end_group(pid: int) -> None:
    """What a killed command has started ends too, as with its job or its terminal."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def wait_until_it_stops(process: Any) -> None:
    """Until the kernel has halted what the hook sent SIGSTOP to."""
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "T":
            return
        time.sleep(0.01)
    raise Unmet("it ended before it could be disturbed")
