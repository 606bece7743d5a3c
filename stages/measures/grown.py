"""Owns what is told of the generations of a store that grew: what each added, whether it is finished, and which rows were mended since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...pipeline.contents import is_target_store
from ...pipeline.storage import Location
from ...storage_schemas.errors import TeachonceError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.generations import Generations, added_text
from ..pairs.receipts import generation_ledger, ledger_name
from ..pairs.store import read_generations


@dataclass(frozen=True)
class Grown:
    """The generations of a store, for people.

    Attributes:
        generations: None for what is no store, never grew, or cannot be read.
    """

    store: Location
    generations: Generations | None

    @staticmethod
    def of(store: Location) -> Grown:
        """Whatever is wrong with the store is for others to say."""
        try:
            found = read_generations(store) if is_target_store(store) else None
        except TeachonceError:
            found = None
        return Grown(store, None if found is None or len(found.described) == 1 else found)

    def facts(self, ledger: str) -> dict[str, Json] | None:
        """Of the generation that has this ledger: `name`, `added` in words ('' for the first one), `state`, and whether it is `current`."""
        known = self.generations
        if known is None:
            return None
        for name, description in known.described.items():
            if ledger_name(name) == ledger:
                growth = description.growth
                return {
                    "name": name,
                    "added": "" if growth is None else added_text(known.described[growth.parent], description),
                    "state": "finished" if name in known.finished else "not finished",
                    "current": name == known.current,
                }
        return None

    def still_unusable(self, ledger: str) -> dict[str, set[int]]:
        """By receipt of a generation's ledger, for those whose shard a later, finished generation mended rows of: the rows that are still
        without targets."""
        found: dict[str, set[int]] = {}
        for later in self._mended_after(ledger):
            for receipt in generation_ledger(self.store, later).receipts():
                found[receipt.key] = {bad.row for bad in receipt.invalid_rows}
        return found

    def _mended_after(self, ledger: str) -> Iterator[str]:
        known = self.generations
        names = [] if known is None else known.finished
        behind = next((place for place, name in enumerate(names, 1) if ledger_name(name) == ledger), len(names))
        for name in names[behind:]:
            assert known is not None
            growth = known.described[name].growth
            if growth is not None and growth.what == "mended":
                yield name
