"""Owns the notes on what the calls of a function teacher cost, one a shard, beside the ledger's receipts.

A unit that fails, or is done again, adds to its note. Calls of a process that was killed within a unit are in none.
"""

from __future__ import annotations

import json
from collections import Counter

from ...pipeline.contents import LEDGER
from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import canonical_json
from ...storage_schemas.plain_text import counted
from ..teachers.base import Teacher
from ..teachers.calling import CountsCalls


def note_calls(store: Location, key: str, teacher: Teacher) -> None:
    """Add what the teacher has counted to the note of a unit; nothing for teachers that count nothing."""
    if not isinstance(teacher, CountsCalls) or not (found := teacher.take_calls()):
        return
    note = _folder(store).make_dir() / f"{key}.json"
    total = Counter(json.loads(note.read_bytes())) if note.exists() else Counter()
    total.update(found)
    note.write_note(canonical_json(dict(total)) + b"\n")


def calls_text(store: Location) -> str:
    """All that is noted, as a line for people; '' where nothing is."""
    folder, total = _folder(store), Counter[str]()
    for name in folder.names() if folder.exists() else ():
        total.update(json.loads((folder / name).read_bytes()))
    if not total:
        return ""
    again = f", {total['failed']:g} of which failed" if total["failed"] else ""
    prices = [f"{total[kind]:.6g}{kind.removeprefix('cost')}" for kind in sorted(total) if kind.startswith("cost")]
    cost = f", cost {' and '.join(prices)}" if prices else ""
    return f"{counted(int(total['calls']), 'call')} of the teacher so far{again}, {counted(int(total['images']), 'image')} sent{cost}"


def _folder(store: Location) -> Location:
    return store / LEDGER / "cache" / "costs"
