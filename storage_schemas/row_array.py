"""Owns how an array of rows is made: its names, its chunks, and the codecs that these go through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from .encodings.encoding import Codec
from .fingerprint import Json

#: Bytes that share a table of frequencies. Smaller blocks have larger tables in all, larger ones mix what differs.
_DENSE_BLOCK = 1 << 15


@dataclass(frozen=True, kw_only=True)
class RowArray:
    """One array of a store, whose first axis is `sample`, or `BY_SHARD`."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    fill: Any
    codec: Codec = "small"
    attributes: dict[str, Json] | None = None
    transposed: bool = False

    def create(self, root: zarr.Group) -> Any:
        """Make it, in the place of one of this name. What is returned writes chunks of nothing but fill values too."""
        own_first = (2, 1, 0, *range(3, len(self.shape)))
        array: Any = root.create_array(
            self.name,
            shape=self.shape,
            chunks=self.chunks,
            dtype=self.dtype,
            dimension_names=self.axes,
            fill_value=self.fill,
            filters=[TransposeCodec(order=own_first)] if self.transposed else "auto",
            compressors=codecs_of(self.codec),
            attributes=self.attributes,
            overwrite=True,
        )
        return array.with_config({"write_empty_chunks": True})  # it is no part of what an array keeps


def codecs_of(codec: Codec) -> list[Any]:
    """Zarr's compressors, and a checksum behind them."""
    compressors: dict[Codec, list[Any]] = {
        "plain": [],
        "shuffled": [BloscCodec(cname="lz4", shuffle="bitshuffle")],
        "small": [ZstdCodec(level=1)],
        "dense": [BloscCodec(cname="zstd", clevel=9, shuffle="noshuffle", blocksize=_DENSE_BLOCK)],
        "dense-shuffled": [BloscCodec(cname="zstd", clevel=9, shuffle="shuffle", blocksize=_DENSE_BLOCK)],
    }
    return [*compressors[codec], Crc32cCodec()]
