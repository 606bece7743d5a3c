"""Owns Ctrl-C: at any moment of a command it is one line and exit code 130, and never a traceback.

While a command works it is a KeyboardInterrupt, so that what is at work cleans up; before and after that, and a second
time, the process ends where it stands. That loses nothing: a killed command is resumed by the same one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 130

LINE = "Interrupted. What was finished is kept; the same command resumes."

#: How the process ends: by Ctrl-C, unless another signal asked for it.
_ends_as = (EXIT_CODE, LINE)

_working = False
_happened = False
_printed = False
_lost = False

#: In how many blocks of `later`, and whether Ctrl-C has come there.
_later = 0
_put_off = False

#: After a Ctrl-C that could not be raised; what it fell into must be over.
_SECONDS_UNTIL_AGAIN = 0.05


def install() -> None:
    """For the program's own process, as early as it can be: from here on this module decides what Ctrl-C does.

    Nothing where the signal is ignored, as by `nohup` and shells that start jobs in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    signal.signal(signal.SIGINT, _on_signal)
    sys.unraisablehook = _unraisable


@contextlib.contextmanager
def work() -> Iterator[None]:
    """Inside, Ctrl-C is raised as KeyboardInterrupt."""
    global _working
    _working = True
    try:
        yield
    finally:
        _working = False


class later:  # a class for speed: it is entered for each image
    """Inside, a first Ctrl-C waits for the end of the outermost such block, and is raised there. Blocks are short.

    For calls that hand work to threads or take it from them: raised within those it can leave a lock taken that the threads need. Nothing
    outside the main thread, where no signal is handled.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        global _later
        if threading.get_ident() == threading.main_thread().ident:
            _later += 1

    def __exit__(self, *_: object) -> None:
        global _later, _put_off
        if threading.get_ident() == threading.main_thread().ident:
            _later -= 1
            if _put_off and not _later:
                _put_off = False
                raise KeyboardInterrupt


def now(exit_code: int, line: str) -> None:
    """As Ctrl-C does, with another line and exit code. For handlers of other signals, in the main thread.

    Raises:
        KeyboardInterrupt: while a command works, outside `later`.
    """
    global _ends_as
    _ends_as = (exit_code, line)
    _on_signal(0, None)


def exit_code() -> int:
    """With which the process ends."""
    return _ends_as[0]


def end_line() -> str:
    """What people are told."""
    return _ends_as[1]


def happened() -> bool:
    """Whether there was a Ctrl-C. Libraries turn what it raised into errors of their own."""
    return _happened


def mark_line_printed() -> None:
    """The line of Ctrl-C has been printed; it is not printed again."""
    global _printed
    _printed = True


def leave() -> None:
    """After Ctrl-C: stop helpers (Ray, processes that decode), and end without taking libraries apart whose threads still run.

    torch's were seen to end that with a segmentation fault.
    """
    _print_line()
    mark_line_printed()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code())


def _on_signal(number: int, frame: object) -> None:
    global _happened, _lost, _put_off
    if _working and (_lost or not _happened):
        _happened, _lost = True, False
        if _later:
            _put_off = True
            return
        raise KeyboardInterrupt
    _print_line()
    os._exit(exit_code())


def _print_line() -> None:
    if not _printed:
        # No lock, no buffer: whatever was interrupted may hold it.
        os.write(_stderr(), f"\n{end_line()}\n".encode() if os.isatty(_stderr()) else f"{end_line()}\n".encode())


def _stderr() -> int:
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return 2


def _unraisable(what: Any) -> None:
    """Where an exception cannot be raised (a destructor, a callback), Ctrl-C would be lost, with a traceback."""
    global _lost
    if what.exc_type is not None and issubclass(what.exc_type, KeyboardInterrupt):
        _lost = True
        again = threading.Timer(_SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True  # where the command is over by then, nothing waits for it
        again.start()
    elif not _happened:
        sys.__unraisablehook__(what)
