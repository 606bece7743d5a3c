"""Owns `status --watch`: looks again and again until all is done; redraws on a terminal, adds lines elsewhere."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..pipeline.terminal import encodable, screen_size, show
from ..storage_schemas.plain_text import counted, plural, printable_lines

#: Seconds between two looks where none are given; and how many times as long as a look takes lies between two, at least.
SECONDS, TIMES_A_LOOK = 5.0, 4

#: Moves to the first column of the first row and clears what is below, so that a redrawn screen does not flicker.
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def watch(
    look: Callable[[], dict[str, Any]], text_of: Callable[[dict[str, Any]], str], seconds: float
) -> dict[str, Any]:
    """Look until everything is done. Returns the last look, which is left on the terminal as `status` shows it.

    Args:
        look: gives the facts of `status`.
        text_of: makes its report of them.
        seconds: between two looks; more where looking takes long.
    """
    redraws = sys.stdout.isatty()
    told: dict[str, str] = {}
    while True:
        began = time.monotonic()
        facts = look()
        is_over = facts["state"] == "complete" and not facts["running"]
        if redraws and not is_over:
            _redraw(text_of(facts))
        elif redraws:
            sys.stdout.write(f"{_HOME}{_CLEAR_BELOW}")
            show(text_of(facts))
        else:
            for name, line in _lines(facts):
                if told.get(name) != line:
                    show(f"{_now()} {line}")
                    sys.stdout.flush()
                told[name] = line
        if is_over:
            return facts
        time.sleep(max(seconds, TIMES_A_LOOK * (time.monotonic() - began)))


def _redraw(text: str) -> None:
    """As much of it as the terminal has rows for, and what it is that is not shown."""
    columns, rows = screen_size()
    rows -= 1
    lines = [f"{_now()}, until all is done; Ctrl-C ends it", "", *printable_lines(text).split("\n")]
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"… and {len(lines) - rows + 1} more lines"]
    shown = "\n".join(f"{line[:columns]}{_CLEAR_LINE}" for line in lines)
    sys.stdout.write(encodable(f"{_HOME}{shown}\n{_CLEAR_BELOW}", sys.stdout.encoding or "utf-8"))
    sys.stdout.flush()


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A line for each stage, by its name; one for the whole where nothing has begun."""
    from ..pipeline.ledger import noun_of

    for stage in facts["stages"]:
        nouns = plural(noun_of(stage["stage"]))
        name = stage["stage"] + (f" in {stage['folder']}" if stage["folder"] != facts["path"] else "")
        line = f"{name}: {stage['done']} of {counted(stage['units'], 'unit')}, {stage['rows_done']} of {stage['rows']} {nouns}"
        line += f", {stage['failed']} failed" if stage["failed"] else ""
        if (training := stage["training"]) is not None:
            line += f", step {training['step']}, loss {training['loss']:.4g}"
        yield name, line
    if not facts["stages"]:
        yield "", f"{facts['path']}: nothing has begun"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
