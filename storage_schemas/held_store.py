"""Owns a Zarr store some of whose files are held in memory: what was read for another purpose is decoded without a second reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore


class HeldStore(WrapperStore[Store]):
    """A store for reading. Files that are held are those of `held`, whatever lies there now; several threads may hold theirs at once."""

    def __init__(self, store: Store, held: dict[str, bytes] | None = None) -> None:
        super().__init__(store)
        self._held: dict[str, bytes] = {} if held is None else held

    def _with_store(self, store: Store) -> HeldStore:
        return HeldStore(store, self._held)

    @contextmanager
    def holding(self, files: Mapping[str, bytes]) -> Iterator[None]:
        """Inside, these files have these bytes."""
        self._held.update(files)
        try:
            yield
        finally:
            for path in files:
                self._held.pop(path, None)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of one file, if there is one."""
        data = self._held.get(key)
        if data is None or byte_range is not None:
            return await super().get(key, prototype, byte_range)
        return prototype.buffer.from_bytes(data)
