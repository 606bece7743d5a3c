"""Owns a Zarr store over any place: for places that bring none of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

if TYPE_CHECKING:
    from .place import Place


class PlaceStore(Store):
    """Keys of a Zarr hierarchy as names below `folder` in a place. Each is written whole."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, place: Place, folder: str, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._place, self._folder = place, folder

    def with_read_only(self, read_only: bool = False) -> PlaceStore:
        """The same store for reading, or for writing too."""
        return PlaceStore(self._place, self._folder, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlaceStore) and (self._place, self._folder, self.read_only) == (
            other._place,
            other._folder,
            other.read_only,
        )

    def __hash__(self) -> int:
        return hash((self._folder, self.read_only))

    def __str__(self) -> str:
        return self._place.spell(self._folder)

    def __repr__(self) -> str:
        return f"PlaceStore({str(self)!r})"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, or a part of them; None where there is none."""
        data = await asyncio.to_thread(self._get, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    def _get(self, key: str, wanted: ByteRequest | None) -> bytes | None:
        name = self._name(key)
        try:
            if isinstance(wanted, RangeByteRequest):
                return self._place.read_range(name, wanted.start, wanted.end - wanted.start)
            data = self._place.read(name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        if isinstance(wanted, OffsetByteRequest):
            return data[wanted.offset :]
        if isinstance(wanted, SuffixByteRequest):
            return data[-wanted.suffix :] if wanted.suffix else b""
        return data

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """`get` of each."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether a key has a value."""
        found = await asyncio.to_thread(self._place.stat, self._name(key))
        return found is not None and not found.is_folder

    async def getsize(self, key: str) -> int:
        """Bytes of a key's value.

        Raises:
            FileNotFoundError: it has none.
        """
        found = await asyncio.to_thread(self._place.stat, self._name(key))
        if found is None or found.is_folder:
            raise FileNotFoundError(key)
        return found.size

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below a key. (By default those of `logits_max` count as `logits` too.)"""

        def total() -> int:
            found = (self._place.stat(self._name(f"{folder}/{name}" if folder else name)) for name in names)
            return sum(stat.size for stat in found if stat is not None)

        folder = prefix.rstrip("/")
        names = await asyncio.to_thread(self._entries, folder, deep=True)
        return await asyncio.to_thread(total)

    async def set(self, key: str, value: Buffer) -> None:
        """Give a key a value; `Place.sync` makes it durable."""
        self._check_writable()
        await asyncio.to_thread(self._place.write, self._name(key), value.to_bytes(), durable=False)

    async def delete(self, key: str) -> None:
        """Take a key's value away, if it has one."""
        self._check_writable()
        await asyncio.to_thread(self._place.remove, self._name(key))

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for name in await asyncio.to_thread(self._entries, "", deep=True):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that begin with a text."""
        folder = prefix.rpartition("/")[0]
        for name in await asyncio.to_thread(self._entries, folder, deep=True):
            key = f"{folder}/{name}" if folder else name
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a key, of values and of what has values below it."""
        for name in await asyncio.to_thread(self._entries, prefix.rstrip("/"), deep=False):
            yield name.rstrip("/")

    def _entries(self, key: str, *, deep: bool) -> tuple[str, ...]:
        return tuple(self._place.entries(self._name(key), deep=deep))

    def _name(self, key: str) -> str:
        return "/".join(filter(None, (self._folder.rstrip("/"), key)))
