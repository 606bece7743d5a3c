"""Owns the seam to programs that show a run's figures, and that trouble with one costs a warning and nothing else."""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from ...models.weights import brief

#: Points that wait for a slow server; of more, the run goes on without it.
_WAITING = 10_000

#: Seconds that the end of a run waits for what has not been sent.
_PATIENCE = 60.0

#: Environment variables whose values are never printed.
_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)


class Logger(Protocol):
    """One program, or one of its runs. Its methods may raise whatever its library does."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by name, after so many steps."""

    def close(self, *, finished: bool) -> None:
        """The end; `finished` is false where the run stops before its end, and may go on later."""


class Guarded:
    """A logger that works in a thread of its own: a server that is slow, or that fails, leaves the training alone.

    The first trouble is printed on one line, without credentials; from then on nothing is logged there.

    Args:
        name: of the program, for that line.
        opener: makes the logger; it runs in the thread too, since that may take a connection.
    """

    def __init__(self, name: str, opener: Callable[[], Logger]) -> None:
        self._name, self._opener = name, opener
        self._queue: queue.Queue[tuple[int, Mapping[str, float]] | bool] = queue.Queue(_WAITING)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"log to {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by name, after so many steps; returns at once."""
        if not self._failed:
            try:
                self._queue.put_nowait((step, dict(figures)))
            except queue.Full:
                self._fail("it does not take figures as fast as they come")

    def close(self, *, finished: bool) -> None:
        """Send what is left, for a minute at most."""
        if not self._failed:
            try:
                self._queue.put_nowait(finished)
            except queue.Full:
                self._fail("it does not take figures as fast as they come")
        self._thread.join(_PATIENCE)
        if self._thread.is_alive() and not self._failed:
            self._fail(f"it did not take the last figures within {_PATIENCE:g} seconds")

    def _work(self) -> None:
        try:
            logger = self._opener()
            while not isinstance(item := self._queue.get(), bool):
                logger.log(*item)
            logger.close(finished=item)
        except Exception as error:
            self._fail(brief(error))

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            print(f"distill: no more figures go to {self._name}: {without_secrets(why)}", file=sys.stderr)


def without_secrets(text: str) -> str:
    """A text without what may be a password: the user part of URLs, and values of variables that are named so."""
    text = re.sub(r"://[^/@\s]+@", "://…@", text)
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "…")
    return text
