"""Owns a Zarr store in a local folder whose descriptions are durable at once: a crash of the machine must not leave an empty one.

Chunks are made durable by what vouches for them (`Place.sync`). What describes arrays and groups is vouched for by nothing, and
without it a store is lost; Zarr's own store leaves when it reaches the disk to the system.
"""

from __future__ import annotations

import asyncio

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from .durable import created

_DESCRIPTION = "zarr.json"


class DescribedStore(LocalStore):
    """Zarr's local store."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key whole."""
        if self.read_only or not _describes(key):
            await super().set(key, value)
        else:
            await asyncio.to_thread(self._write, key, value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """The same, unless it is there. One process at a time writes descriptions."""
        if not _describes(key):
            await super().set_if_not_exists(key, value)
        elif not await self.exists(key):
            await self.set(key, value)

    def _write(self, key: str, data: bytes) -> None:
        with created(str(self.root / key)) as file:
            file.write(data)


def _describes(key: str) -> bool:
    return key.rpartition("/")[2] == _DESCRIPTION
