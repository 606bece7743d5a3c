"""Owns the description of a target store: what its rows are and what decided them; the root group's attribute `cache`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import zarr

from .encodings import ENCODINGS, Encoding
from .encodings.floats import FloatEncoding
from .encodings.registry import OtherTableError, encoding_from_json
from .encodings.table import Table, TableOf, array_name
from .errors import DamagedError, IncompleteError
from .fingerprint import Fingerprint, Json
from .growth import FIRST, Growth
from .json_file import Positive, as_schema, seal, unseal
from .params_form import DERIVED, STORED
from .plain_text import typed
from .row_layout import RowLayout
from .samples import IMAGE
from .view_drawing import ViewDrawing
from .zarr_damage import readable

#: The attribute of the root group. Written last, so its presence means that all arrays are there.
ATTRIBUTE = "cache"

#: Aim for chunks of a few MiB: object stores and file systems both like them.
CHUNK_BYTES = 4 << 20

#: At most so much in a chunk of a target with several axes.
LARGE_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """A named target with named axes: `embedding` (sample, view, channel), `tokens` (sample, view, token, channel), …

    Attributes:
        axes: of the array; the first two are sample and view.
        shape: of one row's view, along the other axes.
        chunk: of the array: rows (those of a shard or a divisor, so that no chunk crosses a shard), views, and the other axes. None
            for a vector whose chunks hold the rows of a shard, and as many views as `CHUNK_BYTES` has room for.
        encoding: how its values are stored; None for the store's own (`StoreSpec.encoding`).
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...] | None = None
    encoding: Encoding | None = None

    @staticmethod
    def of(
        name: str,
        axes: Sequence[str],
        shape: Sequence[int],
        *,
        shard_size: int,
        num_rows: int,
        num_views: int,
        encoding: Encoding,
        own: bool = False,
    ) -> TargetSpec:
        """A target of a new store, given its axes and shape without sample and view.

        A vector's chunks hold the rows of a shard, where these are no more than `CHUNK_BYTES`. Others have at most
        `LARGE_CHUNK_BYTES`, so that writing holds little at a time and reading rows in any order reads few besides. Chunks divide rows
        and views, since an array's last chunk takes as much room as any other.

        Args:
            num_rows: of the store's arrays.
            encoding: how its values are stored.
            own: whether that is the target's own, and not the store's.
        """
        bare = TargetSpec(
            name=name, axes=("sample", "view", *axes), shape=tuple(shape), encoding=encoding if own else None
        )
        stored, row_bytes = encoding.arrays(bare)[0].shape, bytes_of_row(encoding, bare)
        rows = min(shard_size, num_rows)
        if len(stored) == 1 and rows * row_bytes <= CHUNK_BYTES:
            fitting = views_at_once(row_bytes, shard_size, num_views)
            views = largest_divisor(num_views, fitting)
            return bare if views == fitting else replace(bare, chunk=(rows, views, *stored))
        most = CHUNK_BYTES if len(stored) == 1 else LARGE_CHUNK_BYTES
        parts = largest_divisor(stored[0], most // (row_bytes // stored[0]))
        return replace(bare, chunk=(largest_divisor(rows, most // row_bytes), 1, parts, *stored[1:]))

    @property
    def width(self) -> int:
        """Numbers in one row's view."""
        return math.prod(self.shape)

    def to_json(self) -> Json:
        """Plain vectors as version 1 of the format has them."""
        if len(self.shape) == 1:
            fields: dict[str, Json] = {"name": self.name, "axes": list(self.axes), "width": self.shape[0]}
        else:
            fields = {"name": self.name, "axes": list(self.axes), "shape": list(self.shape)}
        if self.chunk is not None:
            fields["chunk"] = list(self.chunk)
        return fields if self.encoding is None else {**fields, "encoding": self.encoding.to_json()}


def bytes_of_row(encoding: Encoding, target: TargetSpec) -> int:
    """Bytes of one row's view in the target's own array, before its codecs."""
    own = encoding.arrays(target)[0]
    return math.prod(own.shape) * np.dtype(own.dtype).itemsize


def views_at_once(row_bytes: int, shard_size: int, num_views: int) -> int:
    """Views in a chunk of the rows of a shard: as many as `CHUNK_BYTES` has room for, at least one."""
    return max(1, min(num_views, CHUNK_BYTES // (shard_size * row_bytes)))


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor that is no more than `most`; at least 1."""
    return next((n for n in range(min(number, most), 0, -1) if number % n == 0), 1)


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """The shape of a store's rows.

    Attributes:
        num_samples: over all shards; arrays have `num_rows` rows, which are more where a shard in the middle is short.
        encoding: of every target that has none of its own.
        colors: views have colours of their own, hence arrays for them.
        parts: of the samples, as in `RowLayout`; empty where these are as if they came at once.
        chunk_views: most views of a chunk; None for all of the store's.
        drawing: how parameters of views are drawn, where the store derives them on reading; None where it stores them.
    """

    num_samples: int
    shard_size: int
    num_views: int
    targets: tuple[TargetSpec, ...]
    encoding: FloatEncoding
    colors: bool = False
    parts: tuple[int, ...] = ()
    chunk_views: int | None = None
    drawing: ViewDrawing | None = None

    def __post_init__(self) -> None:
        own = RowLayout.of(self.shard_size, self.parts or (self.num_samples,)).parts
        object.__setattr__(self, "parts", own if len(own) > 1 else ())

    @functools.cached_property
    def layout(self) -> RowLayout:
        """Which rows a shard holds."""
        return RowLayout.of(self.shard_size, self.parts or (self.num_samples,))

    @property
    def view_params(self) -> str:
        """What becomes of the parameters of views: one of `VIEW_PARAMS`."""
        return STORED if self.drawing is None else DERIVED

    @property
    def views_together(self) -> int:
        """Views of a chunk, where these are small; and of a sample in one forward pass."""
        return self.num_views if self.chunk_views is None else min(self.chunk_views, self.num_views)

    @property
    def version(self) -> int:
        """The version of the format that holds such rows."""
        if self.drawing is not None:
            return 4
        if self.views_together < self.num_views or len(self.layout.parts) > 1:
            return 3
        if any(target.encoding is not None for target in self.targets):
            return 3
        return 1 if all(len(t.shape) == 1 and t.chunk is None for t in self.targets) else 2

    def encoding_of(self, target: TargetSpec) -> Encoding:
        """How a target's values are stored."""
        return self.encoding if target.encoding is None else target.encoding

    def target(self, name: str) -> TargetSpec:
        """The target of this name, which must be there."""
        return next(target for target in self.targets if target.name == name)

    @property
    def shard_rows(self) -> int:
        """Rows of a whole shard, or of the corpus where that is a single, smaller one."""
        return min(self.shard_size, self.num_rows)

    def chunk_rows(self, target: TargetSpec) -> int:
        """Rows of a target's chunk; they divide those of a shard."""
        return self.shard_rows if target.chunk is None else target.chunk[0]

    def is_streamed(self, target: TargetSpec) -> bool:
        """Whether its chunks hold less than the rows of a whole shard: it is written and read chunk by chunk."""
        return self.chunk_rows(target) < self.shard_rows

    @property
    def num_shards(self) -> int:
        return self.layout.num_shards

    @property
    def num_rows(self) -> int:
        """The length of the arrays of rows."""
        return self.layout.num_rows

    def rows(self, shard: int) -> slice:
        """The rows of one shard's samples."""
        rows = self.layout.rows(shard)
        return slice(rows.start, rows.stop)


@dataclass(frozen=True, kw_only=True)
class CachedTeacher:
    """The teacher as the fingerprint names it: how the user called it, and the digest of its weights."""

    model: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class DecidedBy:
    """The part of a fingerprint that readers compare; `class_vectors` are those that formed the logits, if any are stored."""

    corpus_id: str
    teacher: CachedTeacher
    class_vectors: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoreDescription:
    """What `cache` records of a store when it creates the arrays.

    Attributes:
        spec: shape of the rows.
        fingerprint: everything that decides the store's bytes; the ledger's plan holds the same.
        views: how views are drawn (`ViewSpec.to_json`).
        teacher: the one that gave the targets (`TeacherSpec.to_json`).
        shards: folder of the shards, as it was called.
        pixels: sample of rendered views (`PixelSample.to_json`); None in stores of early versions.
        versions: of libraries that decide nothing by themselves.
        sample_kind: of the samples, as in `Corpus`; written only where they are no images.
        measured: what the encodings cost on the first shards (`stages.encodings.measure`), by target; None where that was not measured.
        recoded: of a store that `recode` made: the store that it is made of, and what was taken of it (`stages/recoding/origin.py`);
            None for the teacher's own.
        growth: how this generation came of another one; None for the one that the store began with.
    """

    spec: StoreSpec
    fingerprint: Mapping[str, Json]
    views: Mapping[str, Json]
    teacher: Mapping[str, Json]
    shards: str
    pixels: Mapping[str, Json] | None = None
    versions: Mapping[str, Json] | None = None
    sample_kind: str = IMAGE
    recoded: Mapping[str, Json] | None = None
    measured: Mapping[str, Json] | None = None
    growth: Growth | None = None

    @property
    def generation(self) -> str:
        """The name of the generation that it describes."""
        return FIRST if self.growth is None else self.growth.name

    @property
    def corpus_id(self) -> str:
        return self.decided_by.corpus_id

    @functools.cached_property
    def decided_by(self) -> DecidedBy:
        """What readers compare of the fingerprint.

        Raises:
            DamagedError: it has none.
        """
        return as_schema(
            dict(self.fingerprint),
            DecidedBy,
            what="not a fingerprint of targets",
            code="store-description-malformed",
            where="the store's attribute `cache`",
            hint=_RESTORE,
        )

    def write(self, root: zarr.Group) -> None:
        """Set the attribute."""
        root.attrs[ATTRIBUTE] = self.to_json()

    def to_json(self) -> dict[str, Json]:
        """The value of the attribute, sealed with its digest."""
        fields = {
            "spec": _spec_to_json(self.spec),
            "fingerprint": dict(self.fingerprint),
            "views": dict(self.views),
            "teacher": dict(self.teacher),
            "shards": self.shards,
            "pixels": self.pixels,
            "versions": self.versions,
            "sample_kind": None if self.sample_kind == IMAGE else self.sample_kind,
            "recoded": self.recoded,
            "measured": self.measured,
            "growth": None if self.growth is None else _growth_to_json(self.growth),
        }
        return seal({name: value for name, value in fields.items() if value is not None})

    @staticmethod
    def read(root: zarr.Group, where: object) -> StoreDescription:
        """The description of a store.

        Raises:
            IncompleteError: nothing was cached here yet.
            DamagedError: not a description, or one that changed since it was written.
        """
        found: Any = root.attrs.asdict().get(ATTRIBUTE)
        if found is None:
            raise IncompleteError(
                "the store holds no targets yet",
                code="store-without-targets",
                where=where,
                hint=f"teachonce cache SHARDS --teacher … --out {typed(where)}",
            )
        return StoreDescription.from_json(found, f"{where}/zarr.json", tables_of(root, where))

    @staticmethod
    def from_json(found: Json, file: str, tables: Callable[[str], TableOf]) -> StoreDescription:
        """What `to_json` gave.

        Args:
            tables: reads what a target's encoding was fitted to.

        Raises:
            DamagedError: something else, or it changed since it was written.
        """
        fields = unseal(as_schema(found, dict[str, Any], **_about(file)), where=file, hint=_RESTORE)
        raw = as_schema(fields, _Fields, **_about(file))
        targets = tuple(_target(found, file, tables(found.name)) for found in raw.spec.targets)
        return StoreDescription(
            spec=StoreSpec(
                num_samples=raw.spec.num_samples,
                shard_size=raw.spec.shard_size,
                num_views=raw.spec.num_views,
                targets=targets,
                encoding=ENCODINGS[raw.spec.encoding],
                colors=raw.spec.colors,
                parts=_parts(raw.spec, file),
                chunk_views=raw.spec.chunk_views,
                drawing=ViewDrawing.from_json(raw.views, file) if raw.spec.view_params == DERIVED else None,
            ),
            fingerprint=raw.fingerprint,
            views=raw.views,
            teacher=raw.teacher,
            shards=raw.shards,
            pixels=raw.pixels,
            versions=raw.versions,
            sample_kind=raw.sample_kind,
            recoded=raw.recoded,
            measured=raw.measured,
            growth=raw.growth,
        )

    def check_planned(self, planned: Fingerprint, where: object) -> None:
        """Refuse a store whose arrays were not created for the run in its ledger.

        Raises:
            MismatchError: names the field.
        """
        planned.check(
            self.fingerprint,
            what="the arrays of this store were made for another run than its ledger's",
            code="store-other-run",
            where=f"{where}/zarr.json",
            hint=_RESTORE,
            whose=("the ledger", "the arrays"),
        )


_RESTORE = "restore zarr.json from a copy, or run `teachonce cache` with another --out"


def _about(where: str) -> dict[str, Any]:
    return {
        "what": "not a description of targets",
        "code": "store-description-malformed",
        "where": where,
        "hint": _RESTORE,
    }


def lost_description(where: object) -> DamagedError:
    """For a store that has a ledger of targets, but nothing that describes them."""
    return DamagedError(
        "the store has lost what describes its targets",
        code="store-description-lost",
        where=f"{where}/zarr.json",
        expected=f"the attribute `{ATTRIBUTE}`, as in its ledger",
        found="none",
        hint=_RESTORE,
    )


@dataclass(frozen=True, kw_only=True)
class _TargetFields:
    name: str
    axes: tuple[str, ...]
    width: Positive | None = None
    shape: list[Positive] | None = None
    chunk: list[Positive] | None = None
    encoding: str | dict[str, Any] | None = None


def _parts(found: _SpecFields, file: str) -> tuple[int, ...]:
    if found.parts and sum(found.parts) != found.num_samples:
        raise DamagedError(
            **_about(file), expected=f"parts of {found.num_samples} samples together", found=sum(found.parts)
        )
    return found.parts


def _target(found: _TargetFields, file: str, tables: TableOf) -> TargetSpec:
    shape = found.shape if found.width is None else [found.width]
    target = TargetSpec(
        name=found.name,
        axes=found.axes,
        shape=tuple(shape or ()),
        chunk=None if found.chunk is None else tuple(found.chunk),
        encoding=None if found.encoding is None else _encoding(found.name, found.encoding, file, tables),
    )
    sizes = {len(found.axes), 2 + len(target.shape), len(found.chunk or found.axes)}
    if (found.width is None) == (found.shape is None) or not target.shape or len(sizes) > 1:
        raise DamagedError(
            **_about(file), expected=f"axes of '{found.name}' with a size each", found=", ".join(found.axes)
        )
    return target


def _encoding(target: str, found: str | dict[str, Any], file: str, tables: TableOf) -> Encoding:
    try:
        return encoding_from_json(found, tables)
    except OtherTableError as error:
        raise DamagedError(
            f"what the encoding of the {target} was fitted to is not what the rows were stored with",
            code="encoding-table-changed",
            where=f"{file.removesuffix('/zarr.json')}: {array_name(target, '…')}",
            expected=f"digest {error.expected}",
            found=error.found,
            hint=_RESTORE_TABLE,
        ) from error
    except ValueError as error:
        raise DamagedError(**_about(file), expected="an encoding of this version", found=error) from error


def tables_of(root: zarr.Group, where: object) -> Callable[[str], TableOf]:
    """Reads the tables of targets' encodings from a store's group."""

    def read(target: str, parts: tuple[str, ...]) -> Table:
        names = {part: array_name(target, part) for part in parts}
        with readable(
            "what an encoding was fitted to cannot be read",
            code="encoding-table-damaged",
            where=f"{where}: {', '.join(names.values())}",
            hint=_RESTORE_TABLE,
        ):
            return Table({part: np.asarray(root[name][:]) for part, name in names.items()})  # type: ignore[index]

    return lambda target: functools.partial(read, target)


_RESTORE_TABLE = "restore these arrays from a copy of the store"


@dataclass(frozen=True, kw_only=True)
class _SpecFields:
    num_samples: Positive
    shard_size: Positive
    num_views: Positive
    targets: tuple[_TargetFields, ...]
    encoding: Literal["fp32", "fp16"]
    kl_budget: float
    colors: bool = False
    parts: tuple[Positive, ...] = ()
    chunk_views: Positive | None = None
    view_params: Literal["stored", "derived"] = "stored"


@dataclass(frozen=True, kw_only=True)
class _Fields:
    spec: _SpecFields
    fingerprint: dict[str, Any]
    views: dict[str, Any]
    teacher: dict[str, Any]
    shards: str
    pixels: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    sample_kind: str = IMAGE
    recoded: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    growth: Growth | None = None


def _growth_to_json(growth: Growth) -> Json:
    return {
        "name": growth.name,
        "parent": growth.parent,
        "what": growth.what,
        "shards": [list(part) for part in growth.shards],
        "arrays": dict(growth.arrays),
        "made": list(growth.made),
    }


def _spec_to_json(spec: StoreSpec) -> Json:
    return {
        "num_samples": spec.num_samples,
        "shard_size": spec.shard_size,
        "num_views": spec.num_views,
        "targets": [target.to_json() for target in spec.targets],
        "encoding": spec.encoding.name,
        "kl_budget": spec.encoding.kl_budget,
        **({"colors": True} if spec.colors else {}),
        **({"parts": list(spec.layout.parts)} if len(spec.layout.parts) > 1 else {}),
        **({"chunk_views": spec.chunk_views} if spec.views_together < spec.num_views else {}),
        **({} if spec.view_params == STORED else {"view_params": spec.view_params}),
    }
