"""Owns what is known of a run while it goes on: samples of units that are done, and of those at work."""

from __future__ import annotations

import threading

from . import terminal
from .progress import Progress
from .worker import Outcome


class Board:
    """Adds up the progress of units that executors report, for a bar. Finished units count exactly, whatever was reported before.

    Args:
        title: of the stage.
        bar: shows the sum.
        done: samples of units that were done before.
        counts: False for a stage that shows samples itself.
    """

    def __init__(self, title: str, bar: Progress, done: int = 0, *, counts: bool = True) -> None:
        self._title, self._bar, self._done, self._counts = title, bar, done, counts
        self._at: dict[str, int] = {}
        self._failed = 0
        self._lock = threading.Lock()

    def starting(self, what: str) -> None:
        """Tell what takes time before units are at work. May be called often."""
        self._bar.starting(what)

    def at(self, key: str, samples: int) -> None:
        """A unit at work has done so many samples; fewer than before where it was begun anew."""
        with self._lock:
            self._at[key] = samples
            self._show()

    def settle(self, outcome: Outcome) -> None:
        """A unit has come to its end. Samples of one that failed do not count."""
        with self._lock:
            self._at.pop(outcome.key, None)
            if outcome.error is None:
                self._done += outcome.rows
            else:
                self._failed += 1
            self._show()

    def say(self, line: str, level: str = "info") -> None:
        """A line for people; it begins with the stage, as a bar's own lines do ("distill: …", "distill (resumed): …")."""
        begins = line.startswith((f"{self._title}: ", f"{self._title} ("))
        terminal.say(line if begins else f"{self._title}: {line}", level=level)

    def _show(self) -> None:
        if self._counts:
            note = f"{self._failed} failed" if self._failed else ""
            self._bar.reach(self._done + sum(self._at.values()), note)
