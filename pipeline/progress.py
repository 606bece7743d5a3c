"""Owns progress on stderr: what is starting, then a bar with rate and time left; plain lines now and then where stderr is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from types import TracebackType
from typing import Any

from . import json_log, terminal

#: A rate over less time means nothing: workers report their samples in lots.
_LEAST_SECONDS = 2.0


class Progress:
    """Counts samples towards a total (None: not known beforehand). Use as a context manager; any thread may call it.

    Rate and time left are those of the work: the clock starts with the first samples, so neither what was done before
    nor the time until then (Ray, models, the first batch) counts.

    Args:
        brief: for work that is over at once most of the time: where stderr is no terminal, a count is printed only if it takes long.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        done: int = 0,
        unit: str = "img",
        *,
        every_seconds: float = 10.0,
        brief: bool = False,
    ) -> None:
        self._brief = brief
        self._title = title
        self._total = total
        self._count = done
        self._unit = unit
        self._every = every_seconds
        self._note = ""
        self._bar: Any = None
        self._clock: tuple[float, int] | None = None  # when the first samples came, and the count then
        self._printed = ""
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        self._last_line = self._last_logged = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        return self

    def starting(self, what: str) -> None:
        """Show what takes time before there are samples. May be called often; once there are some, it does nothing.

        On a terminal it is shown at once and replaced by what comes; elsewhere it is a line once it has taken a while.
        """
        with self._lock:
            if self._clock is not None or what == self._printed:
                return
            line = f"{self._title}: {what}"
            if self._is_terminal:
                terminal.starting(line)
            elif self._is_due():
                terminal.say(line)
            else:
                return
            self._printed = what

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` samples; `note` replaces the figures shown after the rate."""
        with self._lock:
            self._reach(self._count + count, note)

    def reach(self, count: int, note: str = "") -> None:
        """There are `count` samples now, which may be fewer than before."""
        with self._lock:
            self._reach(count, note)

    def _reach(self, count: int, note: str) -> None:
        moved, self._count = count - self._count, count
        if self._clock is None:
            if not moved:
                return
            self._clock = time.monotonic(), count
            if self._is_terminal:
                self._show_bar()
            moved = 0  # the bar begins with them
        if json_log.is_open() and self._is_due_in_log():
            json_log.event(
                "progress",
                f"{self._title}: {self._count} {self._unit}",
                done=self._count,
                of=self._total,
                per_second=self.rate,
            )
        if note and note != self._note:
            self._note = note
            if self._bar is not None:
                self._bar.set_postfix_str(note, refresh=False)
        if self._bar is not None:
            self._bar.update(moved)
        elif not self._is_terminal and self._is_due():
            self._print_line()

    def _show_bar(self) -> None:
        from tqdm import tqdm

        terminal.clear()
        self._bar = tqdm(
            total=self._total,
            initial=self._count,
            desc=self._title,
            unit=self._unit,
            file=sys.stderr,
            smoothing=0.1,
            **terminal.bar_width(),
        )
        terminal.bar_shown(partial(tqdm.external_write_mode, file=sys.stderr))

    @property
    def rate(self) -> float | None:
        """Samples per second of this run since its first ones; None where they are too few for a rate."""
        if self._clock is None:
            return None
        start, count = self._clock
        seconds = time.monotonic() - start
        return (self._count - count) / seconds if self._count > count and seconds >= _LEAST_SECONDS else None

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < self._every:
            return False
        self._last_line = now
        return True

    def _is_due_in_log(self) -> bool:
        now = time.monotonic()
        if now - self._last_logged < self._every:
            return False
        self._last_logged = now
        return True

    def _print_line(self) -> None:
        of_total = f"/{self._total}" if self._total is not None else ""
        line, rate = f"{self._title}: {self._count}{of_total} {self._unit}", self.rate
        if rate is not None:
            line += f", {rate:.1f} {self._unit}/s"
            if self._total is not None:
                line += f", {max(self._total - self._count, 0) / rate:.0f} s left"
        line += f", {self._note}" if self._note else ""
        terminal.say(line, heard=False)
        self._printed = str(self._count)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        terminal.clear()
        if self._bar is not None:
            self._bar.close()
            terminal.bar_shown(None)
        elif (
            self._clock is not None
            and not self._is_terminal
            and self._printed != str(self._count)
            and (self._printed or not self._brief)
        ):
            self._print_line()
