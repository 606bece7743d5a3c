"""Owns the target store: the Zarr arrays that hold the teacher's outputs, one row a sample, one block a shard."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import zarr
import zarr.errors
from numpy.typing import ArrayLike, NDArray
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from .block_part import WHOLE, BlockPart
from .encodings.encoding import EncodedArray, Encoding, NoRoomError, Target
from .encodings.floats import FloatEncoding
from .encodings.table import array_name
from .errors import DamagedError, InputError, MismatchError
from .formats import TARGET_STORE
from .kept_views import BY_SHARD, SIZES, ViewArray, from_arrays, no_sizes, to_arrays, view_arrays
from .row_array import RowArray, codecs_of
from .samples import KEY_LENGTH
from .store_description import StoreDescription, StoreSpec, TargetSpec, bytes_of_row, views_at_once
from .view_params import Views, no_views
from .zarr_damage import readable

if TYPE_CHECKING:
    from .encodings import Floats


@dataclass(frozen=True, kw_only=True)
class TargetBlock:
    """One shard's rows; the only contract between `cache` and `distill`.

    Attributes:
        keys: N sample keys.
        valid: bool (sample,).
        view_params: VIEW (sample, view), see `view_params`; `NO_VIEW` where not valid.
        targets: by name, fp32 (sample, view, …); NaN where not valid.
        sizes: heights and widths of the images (sample, 2), where parameters of views are derived; `NO_SIZE` where not valid.
    """

    keys: Sequence[str]
    valid: NDArray[np.bool_]
    view_params: Views
    targets: Mapping[str, Floats]
    sizes: NDArray[np.int32] | None = None

    @property
    def digest(self) -> str:
        """blake2b-128 over the block's content, independent of codecs and encodings."""
        return _digest(self.keys, [self.valid, self.view_params, *(self.targets[n] for n in sorted(self.targets))])


def open_root(store: str | Store, *, mode: Literal["r", "a"] = "r", where: object = None) -> zarr.Group:
    """The store's root group; `mode='a'` makes it (and the group that hides the ledger from Zarr) if need be.

    `where` names the store in errors; None takes what Zarr calls it.

    Raises:
        DamagedError: its zarr.json cannot be read.
        MismatchError: `mode='a'` on a Zarr group that teachonce did not make.
    """
    where = store if where is None else where
    with readable(
        "the store's zarr.json cannot be read",
        code="store-root-malformed",
        where=where,
        hint="restore zarr.json from a copy",
    ):
        root = zarr.open_group(store, mode=mode, zarr_format=3)
    if mode == "r":
        return root
    if "teachonce" not in root.attrs:
        # A killed run may have made the root and its ledger, and no attribute yet.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            foreign = sorted({*root.attrs.asdict(), *root.array_keys(), *root.group_keys()} - {"ledger"})
        if foreign:
            raise MismatchError(
                "a Zarr group that is not teachonce's",
                code="store-other-group",
                where=where,
                expected="a new store, or one of teachonce's",
                found=f"'{foreign[0]}' in it",
                hint="give another --out",
            )
        # Zarr's listing warns of folders that are no nodes; the ledger of receipts is one, so make it a group.
        root.require_group("ledger")
        root.attrs["teachonce"] = {"kind": TARGET_STORE.kind, "schema_version": TARGET_STORE.oldest}
    return root


def check_version(root: zarr.Group, where: object) -> None:
    """Refuse what is no target store, or one of a version that cannot be read.

    Raises:
        MismatchError: another version, or another kind of Zarr group.
    """
    hint = "choose another store, or write a new one with `teachonce cache`"
    found: Any = root.attrs.asdict().get("teachonce")
    if not isinstance(found, dict) or found.get("kind") != TARGET_STORE.kind:
        raise MismatchError(
            "not a target store",
            code="store-other-kind",
            where=where,
            expected=f"the attribute `teachonce` of kind '{TARGET_STORE.kind}'",
            found=found,
            hint=hint,
        )
    TARGET_STORE.check(found.get("schema_version"), where=f"{where}/zarr.json", hint=hint)


