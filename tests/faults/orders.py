"""Owns what the hook is told: at which thing that a command does in a folder it, or a process of it, gets a signal."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

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
