"""Owns the copies of a pair's shards on this machine's disk: whole shards, those that come next first."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property

from ...pipeline.storage import Copies, Location
from ...storage_schemas.errors import InputError, TeachonceError
from ...storage_schemas.fingerprint import digest_json
from ..corpora.generations import SHARD_FILES
from ..corpora.shards import ShardSet
from .order import Order
from .receipts import StoreReceipts, keep_receipt
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


@dataclass(frozen=True)
class LocalCopies:
    """The files that make up shards, as copies. Can be pickled: processes of one machine share them.

    Attributes:
        shards, facts: read by way of the copies.
        names: targets that are read.
        with_images: whether tars are read.
    """

    copies: Copies
    shards: ShardSet
    facts: StoreFacts
    names: tuple[str, ...]
    with_images: bool = True

    @staticmethod
    def of(
        cache: LocalCache, shards: ShardSet, facts: StoreFacts, names: tuple[str, ...], *, with_images: bool = True
    ) -> LocalCopies:
        copies = cache.copies(facts.corpus_id, facts.fingerprint)
        return LocalCopies(
            copies,
            ShardSet(shards.location.copied(copies), shards.corpus_id),
            replace(facts, store=facts.store.copied(copies)),
            names,
            with_images,
        )

    def keep(self, shard: int, *, verify: bool = False) -> None:
        """Fetch the files of a shard that have no copy yet.

        Args:
            verify: compare copies that are there with their receipts too, once in a process.

        Raises:
            DamagedError: a file is not the one that its receipt vouches for.
        """
        keep_receipt(self.shards.ledger_of(shard), shard, self.copies)
        for output in self.shards.receipt(shard).outputs:
            if output.path.endswith(SHARD_FILES[0]) and not self.with_images:
                continue
            file = self.shards.file(shard, output)
            file.keep_copy(self.copies, sha256=output.sha256, size=output.bytes, verify=verify)
        unread = {target.name for target in self.facts.spec.targets} - set(self.names)
        for path, output in self._receipts.outputs(shard).items():
            if path.partition("/c/")[0] not in unread:
                chunk = self.facts.store / output.path
                chunk.keep_copy(self.copies, sha256=output.sha256, size=output.bytes, verify=verify)

    @cached_property
    def _receipts(self) -> StoreReceipts:
        return replace(store_receipts(self.facts.store, self.facts.generation), copies=self.copies)


class ComingShards:
    """A thread that keeps the shards at hand and those that come next, in the order in which epochs read them.

    Args:
        order: of some epoch.
    """

    def __init__(self, copies: LocalCopies, order: Order) -> None:
        self._copies, self._order = copies, order
        self._moved = threading.Condition()
        self._at: tuple[Hashable, Order, int] | None = None
        self._thread: threading.Thread | None = None

    def go_to(self, epoch: int, sample: int) -> None:
        """The trainer stands there."""
        if self._order.epoch != epoch:
            self._order = self._order.at(epoch)
        place = self._order.place(sample)
        if self._at is not None and self._at[0] == place:
            return
        with self._moved:
            self._at = place, self._order, sample
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="coming shards", daemon=True)
                self._thread.start()
            self._moved.notify_all()

    def stop(self) -> None:
        """End, after the shard at hand."""
        with self._moved:
            self._at, thread, self._thread = None, self._thread, None
            self._moved.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        kept: Hashable = None
        while True:
            with self._moved:
                while self._at is not None and self._at[0] == kept:
                    self._moved.wait()
                at = self._at
            if at is None:
                return
            kept, order, sample = at
            for shard in order.at(order.epoch).coming(sample):
                if self._at is None:
                    return
                try:
                    self._copies.keep(shard, verify=True)
                except (TeachonceError, OSError):
                    break  # who reads the shard meets it too, and says so
