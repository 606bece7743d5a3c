"""Owns the log of a command as JSON lines (`--log-json`): what happened, where and how long it took, for programs that collect logs.

Each line is an object with `time` (UTC, ISO 8601), `level`, `event`, `stage`, `node`, `process` and `message`; an event has
fields of its own beside these (docs/observability.md lists them).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from ..storage_schemas.fingerprint import Json
from . import terminal
from .storage import Location

#: What stands for stdout in the place of a file.
STDOUT = "-"

INFO, WARNING, ERROR = "info", "warning", "error"

#: What people are told is a warning where it begins so.
_WARNINGS = ("Warning: ",)


class JsonLog:
    """A log that is open; any thread may write to it.

    Args:
        write: takes a whole line.
        stage: the command.
    """

    def __init__(self, write: Callable[[str], None], stage: str) -> None:
        self._write, self._stage = write, stage
        self._lock = threading.Lock()

    def event(self, event: str, message: str, *, level: str = INFO, **fields: Json) -> None:
        """A line. What is None is left out; `fields` may say of another process which `node` and `process` it was."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        here = {"stage": self._stage, "node": socket.gethostname(), "process": os.getpid()}
        line = {"time": now, "level": level, "event": event, **here, "message": message, **fields}
        text = json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=True)
        with self._lock:
            self._write(text + "\n")

    def told(self, text: str, level: str) -> None:
        """What people are told on stderr."""
        if level == INFO and text.startswith(_WARNINGS):
            level = WARNING
        self.event("message", text, level=level)


#: That of the command that runs now.
_open: JsonLog | None = None


def is_open() -> bool:
    """Whether this command has a log."""
    return _open is not None


def event(event: str, message: str, *, level: str = INFO, **fields: Json) -> None:
    """A line of the log, if there is one; see `JsonLog.event`."""
    if _open is not None:
        _open.event(event, message, level=level, **fields)


@contextlib.contextmanager
def log_to(target: str, stage: str) -> Iterator[None]:
    """Inside, what a command does is logged: what it tells people, and its units.

    Args:
        target: a file, which is added to, here or in a bucket; or `STDOUT`.
        stage: the command.
    """
    global _open
    with contextlib.ExitStack() as stack:
        log = JsonLog(_writer(target, stack), stage)
        before, _open = _open, log
        stack.callback(_put_back, before)
        stack.enter_context(terminal.heard_by(log.told))
        yield


def _put_back(before: JsonLog | None) -> None:
    global _open
    _open = before


def _writer(target: str, stack: contextlib.ExitStack) -> Callable[[str], None]:
    if target == STDOUT:

        def to_stdout(line: str) -> None:
            sys.stdout.write(line)
            sys.stdout.flush()

        return to_stdout
    file = stack.enter_context(Location.of(target).append())

    def to_file(line: str) -> None:
        file.write(line.encode())
        file.flush()

    return to_file
