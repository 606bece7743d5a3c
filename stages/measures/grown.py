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

    def mended_since(self, ledger: str) -> set[str]:
        """Receipts of a generation's ledger whose shard a later, finished generation mended rows of: its own receipt has what is unusable now."""
        return {key for name in self._mended_after(ledger) for key in generation_ledger(self.store, name).done_keys()}

    def _mended_after(self, ledger: str) -> Iterator[str]:
        known = self.generations
        names = [] if known is None else known.finished
        behind = next((place for place, name in enumerate(names, 1) if ledger_name(name) == ledger), len(names))
        for name in names[behind:]:
            assert known is not None
            growth = known.described[name].growth
            if growth is not None and growth.what == "mended":
                yield name
