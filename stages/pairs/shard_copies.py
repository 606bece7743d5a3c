"""Owns the copies of shards on this machine's disk: whole shards with what all stores have of them, those that come next first."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ...pipeline.storage import Copies
from ...storage_schemas.errors import TeachonceError
from ..corpora.generations import SHARD_FILES
from ..corpora.shards import ShardSet
from .local_copies import LocalCache, SourceCopies, StoreCopies
from .order import Order
from .receipts import keep_receipt
from .sources import TargetSource
from .store import StoreFacts


@dataclass(frozen=True)
class ShardCopies:
    """The files that make up shards, as copies. Can be pickled: processes of one machine share them.

    Attributes:
        shards, sources: read by way of the copies.
        first: copies of the first store.
        beside: of what sources read.
        with_images: whether tars are read.
    """

    copies: Copies
    shards: ShardSet
    sources: tuple[TargetSource, ...]
    first: StoreCopies
    beside: tuple[SourceCopies, ...]
    with_images: bool = True

    @staticmethod
    def of(
        cache: LocalCache,
        shards: ShardSet,
        facts: StoreFacts,
        names: tuple[str, ...],
        sources: Sequence[TargetSource] = (),
        *,
        with_images: bool = True,
    ) -> ShardCopies:
        """
        Args:
            names: targets that are read, of the store and of all sources.
        """
        first = StoreCopies.of(cache, facts, names)
        pairs = [source.kept_in(cache, tuple(name for name in names if name in source.layouts)) for source in sources]
        return ShardCopies(
            first.copies,
            ShardSet(shards.location.copied(first.copies), shards.corpus_id),
            tuple(source for source, _ in pairs),
            first,
            tuple(copies for _, copies in pairs if copies is not None),
            with_images,
        )

    @property
    def facts(self) -> StoreFacts:
        """Of the first store, read by way of its copies."""
        return self.first.facts

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
        for source in (self.first, *self.beside):
            source.keep(shard, verify=verify)


class ComingShards:
    """A thread that keeps the shards at hand and those that come next, in the order in which epochs read them.

    Args:
        order: of some epoch.
    """

    def __init__(self, copies: ShardCopies, order: Order) -> None:
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