def _row_arrays(spec: StoreSpec) -> Iterator[RowArray]:
    """Every row array of a store."""
    rows, shard = spec.num_rows, spec.shard_rows
    yield RowArray(
        name="keys",
        shape=(rows, KEY_LENGTH),
        chunks=(shard, KEY_LENGTH),
        dtype="uint8",
        axes=("sample", "key_character"),
        fill=0,
        attributes={"meaning": "sample key in ASCII"},
    )
    yield RowArray(name="valid", shape=(rows,), chunks=(shard,), dtype="bool", axes=("sample",), fill=False)

    for kept in view_arrays(spec):
        first = (spec.num_shards, 1) if kept.axes[0] == BY_SHARD else (rows, shard)
        by_view = [(spec.num_views, spec.views_together)] if "view" in kept.axes else []
        shape, chunks = zip(first, *by_view, (kept.width, kept.width), strict=True)
        yield RowArray(
            name=kept.name,
            shape=shape,
            chunks=chunks,
            dtype=kept.dtype,
            axes=kept.axes,
            fill=kept.fill,
            codec=kept.codec,
            attributes=None if isinstance(kept.columns, int) else {"columns": list(kept.columns)},
        )
    dimensions: dict[str, int] = {}
    for target in spec.targets:
        for array in spec.encoding_of(target).arrays(target):
            yield RowArray(
                name=array.name,
                shape=(rows, spec.num_views, *array.shape),
                chunks=(shard, spec.views_together, *array.shape) if array.beside else _chunks(spec, target),
                dtype=array.dtype,
                axes=("sample", "view", *_dimension_names(array, dimensions)),
                fill=array.fill,
                codec=array.codec,
                attributes={"meaning": array.meaning} if array.meaning else None,
                transposed=array.transposed,
            )


def _dimension_names(array: EncodedArray, sizes: dict[str, int]) -> list[str]:
    """Names of an array's own dimensions: its axes, as `AXIS_ARRAY` where an array before has another size there.

    Zarr does not mind, but xarray opens a group only if a dimension has one size in all its arrays.

    Args:
        sizes: of the axes of the arrays before; this one's are added.
    """
    return [
        axis if sizes.setdefault(axis, size) == size else f"{axis}_{array.name}"
        for axis, size in zip(array.axes, array.shape, strict=True)
    ]


def create_arrays(root: zarr.Group, description: StoreDescription) -> None:
    """Create every row array and write the tables of encodings, then the description, whose presence means that they are all there."""
    for array in _row_arrays(description.spec):
        array.create(root)
    for target in description.spec.targets:
        write_table(root, target)
    root.attrs["teachonce"] = {"kind": TARGET_STORE.kind, "schema_version": description.spec.version}
    description.write(root)


def create_named_arrays(group: zarr.Group, spec: StoreSpec, names: Sequence[str]) -> None:
    """Create some of a store's row arrays in a group."""
    for array in _row_arrays(spec):
        if array.name in names:
            array.create(group)


def array_names(spec: StoreSpec, targets: Sequence[str] | None = None) -> list[str]:
    """Names of the arrays that hold some targets; None for all arrays of rows."""
    if targets is None:
        return [array.name for array in _row_arrays(spec)]
    return [array.name for name in targets for array in spec.encoding_of(spec.target(name)).arrays(spec.target(name))]


def table_names(spec: StoreSpec, targets: Sequence[str]) -> list[str]:
    """Names of the arrays that the encodings of some targets were fitted to."""
    tables = ((name, spec.encoding_of(spec.target(name)).table) for name in targets)
    return [array_name(name, part) for name, table in tables if table is not None for part in sorted(table.arrays)]


def write_table(root: zarr.Group, target: TargetSpec) -> None:
    """Write what a target's encoding was fitted to, where there is such a thing: one chunk an array."""
    table = None if target.encoding is None else target.encoding.table
    for part, values in {} if table is None else table.arrays.items():
        array = root.create_array(
            array_name(target.name, part),
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            dimension_names=[f"{array_name(target.name, part)}_{axis}" for axis in range(values.ndim)],
            compressors=codecs_of("small"),
            overwrite=True,
        )
        array[...] = values


