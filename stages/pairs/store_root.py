"""Owns the refusal of a target store whose root is lost: the same in every command, and nothing is written into it."""

from __future__ import annotations

import json

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError


def refuse_lost_root(store: Location) -> None:
    """Refuse a folder in which class vectors or targets were begun, and whose zarr.json is lost or not ours.

    Zarr would make a new one, without its description of arrays that took a teacher a week.

    Raises:
        DamagedError: it is such a folder.
    """
    root = store / "zarr.json"
    if root.exists() and not _is_foreign_group(root):
        return
    begun = [stage for stage in ("vectors", "cache") if Ledger(store, stage).plan() is not None]
    if begun:
        raise DamagedError(
            "the store has lost its root",
            code="store-root-lost",
            where=root,
            expected=f"that of the store that `teachonce {begun[-1]}` began",
            found="another" if root.exists() else "nothing",
            hint="restore it from a copy; the arrays beside it need it, and stay as they are",
        )


def _is_foreign_group(root: Location) -> bool:
    """Whether it is a group's, without our mark: such as one that Zarr made where there was none. What cannot be read is reported later."""
    try:
        fields = json.loads(root.read_bytes())
        return "teachonce" not in (fields.get("attributes") or {})
    except (ValueError, AttributeError, RecursionError, IsADirectoryError):
        return False
