"""Owns what a worker process writes to stderr: kept as whole lines until the driver requests them, and still written."""

from __future__ import annotations

import io
import sys
import threading
from collections import deque

#: Lines that are kept at most; older ones are in the process's own log.
MOST_LINES = 200

_LONGEST_LINE = 10_000


class CapturedStderr(io.TextIOBase):
    """Takes the place of `sys.stderr`. Any thread may write."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._begun = ""
        self._lock = threading.Lock()
        self._stderr = sys.stderr

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stderr.write(text)
        with self._lock:
            *whole, begun = (self._begun + text).split("\n")
            # Bars start their line again and again: what is before the last start is gone.
            self._begun = _last(begun) + "\r" * begun.endswith("\r")
            self._lines.extend(line for line in map(_last, whole) if line.strip())
        return len(text)

    def flush(self) -> None:
        self._stderr.flush()

    def take(self) -> tuple[str, ...]:
        """The lines since the last call."""
        with self._lock:
            lines = tuple(self._lines)
            self._lines.clear()
        return lines


def _last(line: str) -> str:
    """What a terminal would show of a line."""
    return line.rstrip("\r").rpartition("\r")[2][-_LONGEST_LINE:]
