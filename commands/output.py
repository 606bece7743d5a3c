"""Owns the output of commands: a line for people on stderr, or one JSON document on stdout."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from ..pipeline.terminal import say
from ..storage_schemas.plain_text import counted, typed
from .command import Command, option

if TYPE_CHECKING:
    from ..pipeline.runner import Summary


def json_option(command: Command) -> Command:
    """--json, for every command that reports."""
    return option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def report(summary: Summary, out: object, as_json: bool, **more: Any) -> None:
    """What a run of a stage did: one line for people on stderr, or JSON on stdout, with `more`."""
    if as_json:
        facts = {name: value for name, value in summary.__dict__.items() if name != "part" or value is not None}
        print_json({"out": str(out), **facts, **more})
        return
    from ..pipeline.ledger import noun_of

    part = f", slice {summary.part}" if summary.part else ""
    done = f"{summary.stage}{part}: {summary.done_before + summary.done_now} of {counted(summary.units, 'unit')} done"
    before = f", {summary.done_before} of them before" if summary.done_before else ""
    see = f"see `teachonce status {typed(out)}`"
    bad = f", {summary.invalid_rows} unusable ({see})" if summary.invalid_rows else ""
    say(f"{done}{before}; {counted(summary.rows, noun_of(summary.stage))} now{bad}. Output: {out}")
    if summary.warning is not None:
        say(f"Warning: {summary.warning}. S{see[1:]}.")


def print_json(value: Any) -> None:
    """One JSON document on stdout. What a terminal would act on is escaped: such characters stand inside strings only."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    unsafe = {c for c in text if not c.isprintable()} - {"\n"}
    sys.stdout.write(text.translate({ord(c): json.dumps(c)[1:-1] for c in unsafe}) + "\n")
