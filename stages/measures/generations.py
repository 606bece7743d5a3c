"""Owns the generations of a store that grew, in words: what each added, how large it is, and when it was written."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from ...storage_schemas.generations import added_text
from ...storage_schemas.plain_text import counted
from ...storage_schemas.store_description import StoreDescription
from ..pairs.store import read_generations
from .stored import Stored


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation.

    Attributes:
        name: as `--generation` takes it.
        words: what it added to the one before.
        rows, views: of the store as of it.
        written: when its newest receipt was, by the file's time, in UTC; '' where it has none.
    """

    name: str
    words: str
    rows: int
    views: int
    written: str


def generations_of(stored: Stored) -> list[Generation]:
    """All finished generations up to the one that is read, the first one first; none of a store that never grew."""
    if stored.recorded is None:
        return []
    chain = read_generations(stored.location).chain(stored.recorded.generation)
    if len(chain) < 2:
        return []
    found = []
    ledgers = dict(zip((one.generation for one in chain), stored.receipts.ledgers, strict=True))
    for before, one in zip([None, *chain], chain, strict=False):
        times = ledgers[one.generation].done_at()
        found.append(
            Generation(
                name=one.generation,
                words=_words(before, one),
                rows=one.spec.num_samples,
                views=one.spec.num_views,
                written=_time(max(times)) if times else "",
            )
        )
    return found


def _words(before: StoreDescription | None, one: StoreDescription) -> str:
    if before is not None:
        return added_text(before, one)
    spec = one.spec
    names = " and ".join(target.name for target in spec.targets)
    return f"the store as it began: {names}, {counted(spec.num_samples, 'row')}, {counted(spec.num_views, 'view')}"


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
