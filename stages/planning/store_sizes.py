"""Owns what a target store takes: by real arrays of the whole store, and real chunks of a sample of rows.

Nothing here knows an encoding, a codec or a chunk: the arrays are made by `create_arrays`, and the chunks by `write_block`, in memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from zarr.storage import MemoryStore

from ...storage_schemas.kept_views import BY_SHARD
from ...storage_schemas.receipt import Output, Receipt
from ...storage_schemas.samples import shard_name
from ...storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec, largest_divisor
from ...storage_schemas.target_store import TargetBlock, create_arrays, open_root, write_block
from .figures import Basis, Figure

#: Rows of a block whose chunks are measured, at most; and bytes of its targets in fp32, at most.
MOST_ROWS, MOST_BYTES = 1024, 64 << 20


@dataclass(frozen=True, kw_only=True)
class ArraySize:
    """What one array takes.

    Attributes:
        rows: whose values it has.
        chunks: of the array: rows, views, ….
        codecs: what becomes of a chunk's bytes, by the names in `zarr.json`.
        objects: chunks.
        view_bytes: of a row's view, in the mean.
        read_bytes: of a row, for a reader of one view: of all views in its chunk.
        read_objects: chunks that such a reader opens in a whole epoch.
    """

    name: str
    rows: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    codecs: tuple[str, ...]
    objects: int
    bytes: Figure
    read_objects: int

    @property
    def row_bytes(self) -> float:
        return self.bytes.value / self.rows

    @property
    def read_bytes(self) -> float:
        return self.row_bytes * self.read_objects / self.objects


@dataclass(frozen=True, kw_only=True)
class StoreSizes:
    """What a store takes; without class vectors.

    Attributes:
        arrays: of rows.
        tables: what encodings were fitted to, which lies in the store once.
        metadata_bytes: of all zarr.json.
        receipt_bytes: of the receipts of all shards.
    """

    arrays: tuple[ArraySize, ...]
    tables: tuple[ArraySize, ...]
    metadata_objects: int
    metadata_bytes: int
    receipt_bytes: int
    num_shards: int

    @property
    def all_arrays(self) -> tuple[ArraySize, ...]:
        return self.arrays + self.tables

    @property
    def chunk_bytes(self) -> Figure:
        sizes = [array.bytes for array in self.all_arrays]
        return Figure.of(sum(size.value for size in sizes), *sizes)

    @property
    def chunk_objects(self) -> int:
        return sum(array.objects for array in self.all_arrays)


def fitting_rows(spec: StoreSpec) -> int:
    """Rows of a sample block: those of a shard, unless that is too much to hold."""
    row = sum(target.width for target in spec.targets) * spec.num_views * 4
    return max(1, min(spec.shard_rows, MOST_ROWS, MOST_BYTES // row))


def store_sizes(description: StoreDescription, block: TargetBlock, basis: Mapping[str, Basis]) -> StoreSizes:
    """Of a whole store.

    Args:
        description: of the store.
        block: rows of a sample. Those of a whole shard, or so many that their chunks compress as a shard's do.
        basis: where the values of targets come from, by the names of arrays; of other arrays they are measured.
    """
    spec, files = description.spec, dict[str, Any]()
    create_arrays(open_root(MemoryStore(files), mode="a"), description)
    root = open_root(MemoryStore(files))
    laid_out: dict[str, Any] = dict(root.arrays())
    few = min(len(block.keys), spec.shard_rows)
    sample = _sample_spec(spec, {name: array.chunks for name, array in laid_out.items()}, few)
    whole = _chunk_bytes(description, sample, _part(block, few))
    arrays, outputs = [], list[Output]()
    rows_of_shards = Counter(rows.stop - rows.start for rows in map(spec.rows, range(spec.num_shards)))
    needs_fit = few < spec.shard_rows or set(rows_of_shards) != {spec.shard_rows}
    fits = _Fit.of(description, spec, sample, block, few) if needs_fit else None
    tables = {name: array for name, array in laid_out.items() if name not in whole}
    for name, array in laid_out.items():
        if name in tables:
            continue
        per_shard = whole[name] if fits is None else fits.at(name, spec.shard_rows)
        size = sum(
            count
            * (
                per_shard
                if fits is None or rows == spec.shard_rows
                else fits.of_short(name, rows, -(-rows // array.chunks[0]) * array.chunks[0])
            )
            for rows, count in rows_of_shards.items()
        )
        by_shard = array.metadata.dimension_names[0] == BY_SHARD
        grid = tuple(-(-s // c) for s, c in zip(array.shape, array.chunks, strict=True))
        is_fixed = all(codec.is_fixed_size for codec in array.metadata.codecs)
        arrays.append(
            ArraySize(
                name=name,
                rows=spec.num_rows if by_shard else array.shape[0],
                shape=array.shape,
                chunks=array.chunks,
                dtype=str(array.dtype),
                codecs=_codec_names(array),
                objects=math.prod(grid),
                bytes=Figure(value=size, basis=Basis.COUNTED if is_fixed else basis.get(name, Basis.MEASURED)),
                read_objects=grid[0] * math.prod(grid[2:])
                if array.ndim > 1 and _is_per_view(array)
                else math.prod(grid),
            )
        )
        rows_of_chunks = range(1 if by_shard else -(-spec.shard_rows // array.chunks[0]))
        outputs += [
            Output(path=f"{name}/c/{row}" + "".join(f"/{i}" for i in index), bytes=int(per_shard), sha256="0" * 64)
            for row in rows_of_chunks
            for index in np.ndindex(*grid[1:])
        ]
    metadata = [len(data) for key, data in files.items() if key.endswith("zarr.json")]
    return StoreSizes(
        arrays=tuple(arrays),
        tables=tuple(_table_size(name, array, files) for name, array in tables.items()),
        metadata_objects=len(metadata),
        metadata_bytes=sum(metadata),
        receipt_bytes=spec.num_shards * len(_receipt(spec, outputs)),
        num_shards=spec.num_shards,
    )


def _table_size(name: str, array: Any, files: Mapping[str, Any]) -> ArraySize:
    """Of what an encoding was fitted to, which lies in the store once."""
    size = sum(len(data) for key, data in files.items() if key.startswith(f"{name}/c/"))
    return ArraySize(
        name=name,
        rows=array.shape[0],
        shape=array.shape,
        chunks=array.chunks,
        dtype=str(array.dtype),
        codecs=_codec_names(array),
        objects=1,
        bytes=Figure(value=size, basis=Basis.MEASURED),
        read_objects=1,
    )


def _codec_names(array: Any) -> tuple[str, ...]:
    return tuple(type(codec).__name__.removesuffix("Codec").lower() for codec in array.metadata.codecs)


def _is_per_view(array: Any) -> bool:
    return bool(array.metadata.dimension_names[1] == "view")


def _receipt(spec: StoreSpec, outputs: list[Output]) -> bytes:
    digest = "0" * 32
    return Receipt(
        key=shard_name(0),
        outputs=tuple(outputs),
        rows=spec.shard_rows,
        invalid_rows=(),
        digest=digest,
        fingerprint=digest,
    ).to_bytes()


def _sample_spec(spec: StoreSpec, chunks: Mapping[str, tuple[int, ...]], rows: int) -> StoreSpec:
    """The same store of so many rows in one shard, with as many views in a chunk."""

    def fitted(target: TargetSpec) -> TargetSpec:
        found = chunks.get(spec.encoding_of(target).arrays(target)[0].name)
        if found is None:
            return target
        return replace(target, chunk=(largest_divisor(rows, found[0]), *found[1:]))

    return replace(spec, num_samples=rows, shard_size=rows, parts=(), targets=tuple(map(fitted, spec.targets)))


def _part(block: TargetBlock, rows: int) -> TargetBlock:
    return TargetBlock(
        keys=block.keys[:rows],
        valid=block.valid[:rows],
        view_params=block.view_params[:rows],
        sizes=None if block.sizes is None else block.sizes[:rows],
        targets={name: values[:rows] for name, values in block.targets.items()},
    )


def _chunk_bytes(description: StoreDescription, spec: StoreSpec, *blocks: TargetBlock) -> dict[str, float]:
    """Bytes of each array's chunks of the last one of these blocks, a shard each, as they are written."""
    files = dict[str, Any]()
    create_arrays(open_root(MemoryStore(files), mode="a"), replace(description, spec=spec))
    root = open_root(MemoryStore(files), mode="a")
    sizes: dict[str, float] = {}
    for shard, block in enumerate(blocks):
        sizes = {}
        for path in write_block(root, spec, shard, block):
            name = path.partition("/c/")[0]
            sizes[name] = sizes.get(name, 0) + len(files[path])
    return sizes


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """Bytes of a shard's chunks by its rows: a straight line through those of two samples.

    Attributes:
        rows: of the two samples, the larger one first.
        sizes: of each array's chunks, of the two.
        last: those of a shard of fewer rows than the chunk has room for.
    """

    rows: tuple[int, int]
    sizes: tuple[dict[str, float], dict[str, float]]
    last: dict[str, float]

    @staticmethod
    def of(description: StoreDescription, spec: StoreSpec, sample: StoreSpec, block: TargetBlock, rows: int) -> _Fit:
        fewer = max(1, rows // 2)
        chunks = {
            spec.encoding_of(target).arrays(target)[0].name: target.chunk
            for target in sample.targets
            if target.chunk is not None
        }
        larger = _chunk_bytes(description, sample, _part(block, rows))
        smaller = _chunk_bytes(description, _sample_spec(spec, chunks, fewer), _part(block, fewer))
        two = replace(sample, num_samples=rows + fewer)
        last = _chunk_bytes(description, two, _part(block, rows), _part(block, fewer))
        return _Fit(rows=(rows, fewer), sizes=(larger, smaller), last=last)

    def at(self, name: str, rows: int) -> float:
        """Bytes of a whole shard of so many rows."""
        (many, few), (larger, smaller) = self.rows, (sizes[name] for sizes in self.sizes)
        if many == few:
            return larger * rows / many
        return larger + (larger - smaller) / (many - few) * (rows - many)

    def of_short(self, name: str, rows: int, room: int) -> float:
        """Bytes of a shard of fewer rows, whose chunks have room for more: those take nothing, or as much as any."""
        whole, alone = self.at(name, room), self.at(name, rows)
        larger, smaller = (sizes[name] for sizes in self.sizes)
        padding = (self.last[name] - smaller) / (larger - smaller) if larger != smaller else 0.0
        return alone + max(0.0, min(1.0, padding)) * (whole - alone)
