"""Owns the check of a store's chunks as they are read: each against what its shard's receipt vouches for.

A receipt names every chunk file of its shard by path, with size and sha256, and carries the fingerprint of the run. So a
chunk of another shard, of another array, or of a store with other options is found as surely as a flipped bit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from .encodings.table import PREFIX
from .errors import DamagedError
from .receipt import Output

#: Arrays whose names begin so hold no rows; each kind carries a digest of its own.
NOT_OF_ROWS = ("class_", PREFIX)

#: Shards whose receipts are kept at hand: a window of shards, and some.
_SHARDS_AT_HAND = 64


class StoreReceipts(Protocol):
    """What is known of a store's chunks from its receipts."""

    def shard_of(self, array: str, chunk: int) -> int:
        """The shard whose rows a chunk of an array of rows holds, by the chunk's number along the first axis."""

    def outputs(self, shard: int) -> Mapping[str, Output]:
        """The files of one shard, by path within the store; raises where there is no receipt."""

    def damaged(self, path: str, shard: int, found: str) -> DamagedError:
        """The error for a chunk that is not as its receipt has it."""


class VerifiedStore(WrapperStore[Store]):
    """A Zarr store for reading, whose row chunks are compared with receipts.

    Arrays that are `NOT_OF_ROWS` are passed over.
    """

    def __init__(self, store: Store, receipts: StoreReceipts) -> None:
        super().__init__(store)
        self._receipts = receipts
        self._at_hand: OrderedDict[int, Mapping[str, Output]] = OrderedDict()

    def _with_store(self, store: Store) -> VerifiedStore:
        return VerifiedStore(store, self._receipts)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of one file, if there is one.

        Raises:
            DamagedError: a chunk is missing, or is not the one that the shard's receipt vouches for.
        """
        found_in = _chunk_of(key)
        if found_in is None:
            return await super().get(key, prototype, byte_range)
        shard = self._receipts.shard_of(*found_in)
        output = self._outputs(shard).get(key)
        data = await super().get(key, prototype)
        if output is None and data is None:
            return None  # of rows that are no sample's, behind a short shard
        if output is None or data is None:
            raise self._receipts.damaged(key, shard, "no such chunk" if data is None else "none in the receipt")
        content: Any = data.as_array_like()
        if (found := hashlib.sha256(content).hexdigest()) != output.sha256:
            raise self._receipts.damaged(key, shard, f"sha256 {found}")
        # Nothing of ours reads a part of a chunk.
        return data if byte_range is None else await super().get(key, prototype, byte_range)

    async def getsize(self, key: str) -> int:
        """Size in bytes of one file. (By default a wrapper reads the whole file for it.)"""
        return await self._store.getsize(key)

    async def getsize_prefix(self, prefix: str) -> int:
        """Size in bytes of all files under a prefix."""
        return await self._store.getsize_prefix(prefix)

    def _outputs(self, shard: int) -> Mapping[str, Output]:
        if shard not in self._at_hand:
            self._at_hand[shard] = self._receipts.outputs(shard)
            if len(self._at_hand) > _SHARDS_AT_HAND:
                self._at_hand.popitem(last=False)
        return self._at_hand[shard]


def _chunk_of(key: str) -> tuple[str, int] | None:
    """Array, and number along the first axis, of a chunk of rows: files ARRAY/c/NUMBER/…; None for every other file."""
    parts = key.split("/")
    if len(parts) < 3 or parts[1] != "c" or parts[0].startswith(NOT_OF_ROWS) or not parts[2].isdecimal():
        return None
    return parts[0], int(parts[2])
