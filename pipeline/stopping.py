"""Owns a stop that was asked for from outside, as schedulers do before they kill: SIGTERM, and SIGUSR1 (Slurm's warning).

No further unit begins, and what is at hand is finished. What is not, after `grace` seconds or a second signal, is given up as by
Ctrl-C; nothing half-written counts. The exit code, 75 (EX_TEMPFAIL of sysexits.h), means: run the same command again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ..storage_schemas.errors import Stopped
from . import interrupt
from .terminal import say

U = TypeVar("U")

EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_asked: str | None = None
_grace = 0.0
_timer: threading.Timer | None = None

#: What the signals did before.
_before: dict[signal.Signals, Any] = {}


def asked() -> str | None:
    """The signal's name, once it has come; None until then."""
    return _asked


def line() -> str:
    """For people, at the end."""
    return f"Stopped by {_asked}. What was finished is kept; the same command resumes."


def ask(name: str) -> None:
    """As if this signal had come: another process that does the same work has got it. That one counts the seconds."""
    global _asked
    _asked = _asked or name


def stopped(where: object, found: str | None = None) -> Stopped:
    """The error of work that a stop leaves unfinished.

    Args:
        where: its output.
        found: how much is done.
    """
    return Stopped(line(), code="stopped-by-signal", where=where, found=found)


def unless_asked(units: Iterable[U]) -> Iterator[U]:
    """These units, until a stop is asked for."""
    for unit in units:
        if _asked is not None:
            return
        yield unit


def arm(grace: float) -> None:
    """From here on the signals ask for a stop, and what still runs so many seconds later is given up.

    Nothing where a signal is ignored, or in a thread, which has no say in signals.
    """
    global _grace
    _grace = grace
    if _before or threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        _before[number] = signal.getsignal(number)
        if _before[number] != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def disarm() -> None:
    """The signals do what they did before."""
    global _asked, _timer
    if _timer is not None:
        _timer.cancel()
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    _asked = _timer = None


def _on_signal(number: int, frame: object) -> None:
    global _asked, _timer
    if _asked is not None or not _grace:
        _asked = _asked or signal.Signals(number).name
        interrupt.now(EXIT_CODE, line())
        return
    _asked = signal.Signals(number).name
    _timer = threading.Timer(_grace, os.kill, (os.getpid(), number))
    _timer.daemon = True  # where the command is over by then, nothing waits for it
    _timer.start()
    note = f"{_asked}: finishing what is at hand, for at most {_grace:g} s"
    threading.Thread(target=say, args=(note,), daemon=True).start()  # what the signal fell into may be printing
