"""Owns shards that are held open for reading: the last few, in whichever process reads."""

from __future__ import annotations

import threading
from collections import OrderedDict

from .shards import ShardReader, ShardSet

#: Tasks of two shards may take turns, where one ends and the next begins.
_OPEN = 3


class OpenShards:
    """Readers of a corpus's shards. Can be pickled: each process opens its own. Used by several threads at once.

    Args:
        in_order: as in `ShardReader`.
    """

    def __init__(self, shards: ShardSet, in_order: bool = False) -> None:
        self.shards, self._in_order = shards, in_order
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenShards], tuple[ShardSet, bool]]:
        return OpenShards, (self.shards, self._in_order)

    def reader(self, shard: int) -> ShardReader:
        """A shard, open. One that is forgotten closes when no thread reads in it any more.

        Raises:
            DamagedError: as in `ShardReader`.
        """
        with self._opening:
            if shard not in self._readers:
                self._readers[shard] = self.shards.reader(shard, in_order=self._in_order)
            self._readers.move_to_end(shard)
            while len(self._readers) > _OPEN:
                self._readers.popitem(last=False)
            return self._readers[shard]

    def close(self) -> None:
        """Forget all of them; they are opened again where they are needed."""
        with self._opening:
            self._readers.clear()
