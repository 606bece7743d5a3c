"""Owns the page of faults: what happened in the last run of each, kept in `results.json`, as tables of docs/reliability.md."""

from __future__ import annotations

import datetime
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from .all_faults import FAULTS
from .fault import Fault
from .room import CHECKOUT

RESULTS = Path(__file__).parent / "results.json"
PAGE = CHECKOUT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- written by make faults -->", "<!-- end -->"


def results() -> dict[str, dict[str, Any]]:
    """What happened, by the fault's name."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {}


def record(fault: Fault, held: str, happened: str) -> None:
    """Keep what happened, and write the page."""
    known = {**results(), fault.name: {"held": held, "happened": happened, "on": f"{datetime.date.today():%Y-%m-%d}"}}
    kept = {one.name: known[one.name] for one in FAULTS if one.name in known}
    RESULTS.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write()


def lines() -> list[str]:
    """The tables, one for each kind of fault."""
    known, written = results(), []
    for kind, faults in groupby(FAULTS, key=lambda fault: fault.kind):
        written += [
            "",
            f"### {kind}",
            "",
            "| fault | how it is provoked | what must happen | what happened |",
            "| --- | --- | --- | --- |",
        ]
        written += [_row(fault, known.get(fault.name)) for fault in faults]
    return [*written, ""]


def _row(fault: Fault, result: dict[str, Any] | None) -> str:
    happened = "not run yet" if result is None else str(result["happened"])
    if result is not None and result["held"] == "no":
        happened = f"**not so**: {happened}"
    cells = (fault.name, fault.provoked, fault.must, happened)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def with_tables(page: str) -> str:
    """The page with the tables of now between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return "\n".join([before + _BEGIN, *lines(), _END + after])


def write() -> None:
    """Write the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
