"""Owns showing a target store as of one generation: arrays in its shapes, from where it has them, and none of later ones.

So whoever reads a store knows nothing of generations: metadata and chunks come under the names that a store has which was made at once.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from .generations import Generations, attributes_of
from .kept_views import BY_SHARD

_METADATA = "zarr.json"


class GenerationStore(WrapperStore[Store]):
    """A Zarr store for reading.

    Args:
        store: the whole store.
        generations: of it.
        name: of the one to show.
    """

    def __init__(self, store: Store, generations: Generations, name: str) -> None:
        super().__init__(store)
        self._generations, self._name = generations, name
        self._description = generations.described[name]
        chain = generations.chain(name)
        growths = [one.growth for one in chain if one.growth is not None]
        self._places = dict(growths[-1].arrays) if growths else {}
        self._overlays = [growth.overlay for growth in reversed(growths) if growth.overlay]
        own = {path for growth in growths for path in growth.made}
        others = {path for one in generations.described.values() if one.growth is not None for path in one.growth.made}
        self._hidden = others - own
        spec = self._description.spec
        self._sizes = {"sample": spec.num_rows, "view": spec.num_views, BY_SHARD: spec.num_shards}

    def _with_store(self, store: Store) -> GenerationStore:
        return GenerationStore(store, self._generations, self._name)

    def _place(self, key: str) -> str | None:
        """The key under which a key's content lies; None where this generation has none."""
        array, _, rest = key.partition("/")
        # Names of arrays hold no slash; keys with one that begin otherwise are those of groups.
        if array in self._places:
            return f"{self._places[array]}/{rest}".rstrip("/")
        return None if array in self._hidden else key

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of one file as of the generation, if there is one."""
        place = self._place(key)
        if place is None:
            return None
        if key == _METADATA or key.endswith(f"/{_METADATA}"):
            data = await super().get(place, prototype)
            return None if data is None else prototype.buffer.from_bytes(self._metadata(key, data.to_bytes()))
        for overlay in self._overlays:
            data = await super().get(f"{overlay}/{place}", prototype, byte_range)
            if data is not None:
                return data
        return await super().get(place, prototype, byte_range)

    def _metadata(self, key: str, data: bytes) -> bytes:
        try:
            fields: Any = json.loads(data)
            if key == _METADATA:
                fields["attributes"] = attributes_of(fields.get("attributes") or {}, self._description)
                return _json(fields)
            shape, names = fields.get("shape"), fields.get("dimension_names")
            if isinstance(shape, list) and isinstance(names, list):
                sizes = zip(shape, names, strict=False)
                fields["shape"] = [min(size, self._sizes.get(name, size)) for size, name in sizes]
            return _json(fields)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return data  # whoever reads it says what is wrong

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        """Whether the generation has such a file."""
        place = self._place(key)
        return place is not None and await super().exists(place)

    async def getsize(self, key: str) -> int:
        """Size in bytes of one file."""
        return await self._store.getsize(self._place(key) or key)

    async def getsize_prefix(self, prefix: str) -> int:
        """Size in bytes of all files under a prefix; those of later generations in the same array are among them."""
        return await self._store.getsize_prefix(self._place(prefix) or prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override,misc]
        """Names below a prefix; at the root those of arrays that lie elsewhere are there too."""
        seen = set()
        async for name in self._store.list_dir(self._place(prefix.rstrip("/")) or prefix):
            if prefix.strip("/") or name not in self._hidden:
                seen.add(name)
                yield name
        if not prefix.strip("/"):
            for name in self._places:
                if name not in seen:
                    yield name


def _json(fields: Any) -> bytes:
    return json.dumps(fields).encode()
