"""Owns the cache on this machine's disk, and the copies in it of what is read of a store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from ...pipeline.storage import Copies, Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import digest_json
from .receipts import StoreReceipts
from .store import StoreFacts, store_receipts

#: Bytes of a gigabyte, as disks are sold.
GB = 10**9

#: Size of a cache that nobody chose.
DEFAULT_GB = 50.0


@dataclass(frozen=True, kw_only=True)
class LocalCache:
    """Where copies are kept, and how many of them.

    Attributes:
        folder: a folder of this machine; several runs may share it.
        gb: gigabytes at most.
    """

    folder: str
    gb: float

    def copies(self, corpus_id: str, fingerprint: str) -> Copies:
        """Of a store, by its fingerprint's digest, and its shards. Their names decide nothing: all bytes follow from these two.

        Raises:
            InputError: no folder of this machine.
        """
        folder = Location.of(self.folder)
        if folder.local_path() is None or (folder.exists() and not folder.is_dir()):
            raise InputError(
                "a local cache needs a folder of this machine",
                code="local-cache-not-here",
                where="--local-cache",
                found=self.folder,
                hint="name a folder on a fast disk",
            )
        of = digest_json({"corpus_id": corpus_id, "store": fingerprint})
        return Copies(folder.full_name, int(self.gb * GB), of)


class SourceCopies(Protocol):
    """Copies of what a source of targets reads. Small and picklable."""

    def keep(self, shard: int, *, verify: bool = False) -> None:
        """Fetch what a shard has of it and what has no copy yet; see `ShardCopies.keep`."""


@dataclass(frozen=True)
class StoreCopies:
    """The chunks of a store, as copies. Can be pickled: processes of one machine share them.

    Attributes:
        facts: of the store; read by way of the copies.
        names: targets that are read.
    """

    copies: Copies
    facts: StoreFacts
    names: tuple[str, ...]

    @staticmethod
    def of(cache: LocalCache, facts: StoreFacts, names: tuple[str, ...]) -> StoreCopies:
        copies = cache.copies(facts.corpus_id, facts.fingerprint)
        return StoreCopies(copies, replace(facts, store=facts.store.copied(copies)), names)

    def keep(self, shard: int, *, verify: bool = False) -> None:
        """Fetch what a shard has of the store and what has no copy yet; see `ShardCopies.keep`."""
        unread = {target.name for target in self.facts.spec.targets} - set(self.names)
        for path, output in self._receipts.outputs(shard).items():
            if path.partition("/c/")[0] not in unread:
                chunk = self.facts.store / output.path
                chunk.keep_copy(self.copies, sha256=output.sha256, size=output.bytes, verify=verify)

    @cached_property
    def _receipts(self) -> StoreReceipts:
        return replace(store_receipts(self.facts.store, self.facts.generation), copies=self.copies)
