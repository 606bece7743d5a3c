"""Owns stderr as people see it: plain lines, and on a terminal one more below them that the next output replaces."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TextIO

from ..storage_schemas.plain_text import printable, printable_lines

#: Of a terminal that does not report its size, such as that of some containers.
_USUAL_COLUMNS, _USUAL_ROWS = 80, 24

_lock = threading.RLock()
#: Columns of the line that is to be replaced; 0 for none.
_shown = 0
#: Gets what people are told, with its level; see `heard_by`.
_hears: Callable[[str, str], None] | None = None
#: Inside, the bar that is shown now (if any) is out of the way.
_above_bar: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


def say(text: str, *, level: str = "info", heard: bool = True) -> None:
    """Print a line (or some) for people, above a bar if one is shown. What a terminal would act on is escaped.

    Args:
        level: for logs: `info`, `warning` or `error`.
        heard: whether it goes to a log too, which has the like of it already where it does not.
    """
    _print(sys.stderr, printable_lines(text))
    if heard and _hears is not None:
        _hears(text, level)


@contextlib.contextmanager
def heard_by(hears: Callable[[str, str], None]) -> Iterator[None]:
    """Inside, what `say` tells people goes to a log too, with its level."""
    global _hears
    before, _hears = _hears, hears
    try:
        yield
    finally:
        _hears = before


def show(text: str) -> None:
    """Print a report for people on stdout; with plain characters where stdout cannot have others."""
    _print(sys.stdout, encodable(printable_lines(text), sys.stdout.encoding or "utf-8"))


#: Blocks and signs of reports, in plain characters.
_PLAIN = str.maketrans(
    {**dict(zip("▁▂▃▄▅▆▇█", ".:-=+*%#", strict=True)), "▏": "|", "×": "x", "…": "~", "—": "-", "·": "."}
)


def encodable(text: str, encoding: str) -> str:
    """The text as it is, or where the encoding lacks some of its characters, others that look alike, or escapes."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def starting(text: str) -> None:
    """On a terminal, show what takes its time now, on a line that the next output replaces; elsewhere nothing."""
    global _shown
    if not sys.stderr.isatty():
        return
    with _lock:
        clear()
        # A line as wide as the terminal would wrap, and its first part stay.
        line = printable(text)[: _columns() - 1]
        print(line, end="", file=sys.stderr, flush=True)
        _shown = len(line)


def clear() -> None:
    """Remove the line that `starting` left."""
    global _shown
    with _lock:
        if _shown:
            print("\r" + " " * _shown + "\r", end="", file=sys.stderr, flush=True)
            _shown = 0


def bar_width() -> dict[str, Any]:
    """Arguments for tqdm: the width is the terminal's, or the usual one where the terminal does not report any."""
    try:
        asks = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        asks = False
    # tqdm shows nothing on a terminal without rows.
    return {"dynamic_ncols": True} if asks else {"ncols": _USUAL_COLUMNS, "nrows": _USUAL_ROWS}


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_COLUMNS
    except (OSError, ValueError):
        return _USUAL_COLUMNS


def screen_size() -> tuple[int, int]:
    """(columns, rows) of the terminal on stdout."""
    try:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    return columns or _USUAL_COLUMNS, rows or _USUAL_ROWS


def one_line_warnings() -> None:
    """From here on a Python warning is one line, without the line of source that gave rise to it."""
    warnings.formatwarning = _one_line
    warnings.showwarning = _show_warning


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    place = filename.replace("\\", "/").rpartition("/")[2]
    return f"{category.__name__}: {' '.join(str(message).split())} ({place}, line {lineno})\n"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _print(file or sys.stderr, printable(_one_line(message, category, filename, lineno).rstrip("\n")))


def bar_shown(aside: Callable[[], AbstractContextManager[Any]] | None) -> None:
    """A bar is shown from here on, and out of the way inside `aside()`; None: it is gone."""
    global _above_bar
    _above_bar = aside or contextlib.nullcontext


def _print(file: TextIO, text: str) -> None:
    with _lock:
        clear()
        with _above_bar():
            print(text, file=file, flush=True)