def stored_bytes(encoding: Encoding, target: Target, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Bytes on disk of some rows of a target, all codecs included, as chunks of their own.

    Args:
        arrays: what `encoding.encode` gave of these rows, (row, view, …) by name.
    """
    root = zarr.create_group(MemoryStore())
    total = 0
    for array in encoding.arrays(target):
        values = arrays[array.name]
        row_array = RowArray(
            name=array.name,
            shape=values.shape,
            chunks=values.shape,
            dtype=array.dtype,
            axes=("sample", "view", *array.axes),
            fill=array.fill,
            codec=array.codec,
            transposed=array.transposed,
        )
        stored = row_array.create(root)
        stored[...] = values
        total += stored.nbytes_stored()
    return total


def all_arrays(root: zarr.Group, where: object) -> list[tuple[str, Any]]:
    """Every array of a store, by name. Anything else is skipped.

    Raises:
        DamagedError: the metadata of one cannot be read.
    """
    hint = "restore the zarr.json of each array from a copy"
    with (
        readable("the metadata of an array cannot be read", code="store-array-malformed", where=where, hint=hint),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        return list(root.arrays())


def check_arrays(root: zarr.Group, spec: StoreSpec, where: object) -> None:
    """Refuse a store whose arrays are not those of its description. Reads their metadata only.

    Raises:
        DamagedError: an array is missing, or has another shape, other chunks or another type.
    """
    for array in _row_arrays(spec):
        file, hint = f"{where}/{array.name}/zarr.json", "restore it from a copy"
        with readable("an array of the store cannot be opened", code="store-array-malformed", where=file, hint=hint):
            found: Any = root[array.name]
            kind = f"shape {found.shape}, chunks {found.chunks}, {found.dtype}"
        expected = f"shape {array.shape}, chunks {array.chunks}, {np.dtype(array.dtype)}"
        if kind != expected:
            raise DamagedError(
                "an array of the store is not as its description has it",
                code="store-array-malformed",
                where=file,
                expected=expected,
                found=kind,
                hint=hint,
            )


def chunk_paths(spec: StoreSpec, shard: int) -> list[str]:
    """The files that hold one shard's rows, relative to the store: what a receipt of the shard names."""
    rows = spec.rows(shard)
    rows_of_shard = rows.start, rows.stop
    return [
        path
        for array in _row_arrays(spec)
        for path in _paths(
            array.name, array.shape, array.chunks, *((shard, shard + 1) if array.axes[0] == BY_SHARD else rows_of_shard)
        )
    ]


def _paths(name: str, shape: Sequence[int], chunks: Sequence[int], start: int, stop: int) -> list[str]:
    """The files of an array's chunks that hold rows from `start` to `stop`, the first one's being the first of its chunk."""
    grid = [-(-s // c) for s, c in zip(shape, chunks, strict=True)][1:]
    rows = range(start // chunks[0], -(-stop // chunks[0]))
    return [f"{name}/c/{row}" + "".join(f"/{i}" for i in index) for row in rows for index in np.ndindex(*grid)]


def _chunks(spec: StoreSpec, target: TargetSpec) -> tuple[int, ...]:
    """Chunks of a target's own array; those that it does not name hold the rows of a shard, and views up to `CHUNK_BYTES`."""
    if target.chunk is not None:
        return target.chunk
    encoding = spec.encoding_of(target)
    views = views_at_once(bytes_of_row(encoding, target), spec.shard_size, spec.views_together)
    return (spec.chunk_rows(target), views, *encoding.arrays(target)[0].shape)


def write_block(root: zarr.Group, spec: StoreSpec, shard: int, block: TargetBlock) -> list[str]:
    """Write one shard's rows. Returns the paths of the chunk files, relative to the store."""
    writer = BlockWriter(root, spec, shard, block.keys)
    for offset in np.flatnonzero(block.valid).tolist():
        targets = {name: values[offset] for name, values in block.targets.items()}
        writer.put(offset, block.view_params[offset], targets, None if block.sizes is None else block.sizes[offset])
        writer.settle(offset + 1)
    return writer.finish()[0]


class BlockWriter:
    """Writes one shard's rows: small arrays at the end, large targets chunk by chunk as their rows are settled.

    Held at a time: the targets whose chunks hold a whole shard, and of every other one the rows of a chunk and of what was put
    and not settled.

    Args:
        arrays: the store's.
        keys: of all rows of the shard, in their order.
        part: what of the block is written.
        elsewhere: arrays whose files somebody else writes.

    Attributes:
        shard: its number.
        nonfinite: for each target that had some, the number of rows with NaN or infinity.
    """

    def __init__(
        self,
        arrays: Arrays,
        spec: StoreSpec,
        shard: int,
        keys: Sequence[str],
        part: BlockPart = WHOLE,
        *,
        elsewhere: Collection[str] = (),
    ) -> None:
        self._arrays, self._spec, self.shard, self._keys, self._part = arrays, spec, shard, keys, part
        self._valid = np.zeros(len(keys), np.bool_)
        self._params = no_views(len(keys), self.num_views)
        self._sizes = no_sizes(len(keys))
        targets = map(spec.target, part.names_of(spec))
        self._parts: dict[str, _Whole | _Streamed] = {
            target.name: (_Streamed if spec.is_streamed(target) else _Whole)(self, target) for target in targets
        }
        self._elsewhere = elsewhere
        self.nonfinite: dict[str, int] = {}

    @property
    def num_rows(self) -> int:
        return len(self._keys)

    @property
    def num_views(self) -> int:
        """Of those that are written."""
        return self._spec.num_views - self._part.first_view

    def put(self, offset: int, params_V: Views, targets: Mapping[str, Floats], size: ArrayLike | None = None) -> None:
        """A usable row: its place in the shard, VIEW (view,), and each target, fp32 (view, …).

        Args:
            size: height and width of its image; needed where the store derives parameters.
        """
        self._valid[offset] = True
        self._params[offset] = params_V
        if size is not None:
            self._sizes[offset] = size
        for name, part in self._parts.items():
            if not np.isfinite(targets[name]).all():
                self.nonfinite[name] = self.nonfinite.get(name, 0) + 1
            part.put(offset, targets[name])

    def put_rows(
        self,
        offset: int,
        valid_N: NDArray[np.bool_],
        params_NV: Views,
        targets: Mapping[str, Floats],
        stored: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
        sizes_N2: NDArray[np.int32] | None = None,
    ) -> None:
        """Rows that follow one another, in place of `put`: all rows of a shard, in portions of whole chunks of every target.

        Args:
            offset: of the first.
            valid_N: bool (row,), which of them are usable.
            params_NV: VIEW (row, view).
            targets: fp32 (row, view, …) by name; NaN in rows that are not usable. They are kept, and must not change. Those that are
                stored already may be missing, if `finish` is told the digest.
            stored: of targets that are encoded already: their arrays (row, view, …) by name, which are written as they are.
            sizes_N2: heights and widths of the images; needed where the store derives parameters.
        """
        rows = slice(offset, offset + len(valid_N))
        self._valid[rows] = valid_N
        self._params[rows][valid_N] = params_NV[valid_N]
        if sizes_N2 is not None:
            self._sizes[rows][valid_N] = sizes_N2[valid_N]
        for name, part in self._parts.items():
            values = targets.get(name)
            if values is not None:
                finite_N = np.isfinite(values).reshape(len(values), -1).all(axis=1)
                if bad := int((valid_N & ~finite_N).sum()):
                    self.nonfinite[name] = self.nonfinite.get(name, 0) + bad
            if stored is not None and name in stored:
                part.put_stored(offset, stored[name], values)
            elif values is not None:
                part.put_rows(offset, values)

    def settle(self, offset: int) -> None:
        """No row below this one will be put any more."""
        for part in self._parts.values():
            part.settle(offset)

    def finish(self, digest: str | None = None) -> tuple[list[str], str]:
        """Write what is left. Returns the paths of all chunk files, relative to the store, and the block's digest.

        The digest is blake2b-128 over what the block holds, independent of codecs and encodings (see `TargetBlock.digest`; a
        target that was streamed enters with its own digest).

        Args:
            digest: where it is known; None computes it.
        """
        self.settle(self.num_rows)
        if digest is not None:
            return self._write_rest(), digest
        with ThreadPoolExecutor(1) as beside:  # neither the digest nor what writes needs the interpreter for long
            found = beside.submit(self._digest)
            return self._write_rest(), found.result()

    def _digest(self) -> str:
        contents = [self._parts[name].content() for name in sorted(self._parts)]
        return _digest(self._keys, [self._valid, self._params, *contents])

    def _write_rest(self) -> list[str]:
        columns: dict[str, NDArray[Any]] = {}
        if self._part.rows:
            columns["keys"] = np.frombuffer("".join(self._keys).encode("ascii"), np.uint8).reshape(-1, KEY_LENGTH)
            columns["valid"] = self._valid
        if self._part.params:
            where = f"shard {self.shard}"
            first = self._part.first_view
            kept = to_arrays(self._spec, self._keys, self._valid, self._params, self._sizes, first, where)
            of_rows = {array.name for array in view_arrays(self._spec) if array.of_rows}
            columns |= {name: values for name, values in kept.items() if self._part.rows or name not in of_rows}
        written = [path for name, values in columns.items() for path in self.write(name, values, 0)]
        for part in self._parts.values():
            written += part.finish()
        return written

    def write(self, name: str, values: NDArray[Any], offset: int) -> list[str]:
        """Write whole chunks of an array, from a row of the shard on. Returns the paths of their files; none of what is written elsewhere."""
        if name in self._elsewhere:
            return []
        # A chunk that equals the fill value would otherwise not be written; its absence must never mean anything.
        # Set for this array: Zarr's own setting is global, and another thread's would end in the middle of ours.
        array: Any = self._arrays[name].with_config({"write_empty_chunks": True})
        starts = [0] * values.ndim
        names = array.metadata.dimension_names
        starts[0] = self.shard if names[0] == BY_SHARD else self._spec.rows(self.shard).start + offset
        if names[1:2] == ("view",):
            starts[1] = self._part.first_view
        values = _to_chunk_end(array, starts, values)
        region = [slice(start, start + size) for start, size in zip(starts, values.shape, strict=True)]
        array[tuple(region)] = values
        grid = zip(region, array.chunks, strict=True)
        chunks = [range(part.start // size, -(-part.stop // size)) for part, size in grid]
        return [f"{array.path}/c/" + "/".join(map(str, index)) for index in itertools.product(*chunks)]

    def encoded(self, target: TargetSpec, values: Floats, offset: int) -> dict[str, NDArray[Any]]:
        """The arrays that hold some rows of a target, by name, (row, view, …); values from a row of the shard on.

        Raises:
            InputError: a finite number that the encoding has no room for.
        """
        keys = self._keys[offset : offset + len(values)]
        try:
            return self._spec.encoding_of(target).encode(target, values, keys=keys, first_view=self._part.first_view)
        except NoRoomError as error:
            raise InputError(
                str(error),
                code="fp16-overflow",
                where=f"{target.name} in shard {self.shard}",
                expected=f"at most {error.expected:g}",
                found=f"{error.found:g}",
                hint="cache into a new store with --encoding fp32",
            ) from error


def _to_chunk_end(array: Any, starts: Sequence[int], values: NDArray[Any]) -> NDArray[Any]:
    """The values that are written from there on, and behind them the fill value up to the end of a chunk, or of the array.

    So chunks are written whole, and without a look at what may lie there.
    """
    sizes = zip(starts, values.shape, array.chunks, array.shape, strict=True)
    missing = [min(-(-(start + size) // chunk) * chunk, whole) - start - size for start, size, chunk, whole in sizes]
    if not any(missing):
        return values
    return np.pad(values, [(0, more) for more in missing], constant_values=array.fill_value)


class _Whole:
    """A target that is held until the shard is done."""

    def __init__(self, writer: BlockWriter, target: TargetSpec) -> None:
        self._writer, self._target = writer, target
        self._held: Floats | None = None
        self._stored: dict[str, list[NDArray[Any]]] = {}

    @property
    def _values(self) -> Floats:
        if self._held is None:
            shape = (self._writer.num_rows, self._writer.num_views, *self._target.shape)
            self._held = np.full(shape, np.nan, np.float32)
        return self._held

    def put(self, offset: int, values: Floats) -> None:
        self._values[offset] = values

    def put_rows(self, offset: int, values: Floats) -> None:
        if self._held is None and len(values) == self._writer.num_rows:
            self._held = values
        else:
            self._values[offset : offset + len(values)] = values

    def settle(self, offset: int) -> None:
        pass

    def put_stored(self, offset: int, arrays: Mapping[str, NDArray[Any]], values: Floats | None) -> None:
        for name, array in arrays.items():
            self._stored.setdefault(name, []).append(array)
        if values is not None:
            self.put_rows(offset, values)

    def finish(self) -> list[str]:
        if self._stored:
            arrays = {
                name: np.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in self._stored.items()
            }
        else:
            arrays = self._writer.encoded(self._target, self._values, 0)
        return [path for name, stored in arrays.items() for path in self._writer.write(name, stored, 0)]

    def content(self) -> NDArray[Any]:
        return self._values


class _Streamed:
    """A target that is written chunk by chunk; the small arrays beside it are written at the end."""

    def __init__(self, writer: BlockWriter, target: TargetSpec) -> None:
        self._writer, self._target, self._rows = writer, target, writer._spec.chunk_rows(target)
        self._waiting: dict[int, Floats] = {}
        self._done = 0
        self._hasher = hashlib.blake2b(digest_size=16)
        self._paths: list[str] = []
        self._beside: dict[str, list[NDArray[Any]]] = {
            array.name: [] for array in writer._spec.encoding_of(target).arrays(target) if array.beside
        }

    def put(self, offset: int, values: Floats) -> None:
        self._waiting[offset] = np.array(values, np.float32)  # a copy: the batch that it is part of may go

    def put_rows(self, offset: int, values: Floats) -> None:
        self._waiting.update(enumerate(values, offset))

    def put_stored(self, offset: int, arrays: Mapping[str, NDArray[Any]], values: Floats | None) -> None:
        if values is not None:
            self._hasher.update(_bytes_of(values))
        self._write(arrays, offset)
        self._done = offset + len(next(iter(arrays.values())))

    def _write(self, arrays: Mapping[str, NDArray[Any]], offset: int) -> None:
        for name, stored in arrays.items():
            if name in self._beside:
                self._beside[name].append(stored)
            else:
                self._paths += self._writer.write(name, stored, offset)

    def settle(self, offset: int) -> None:
        while self._done < offset:
            stop = min(self._done + self._rows, self._writer.num_rows)
            if stop > offset:
                return
            shape = (stop - self._done, self._writer.num_views, *self._target.shape)
            values = np.full(shape, np.nan, np.float32)
            for row in range(self._done, stop):
                if row in self._waiting:
                    values[row - self._done] = self._waiting.pop(row)
            self._hasher.update(_bytes_of(values))
            self._write(self._writer.encoded(self._target, values, self._done), self._done)
            self._done = stop

    def finish(self) -> list[str]:
        for name, parts in self._beside.items():
            self._paths += self._writer.write(name, np.concatenate(parts), 0)
        return self._paths

    def content(self) -> NDArray[Any]:
        return np.frombuffer(self._hasher.digest(), np.uint8)


def _digest(keys: Sequence[str], arrays: Iterable[NDArray[Any]]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update("\n".join(keys).encode())
    for array in arrays:
        hasher.update(_bytes_of(array))
    return hasher.hexdigest()


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in C order, without a copy where they lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Arrays(Protocol):
    """Arrays by their names: a store's root, or one that keeps them open."""

    def __getitem__(self, path: str) -> Any: ...


class OpenArrays:
    """The arrays of a store that is read for long: each is opened once, whose description lies in a file of its own."""

    def __init__(self, root: zarr.Group) -> None:
        self._root = root
        self._arrays: dict[str, Any] = {}

    def __getitem__(self, path: str) -> Any:
        if path not in self._arrays:
            self._arrays[path] = self._root[path]
        return self._arrays[path]


def read_keys(root: Arrays, spec: StoreSpec, shard: int) -> list[str]:
    """The keys of one shard's rows."""
    raw: Any = root["keys"][spec.rows(shard)]
    return [bytes(row).decode("ascii") for row in np.asarray(raw)]


def read_rows(
    root: Arrays, spec: StoreSpec, shard: int, view: int
) -> tuple[NDArray[np.bytes_], NDArray[np.bool_], Views]:
    """Which samples one shard's rows are: keys (sample,) as `S32`, valid (sample,), one view's view_params, VIEW (sample,).

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    keys, valid, params = read_views(root, spec, shard, (view,))
    return keys, valid, params[:, 0]


def read_target(root: Arrays, spec: StoreSpec, shard: int, name: str, view: int, part: slice = slice(None)) -> Floats:
    """One target of one shard and view: fp32 (sample, …); NaN rows where not valid.

    Args:
        part: which rows of the shard, in steps of 1.

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    rows = _rows(spec, shard, part)
    target = spec.target(name)
    encoding = spec.encoding_of(target)
    with readable(_DAMAGED, code="chunk-damaged", where=f"{name}, shard {shard}, view {view}", hint=_AGAIN):
        stored = {array.name: np.asarray(root[array.name][rows, view]) for array in encoding.arrays(target)}
    return encoding.decode(target, stored)


def read_views(
    root: Arrays, spec: StoreSpec, shard: int, views: Sequence[int]
) -> tuple[NDArray[np.bytes_], NDArray[np.bool_], Views]:
    """`read_rows` of several views: keys (sample,) as `S32`, valid (sample,), VIEW (sample, view).

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    keys_N, valid_N = read_marks(root, spec, shard)
    return keys_N, valid_N, read_params(root, spec, shard, views, (keys_N, valid_N))


def read_marks(root: Arrays, spec: StoreSpec, shard: int) -> tuple[NDArray[np.bytes_], NDArray[np.bool_]]:
    """`read_rows` without views: keys (sample,) as `S32`, valid (sample,).

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    rows = spec.rows(shard)
    with readable(_DAMAGED, code="chunk-damaged", where=f"keys or valid, shard {shard}", hint=_AGAIN):
        keys = np.ascontiguousarray(root["keys"][rows]).view(f"S{KEY_LENGTH}")[:, 0]
        return keys, np.asarray(root["valid"][rows])


def read_params(
    root: Arrays,
    spec: StoreSpec,
    shard: int,
    views: Sequence[int],
    marks: tuple[NDArray[np.bytes_], NDArray[np.bool_]],
) -> Views:
    """The parameters of several views of a shard, VIEW (sample, view), whether they are stored or derived.

    Args:
        marks: of the shard, as `read_marks` gives them.

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
        MismatchError: what is derived is not what the store was made with.
    """
    kept = view_arrays(spec)
    names = " or ".join(array.name for array in kept)
    with readable(_DAMAGED, code="chunk-damaged", where=f"{names}, shard {shard}", hint=_AGAIN):
        arrays = {array.name: _read_kept(root[array.name], array, spec.rows(shard), shard, views) for array in kept}
    return from_arrays(spec, *marks, arrays, views, f"shard {shard}")


def _read_kept(array: Any, kept: ViewArray, rows: slice, shard: int, views: Sequence[int]) -> NDArray[Any]:
    """What is kept of a shard's parameters in one array, of some views."""
    first = slice(shard, shard + 1) if kept.axes[0] == BY_SHARD else rows
    if "view" not in kept.axes:
        return np.asarray(array[first])
    start = min(views)
    return np.asarray(array[first, start : max(views) + 1])[:, [view - start for view in views]]


def read_sizes(root: Arrays, spec: StoreSpec, shard: int) -> NDArray[np.int32] | None:
    """Heights and widths of a shard's images (sample, 2), in a store that derives parameters; None in any other.

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    if spec.drawing is None:
        return None
    with readable(_DAMAGED, code="chunk-damaged", where=f"{SIZES}, shard {shard}", hint=_AGAIN):
        return np.asarray(root[SIZES][spec.rows(shard)])


def read_target_views(
    root: Arrays, spec: StoreSpec, shard: int, name: str, views: Sequence[int], part: slice = slice(None)
) -> Floats:
    """`read_target` of several views: fp32 (sample, view, …). A chunk of several views is read once.

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    return decode_views(spec, name, read_stored_views(root, spec, shard, name, views, part))


def read_stored_views(
    root: Arrays, spec: StoreSpec, shard: int, name: str, views: Sequence[int], part: slice = slice(None)
) -> dict[str, NDArray[Any]]:
    """The arrays that hold a target, as they are stored, of several views: (sample, view, …) by name.

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    rows, target, found = _rows(spec, shard, part), spec.target(name), {}
    with readable(_DAMAGED, code="chunk-damaged", where=f"{name}, shard {shard}", hint=_AGAIN):
        for array in spec.encoding_of(target).arrays(target):
            found[array.name] = _read_views(root[array.name], rows, views)
    return found


def _read_views(array: Any, rows: slice, views: Sequence[int]) -> NDArray[Any]:
    """Some views of an array, in their order; of each chunk the least that holds them, once."""
    first, end = min(views), max(views) + 1
    if list(views) == list(range(first, end)):
        return np.asarray(array[rows, first:end])
    found = np.empty((rows.stop - rows.start, len(views), *array.shape[2:]), array.dtype)
    per_chunk = array.chunks[1]
    for chunk in sorted({view // per_chunk for view in views}):
        places = [place for place, view in enumerate(views) if view // per_chunk == chunk]
        here = [views[place] for place in places]
        stored = np.asarray(array[rows, min(here) : max(here) + 1])
        for place, view in zip(places, here, strict=True):
            found[:, place] = stored[:, view - min(here)]
    return found


def decode_views(spec: StoreSpec, name: str, stored: Mapping[str, NDArray[Any]]) -> Floats:
    """fp32 (sample, view, …) of what `read_stored_views` gave."""
    target = spec.target(name)
    encoding = spec.encoding_of(target)
    if isinstance(encoding, FloatEncoding):
        return encoding.decode(target, stored)  # plain numbers know no views
    num_views = next(iter(stored.values())).shape[1]
    views = [encoding.decode(target, {array: s[:, view] for array, s in stored.items()}) for view in range(num_views)]
    return np.stack(views, axis=1)


def _rows(spec: StoreSpec, shard: int, part: slice) -> slice:
    """Some rows of a shard, among all rows."""
    all_rows = spec.rows(shard)
    first, stop, _ = part.indices(all_rows.stop - all_rows.start)
    return slice(all_rows.start + first, all_rows.start + stop)


_DAMAGED = "a chunk of the store is damaged"
_AGAIN = (
    "restore the store from a copy; or add .old to the name of the shard's receipt in ledger/cache/receipts and run the same "
    "`teachonce cache` command again"
)


def read_block(root: zarr.Group, spec: StoreSpec, shard: int) -> TargetBlock:
    """All of one shard's rows, decoded to fp32."""
    keys_N, valid_N, params_NV = read_views(root, spec, shard, range(spec.num_views))
    return TargetBlock(
        keys=[key.decode("ascii") for key in keys_N.tolist()],
        valid=valid_N,
        view_params=params_NV,
        sizes=read_sizes(root, spec, shard),
        targets={
            t.name: np.stack([read_target(root, spec, shard, t.name, v) for v in range(spec.num_views)], axis=1)
            for t in spec.targets
        },
    )
