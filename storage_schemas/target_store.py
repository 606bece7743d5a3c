"""Owns the target store: the Zarr arrays that hold what the teacher said, one row a sample, one block a shard."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from . import SCHEMA_VERSION
from .encodings import ENCODINGS, Encoding, Floats, decode_logits, encode_logits
from .errors import DamagedError, IncompleteError, MismatchError
from .fingerprint import Fingerprint, Json
from .samples import KEY_LENGTH
from .view_params import COLOR_FACTORS, Views, columns, from_columns, to_columns

#: Aim for chunks of a few MiB: object stores and file systems both like them.
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """A named target with named axes: `embedding` (sample, view, channel) or `logits` (sample, view, class)."""

    name: str
    axes: tuple[str, ...]
    width: int


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """The shape of a store's rows. Lies, with the fingerprint, in the root group's attribute `cache`.

    `colors` says that views have colours of their own, hence arrays for them.
    """

    num_samples: int
    shard_size: int
    num_views: int
    targets: tuple[TargetSpec, ...]
    encoding: Encoding
    colors: bool = False

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_size)

    def rows(self, shard: int) -> slice:
        start = shard * self.shard_size
        return slice(start, min(start + self.shard_size, self.num_samples))


@dataclass(frozen=True, kw_only=True)
class TargetBlock:
    """One shard's rows; the only contract between `cache` and `distill`.

    Attributes:
        keys: N sample keys.
        valid: bool (sample,).
        view_params: VIEW (sample, view), see `view_params`; `NO_VIEW` where not valid.
        targets: by name, fp32 (sample, view, width); NaN where not valid.
    """

    keys: Sequence[str]
    valid: NDArray[np.bool_]
    view_params: Views
    targets: Mapping[str, Floats]

    @property
    def digest(self) -> str:
        """blake2b-128 over what the block says, independent of codecs and encodings."""
        state = hashlib.blake2b(digest_size=16)
        state.update("\n".join(self.keys).encode())
        for array in (self.valid, self.view_params, *(self.targets[n] for n in sorted(self.targets))):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def open_root(store: Any, *, mode: str = "r") -> zarr.Group:
    """The store's root group; `mode='a'` makes it (and the group that hides the ledger from Zarr) if need be.

    Raises:
        MismatchError: `mode='a'` on a Zarr group that teachonce did not make.
    """
    if mode == "r":
        return zarr.open_group(store, mode="r", zarr_format=3)
    root = zarr.open_group(store, mode="a", zarr_format=3)
    if "teachonce" not in root.attrs:
        # A killed run may have made the root and its ledger, and no attribute yet.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            strangers = sorted({*root.attrs.asdict(), *root.array_keys(), *root.group_keys()} - {"ledger"})
        if strangers:
            raise MismatchError(
                "a Zarr group that is not teachonce's", where=store, expected="a new store, or one of teachonce's",
                found=f"'{strangers[0]}' in it", hint="give another --out",
            )  # fmt: skip
        # Zarr's listing warns of folders that are no nodes; the ledger of receipts is one, so make it a group.
        root.require_group("ledger")
        root.attrs["teachonce"] = {"kind": "target store", "schema_version": SCHEMA_VERSION}
    return root


def check_version(root: zarr.Group, where: object) -> None:
    """Refuse what is no target store of this schema version.

    Raises:
        MismatchError: another version, or another kind of Zarr group.
    """
    found = root.attrs.get("teachonce")
    expected = {"kind": "target store", "schema_version": SCHEMA_VERSION}
    if found != expected:
        raise MismatchError(
            "not a target store of this version of teachonce", where=where,
            expected=expected, found=found, hint="choose another store, or write a new one with `teachonce cache`",
        )  # fmt: skip


def create_arrays(root: zarr.Group, spec: StoreSpec, description: Json) -> None:
    """Create every row array, then the attribute `cache`, whose presence means that they are all there."""
    rows, shard = spec.num_samples, min(spec.shard_size, spec.num_samples)
    small = [ZstdCodec(level=1), Crc32cCodec()]
    plain = [Crc32cCodec()]
    blosc = [BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()]

    def create(name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, axes: tuple[str, ...],
               fill: Any, codecs: list[Any], attributes: dict[str, Json] | None = None) -> None:  # fmt: skip
        root.create_array(name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=axes, fill_value=fill,
                          compressors=codecs, attributes=attributes, overwrite=True)  # fmt: skip

    create("keys", (rows, KEY_LENGTH), (shard, KEY_LENGTH), "uint8", ("sample", "key_character"), 0, small,
           {"meaning": "sample key in ASCII"})  # fmt: skip
    create("valid", (rows,), (shard,), "bool", ("sample",), False, small)
    params = columns(spec.colors)
    create("view_params", (rows, spec.num_views, len(params)), (shard, spec.num_views, len(params)),
           "int32", ("sample", "view", "view_param"), -1, small, {"columns": list(params)})  # fmt: skip
    if spec.colors:
        factors = len(COLOR_FACTORS)
        create("view_colors", (rows, spec.num_views, factors), (shard, spec.num_views, factors), "float32",
               ("sample", "view", "view_color"), float("nan"), small, {"columns": list(COLOR_FACTORS)})  # fmt: skip
    for target in spec.targets:
        views = _views_per_chunk(spec, target)
        is_logits = target.name == "logits"
        create(target.name, (rows, spec.num_views, target.width), (shard, views, target.width),
               spec.encoding.dtype, target.axes, float("nan"), blosc if is_logits else plain)  # fmt: skip
        if is_logits and spec.encoding.separate_max:
            create("logits_max", (rows, spec.num_views), (shard, spec.num_views), "float32", ("sample", "view"),
                   float("nan"), plain, {"meaning": "add to `logits` (both in fp32) for the teacher's logits"})  # fmt: skip
    root.attrs["cache"] = {"spec": _spec_to_json(spec), **description}


def check_described(root: zarr.Group, planned: Fingerprint, where: object) -> None:
    """Refuse a store whose arrays were not created for the run in its ledger.

    Raises:
        DamagedError: the store's own description is lost.
        MismatchError: it is another run's; names the field.
    """
    description: Any = root.attrs.asdict().get("cache")
    if description is None:
        raise DamagedError(
            "the store has lost what describes its targets", where=f"{where}/zarr.json",
            expected="the attribute `cache`, as in its ledger", found="none",
            hint="restore zarr.json from a copy, or run `teachonce cache` with another --out",
        )  # fmt: skip
    planned.check(
        description["fingerprint"], what="the arrays of this store were made for another run than its ledger's",
        where=f"{where}/zarr.json", hint="restore the store from a copy, or run `teachonce cache` with another --out",
    )  # fmt: skip


def _views_per_chunk(spec: StoreSpec, target: TargetSpec) -> int:
    row_bytes = target.width * np.dtype(spec.encoding.dtype).itemsize
    return max(1, min(spec.num_views, CHUNK_BYTES // (spec.shard_size * row_bytes)))


def read_spec(root: zarr.Group, where: object) -> StoreSpec:
    """The spec of a store's rows.

    Raises:
        IncompleteError: nothing was cached here yet.
    """
    if "cache" not in root.attrs:
        raise IncompleteError(
            "the store holds no targets yet",
            where=where,
            hint=f"teachonce cache SHARDS --teacher … --out {where}",
        )
    fields: Any = root.attrs["cache"]["spec"]  # type: ignore[index,call-overload]
    return StoreSpec(
        num_samples=fields["num_samples"],
        shard_size=fields["shard_size"],
        num_views=fields["num_views"],
        targets=tuple(
            TargetSpec(name=t["name"], axes=tuple(t["axes"]), width=t["width"]) for t in fields["targets"]
        ),
        encoding=ENCODINGS[fields["encoding"]],
        colors=fields.get("colors", False),
    )


def _spec_to_json(spec: StoreSpec) -> Json:
    return {
        "num_samples": spec.num_samples,
        "shard_size": spec.shard_size,
        "num_views": spec.num_views,
        "targets": [{"name": t.name, "axes": list(t.axes), "width": t.width} for t in spec.targets],
        "encoding": spec.encoding.name,
        "kl_budget": spec.encoding.kl_budget,
        **({"colors": True} if spec.colors else {}),
    }


def write_block(root: zarr.Group, spec: StoreSpec, shard: int, block: TargetBlock) -> list[str]:
    """Write one shard's rows, each chunk whole. Returns the paths of the chunk files, relative to the store."""
    rows = spec.rows(shard)
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer("".join(block.keys).encode("ascii"), np.uint8).reshape(-1, KEY_LENGTH),
        "valid": block.valid,
        **to_columns(block.view_params, spec.colors),
    }
    for target in spec.targets:
        if target.name == "logits":
            stored, max_NV = encode_logits(block.targets["logits"], spec.encoding)
            arrays["logits"] = stored
            if max_NV is not None:
                arrays["logits_max"] = max_NV
        else:
            arrays[target.name] = block.targets[target.name].astype(spec.encoding.dtype)
    written: list[str] = []
    for name, values in arrays.items():
        # A chunk that equals the fill value would otherwise not be written; its absence must never mean anything.
        # Said of this array: Zarr's own setting is global, and another thread's would end in the middle of ours.
        array: Any = root[name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]
        array[rows] = values
        counts = [-(-s // c) for s, c in zip(array.shape, array.chunks, strict=True)][1:]
        written += [f"{name}/c/{shard}" + "".join(f"/{i}" for i in index) for index in np.ndindex(*counts)]
    return written


def read_keys(root: zarr.Group, spec: StoreSpec, shard: int) -> list[str]:
    """The keys of one shard's rows."""
    raw: Any = root["keys"][spec.rows(shard)]  # type: ignore[index]
    return [bytes(row).decode("ascii") for row in np.asarray(raw)]


def read_rows(
    root: zarr.Group, spec: StoreSpec, shard: int, view: int
) -> tuple[NDArray[np.bytes_], NDArray[np.bool_], Views]:
    """Who one shard's rows are: keys (sample,) as `S32`, valid (sample,), one view's view_params, VIEW (sample,).

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    rows = spec.rows(shard)
    try:
        keys = np.ascontiguousarray(root["keys"][rows]).view(f"S{KEY_LENGTH}")[:, 0]  # type: ignore[index]
        valid, params = np.asarray(root["valid"][rows]), np.asarray(root["view_params"][rows, view])  # type: ignore[index]
        colors = np.asarray(root["view_colors"][rows, view]) if spec.colors else None  # type: ignore[index]
    except (ValueError, RuntimeError) as error:
        names = "keys, valid, view_params or view_colors" if spec.colors else "keys, valid or view_params"
        raise _damaged_chunk(f"{names}, shard {shard}", error) from error
    return keys, valid, from_columns(params, colors)


def read_target(root: zarr.Group, spec: StoreSpec, shard: int, name: str, view: int) -> Floats:
    """One target of one shard and view: fp32 (sample, width); NaN rows where not valid.

    Raises:
        DamagedError: a chunk's checksum does not match, or it cannot be decoded.
    """
    rows = spec.rows(shard)
    try:
        stored = np.asarray(root[name][rows, view])  # type: ignore[index]
        if name == "logits" and spec.encoding.separate_max:
            return decode_logits(stored, np.asarray(root["logits_max"][rows, view]))  # type: ignore[index]
    except (ValueError, RuntimeError) as error:
        raise _damaged_chunk(f"{name}, shard {shard}, view {view}", error) from error
    return stored.astype(np.float32)


def _damaged_chunk(where: str, error: Exception) -> DamagedError:
    return DamagedError(
        "a chunk of the store is damaged", where=f"{where}: {error}",
        hint="restore the store from a copy; or add .old to the name of the shard's receipt in ledger/cache/receipts and "
        "run the same `teachonce cache` command again",
    )  # fmt: skip


def read_block(root: zarr.Group, spec: StoreSpec, shard: int) -> TargetBlock:
    """All of one shard's rows, decoded to fp32."""
    rows = spec.rows(shard)
    colors = np.asarray(root["view_colors"][rows]) if spec.colors else None  # type: ignore[index,arg-type]
    return TargetBlock(
        keys=read_keys(root, spec, shard),
        valid=np.asarray(root["valid"][rows]),  # type: ignore[index,arg-type]
        view_params=from_columns(np.asarray(root["view_params"][rows]), colors),  # type: ignore[index,arg-type]
        targets={
            t.name: np.stack(
                [read_target(root, spec, shard, t.name, v) for v in range(spec.num_views)], axis=1
            )
            for t in spec.targets
        },
    )
