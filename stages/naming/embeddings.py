"""Owns the embeddings of a store's centre views as blocks: read shard by shard, as often as they are gone through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.plain_text import typed
from ...storage_schemas.target_store import OpenArrays, read_marks, read_target
from ..pairs.store import StoreFacts, open_store, store_facts

#: The target that clusters are made of.
EMBEDDING = "embedding"

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CentreEmbeddings:
    """The embeddings of a finished store's usable samples, fp32 (sample, channel), in the order of the rows.

    Attributes:
        facts: of the store, which holds one centre view.
    """

    facts: StoreFacts

    @staticmethod
    def of(store: Location, generation: str | None = None) -> CentreEmbeddings:
        """
        Args:
            generation: of a store that grew; None for the current one.

        Raises:
            InputError, IncompleteError, DamagedError: as `store_facts`; or the store has no embeddings.
            MismatchError: its views are random ones.
        """
        facts = store_facts(store, generation)
        names = [target.name for target in facts.spec.targets]
        again = f"teachonce cache {typed('SHARDS')} --views center --targets embedding --teacher … --out ANOTHER_STORE"
        if EMBEDDING not in names:
            raise InputError(
                "clusters are made of embeddings, and the store holds none",
                code="labels-need-embeddings",
                where=store,
                expected=EMBEDDING,
                found=", ".join(names),
                hint=again,
            )
        if facts.views.is_random:
            raise MismatchError(
                "clusters are made of centre views, and the store holds random ones",
                code="labels-need-centre-views",
                where=f"{store}: field 'views'",
                expected="the centre view",
                found=f"{facts.spec.num_views} of kind {facts.views.kind}",
                hint=again,
            )
        return CentreEmbeddings(facts=facts)

    @property
    def num_samples(self) -> int:
        """Usable samples."""
        return int(self.facts.valid_rows.sum())

    @property
    def width(self) -> int:
        """Channels."""
        return self.facts.spec.target(EMBEDDING).width

    def rows(self) -> NDArray[np.int64]:
        """The rows of the usable samples, int64 (sample,)."""
        root = OpenArrays(open_store(self.facts.store, self.facts.generation))
        found = [np.empty(0, np.int64)]
        for shard in range(self.facts.spec.num_shards):
            _, valid_N = read_marks(root, self.facts.spec, shard)
            found.append(np.flatnonzero(valid_N) + self.facts.spec.rows(shard).start)
        return np.concatenate(found)

    def __iter__(self) -> Iterator[Floats]:
        """A block for each shard with usable samples."""
        root, spec = OpenArrays(open_store(self.facts.store, self.facts.generation)), self.facts.spec
        for shard in np.flatnonzero(self.facts.valid_rows).tolist():
            _, valid_N = read_marks(root, spec, shard)
            yield read_target(root, spec, shard, EMBEDDING, 0)[valid_N]


def unit(values_ND: Floats) -> Floats:
    """The vectors with length 1; those of length 0 stay as they are."""
    lengths_N1 = np.linalg.norm(values_ND, axis=1, keepdims=True)
    found: Floats = (values_ND / np.where(lengths_N1 > 0, lengths_N1, 1)).astype(np.float32)
    return found
