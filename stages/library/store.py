"""Owns a target store as an object: the teacher's outputs for any sample, by row or key, as arrays in fp32."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ...pipeline.settings import impossible
from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import IncompleteError, InputError
from ...storage_schemas.fingerprint import Json, digest_json
from ...storage_schemas.samples import KEY_LENGTH
from ...storage_schemas.store_description import TargetSpec
from ...storage_schemas.target_store import read_rows
from ...storage_schemas.view_params import NO_VIEW, VIEW, Views
from ..corpora.images import BadImage
from ..measures.stored import Stored
from ..models.softmax import probabilities
from ..pairs.beside import teachers_beside
from ..pairs.store import read_generations
from ..pairs.target_rows import TargetRows
from ..reports.inspect_sample import find_row
from ..samples.thumbnails import Thumbnails, webp
from ..views.spec import ViewSpec
from .blocks import Blocks
from .selection import Row, Rows, Selection, select, select_views

if TYPE_CHECKING:
    import xarray

#: Bytes of blocks that a store keeps at hand unless the caller chooses.
CACHE_BYTES = 256 << 20

Floats = NDArray[np.float32]


def open_store(
    store: str | os.PathLike[str],
    *,
    shards: str | os.PathLike[str] | None = None,
    generation: str | int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> TargetStore:
    """Open a target store for reading. `from teachonce import open_store`; needs neither torch nor the teacher.

    Every chunk that is read is compared with the receipt of its shard. What is read of an unfinished store is what is done.

    Args:
        store: the folder that `teachonce cache` wrote.
        shards: the folder of its shards, for paths, labels and pictures; None takes the one that the store recorded, if it is
            still right.
        generation: the name of an older one of a store that grew, such as "1" for what was there at first; None for the current one.
        cache_bytes: so many bytes of decoded blocks stay in memory. Rows are read by whole shards, so that of the rows that
            lie together each one but the first costs nothing.

    Raises:
        InputError: no store or no such generation there, or no shards in the folder that was given.
        MismatchError: a store of a later version; the given shards are another corpus's.
        DamagedError: its description or its class vectors changed since they were written.
    """
    stored = Stored.open(
        os.fspath(store), None if shards is None else os.fspath(shards), None if generation is None else str(generation)
    )
    return TargetStore(stored, cache_bytes)


class TargetStore:
    """An open target store: `open_store` makes it. Several threads may read at once.

    Rows are given as a number, a key, several of either, a slice, a mask, or None for all. For a single row there is no axis
    of rows in the result; for a single view none of views; `view=None` means all views. Rows whose image was unusable are NaN.
    """

    def __init__(self, stored: Stored, cache_bytes: int = CACHE_BYTES) -> None:
        self._stored = stored
        self._blocks = Blocks(cache_bytes)
        self._index: tuple[NDArray[np.bytes_], NDArray[np.int64]] | None = None
        self._thumbnails: Thumbnails | None = None

    def __len__(self) -> int:
        """Rows, usable or not. In a corpus that grew, a shard in the middle may be short: the rows behind it are nobody's, and not valid."""
        return self._stored.rows.num_rows

    def __enter__(self) -> TargetStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards that pictures were read from. The store can be used again."""
        with self._blocks.lock:
            if self._thumbnails is not None:
                self._thumbnails.__exit__(None, None, None)
                self._thumbnails = None

    def __repr__(self) -> str:
        if self._stored.spec is None:
            return f"TargetStore({str(self.location)!r}, no targets yet)"
        names = ", ".join(self.targets)
        return f"TargetStore({str(self.location)!r}, {len(self)} rows, {self.num_views} views, {names})"

    @property
    def location(self) -> Location:
        """Where it is."""
        return self._stored.location

    @property
    def generation(self) -> str:
        """The name of the generation that is open."""
        return self._stored.description.generation

    @property
    def generations(self) -> tuple[str, ...]:
        """Names of all generations of the store, the first one first; the last one is current."""
        return tuple(read_generations(self.location).finished)

    @property
    def num_views(self) -> int:
        """Views of each sample."""
        return self._stored.rows.num_views

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        """The targets that are stored, by name, with axes and shape."""
        return {target.name: target for target in self._stored.rows.targets}

    @property
    def view_spec(self) -> ViewSpec:
        """How the views were drawn."""
        return ViewSpec.from_json(self._stored.description.views, where=self.location)

    @property
    def class_vectors(self) -> ClassVectors | None:
        """What turns embeddings into logits; None where the store has no classes."""
        return self._stored.vectors

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits; none where the store has no class vectors."""
        return () if self._stored.vectors is None else self._stored.vectors.names

    @property
    def teacher(self) -> Mapping[str, Json]:
        """The teacher that gave the targets, as `cache` recorded it: model, digest of its weights, preprocessing."""
        return self._stored.description.teacher

    @property
    def teachers(self) -> Mapping[str, str]:
        """Where the stores of further teachers lie (`cache --beside NAME`), by name: `open_store` opens each."""
        return {name: str(place) for name, place in teachers_beside(self.location).items()}

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decided the store's bytes."""
        return digest_json(dict(self._stored.description.fingerprint))

    @property
    def is_complete(self) -> bool:
        """Whether the rows of all shards are there."""
        return len(self._stored.shards_done()) == self._stored.rows.num_shards

    def shards(self) -> Iterator[range]:
        """The rows of each shard that is done, in order: `for rows in store.shards(): store.logits(rows)` holds one at a time."""
        for shard in self._stored.shards_done():
            rows = self._stored.rows.rows(shard)
            yield range(rows.start, rows.stop)

    def find(self, name: str) -> int:
        """The row of a sample by its key, the beginning of one (6 characters or more), its path, or the end of one.

        Raises:
            InputError: none, or several, go by that name.
        """
        return find_row(self._stored, name)

    @overload
    def keys(self, rows: Row) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def keys(self, rows: Rows = ...) -> NDArray[np.str_]: ...
    def keys(self, rows: Row | Rows = None) -> str | NDArray[np.str_]:
        """Keys of samples: `U32` (row,)."""
        chosen = self._select(rows)
        keys_N = self._gather(chosen, np.dtype(f"S{KEY_LENGTH}"), lambda shard: self._rows_of(shard, 0)[0])
        return str(keys_N[0].decode()) if chosen.is_one else keys_N.astype(f"U{KEY_LENGTH}")

    def valid(self, rows: Row | Rows = None) -> NDArray[np.bool_]:
        """Which rows have targets: bool (row,). The others' images were unusable."""
        chosen = self._select(rows)
        valid_N = self._gather(chosen, np.dtype(bool), lambda shard: self._rows_of(shard, 0)[1])
        return np.asarray(valid_N[0] if chosen.is_one else valid_N)

    @overload
    def paths(self, rows: Row) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def paths(self, rows: Rows = ...) -> list[str]: ...
    def paths(self, rows: Row | Rows = None) -> str | list[str]:
        """Paths of the images within their corpus.

        Raises:
            InputError: the shards are not at hand.
        """
        found: list[str] = self._entries(rows, "path")
        return found[0] if self._select(rows).is_one else found

    @overload
    def labels(self, rows: Row) -> str | None: ...  # type: ignore[overload-overlap]
    @overload
    def labels(self, rows: Rows = ...) -> list[str | None]: ...
    def labels(self, rows: Row | Rows = None) -> str | list[str | None] | None:
        """Class names that the images had in their corpus; None for those without. The teacher never saw them.

        Raises:
            InputError: the shards are not at hand.
        """
        found: list[str | None] = self._entries(rows, "label")
        return found[0] if self._select(rows).is_one else found

    def views(self, rows: Row | Rows = None, *, view: int | Sequence[int] | None = 0) -> Views:
        """What the views show, as records (row, view): `["top"]`, `["left"]`, `["height"]`, `["width"]`, `["flip"]`, and colours."""
        return self._by_view(rows, view, VIEW, (), lambda shard, number: self._rows_of(shard, number)[2])

    def target(self, name: str, rows: Row | Rows = None, *, view: int | Sequence[int] | None = 0) -> Floats:
        """Any target that is stored, by its name: fp32 (row, view, …) with the axes of `targets[name]`.

        Raises:
            InputError: no such target, row or view.
            IncompleteError: a row is not cached yet.
            DamagedError: a chunk is not the one that was written.
        """
        if name not in self.targets:
            raise InputError(
                "the store has no such target",
                code="target-not-stored",
                where=self.location,
                expected=", ".join(self.targets),
                found=name,
            )
        return self._by_view(
            rows, view, np.dtype(np.float32), self.targets[name].shape, lambda *at: self._block(name, *at)
        )

    def embeddings(self, rows: Row | Rows = None, *, view: int | Sequence[int] | None = 0) -> Floats:
        """The teacher's embeddings, fp32 (row, view, channel). Raises what `target` does."""
        return self.target("embedding", rows, view=view)

    def logits(self, rows: Row | Rows = None, *, view: int | Sequence[int] | None = 0) -> Floats:
        """The teacher's logits as it gave them, fp32 (row, view, class); formed from embeddings where none are stored.

        Raises:
            IncompleteError: there are none; otherwise as `target`.
        """
        if self._stored.no_logits:
            raise IncompleteError(
                "the store gives no logits",
                code="store-without-logits",
                where=self.location,
                found=self._stored.no_logits,
            )
        if "logits" in self.targets:
            return self.target("logits", rows, view=view)
        embedding: Floats = self.embeddings(rows, view=view)
        assert self.class_vectors is not None
        flat_ND = embedding.reshape(-1, embedding.shape[-1])
        return self.class_vectors.logits(flat_ND).reshape(*embedding.shape[:-1], -1)

    def probabilities(
        self, rows: Row | Rows = None, *, view: int | Sequence[int] | None = 0, temperature: float = 1.0
    ) -> Floats:
        """The teacher's probabilities, fp32 (row, view, class): logits / temperature, exponentiated and normalised.

        Raises:
            InputError: a temperature that is not above 0; otherwise as `logits`.
        """
        logits: Floats = self.logits(rows, view=view)
        return probabilities(logits.reshape(-1, logits.shape[-1]), temperature).reshape(logits.shape)

    def picture(self, row: Row, *, view: int = 0, edge: int = 224) -> NDArray[np.uint8]:
        """What the teacher saw in a view, drawn from the shards: uint8 (height, width, 3), square of `edge` pixels.

        Raises:
            InputError: the shards are not at hand, the image is unusable, or `edge` is less than 1.
            DamagedError: the tar is not what its receipt vouches for.
        """
        if self._stored.shards is None:
            raise self._no_shards()
        if edge < 1:
            raise impossible("edge", "1 pixel at least", edge)
        chosen = self._select(row)
        number, records = int(chosen.numbers[0]), self.views(row, view=[view])
        with self._blocks.lock:
            if self._thumbnails is None:
                self._thumbnails = Thumbnails(self._stored.shards, self.view_spec)
            try:
                pixels_HWC: NDArray[np.uint8] = self._thumbnails.pixels(number, list(records), edge)[0]
                return pixels_HWC
            except BadImage as bad:
                raise InputError(
                    "an image cannot be used",
                    code="image-unusable",
                    where=f"{self.location}, row {number}",
                    found=str(bad),
                ) from bad

    def thumbnail(self, row: Row, *, view: int = 0, edge: int = 96) -> bytes:
        """The same as a small WebP file, for pages and notebooks."""
        return webp(self.picture(row, view=view, edge=edge))

    def xarray(self) -> xarray.Dataset:
        """All of it as an xarray data set, read when values are asked for; see `stages.library.dataset`.

        Raises:
            MissingDependency: xarray is not installed.
        """
        from .dataset import as_dataset

        return as_dataset(self)

    def _select(self, rows: Row | Rows) -> Selection:
        return select(rows, len(self), self._find_keys)

    def _find_keys(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The rows of some keys. The first time, all keys are read and sorted: 40 bytes a row stay in memory."""
        with self._blocks.lock:
            if self._index is None:
                parts = [
                    (rows, self._rows_of(rows.start // self._stored.rows.shard_size, 0)[0]) for rows in self.shards()
                ]
                keys_N = np.concatenate([keys for _, keys in parts]) if parts else np.empty(0, f"S{KEY_LENGTH}")
                rows_N = np.concatenate([np.arange(r.start, r.stop) for r, _ in parts] or [np.empty(0, np.int64)])
                order = np.argsort(keys_N, kind="stable")
                self._index = keys_N[order], rows_N[order]
        keys_N, rows_N = self._index
        wanted = np.array([key.encode("ascii", "replace") for key in keys])
        places = np.minimum(np.searchsorted(keys_N, wanted), max(len(keys_N) - 1, 0))
        missing = keys_N[places] != wanted if len(keys_N) else np.ones(len(keys), bool)
        if missing.any():
            raise InputError(
                "no such sample",
                code="sample-unknown",
                where=keys[int(missing.argmax())],
                hint="give a whole key; `store.find` takes the beginning of one, or a path",
            )
        return np.asarray(rows_N[places], np.int64)

    def _rows_of(self, shard: int, view: int) -> tuple[NDArray[np.bytes_], NDArray[np.bool_], Views]:
        spec = self._stored.rows
        return self._blocks.get(
            ("rows", shard, view),
            lambda: read_rows(self._stored.root, spec, shard, view),
            lambda block: sum(part.nbytes for part in block),
        )

    def _block(self, name: str, shard: int, view: int) -> TargetRows:
        spec, target = self._stored.rows, self.targets[name]
        return self._blocks.get(
            (name, shard, view),
            lambda: TargetRows(self._stored.root, spec, shard, name, view),
            lambda _: spec.chunk_rows(target) * target.width * 4,
        )

    def _by_view(
        self,
        rows: Row | Rows,
        view: int | Sequence[int] | None,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        block: Callable[[int, int], Any],
    ) -> NDArray[Any]:
        """(row, view, *shape) of blocks that are one shard's and view's, without the axes of which one was meant."""
        chosen = self._select(rows)
        numbers, is_one_view = select_views(view, self.num_views)
        found = _nothing((len(chosen.numbers), len(numbers), *shape), dtype)
        for place, number in enumerate(numbers):
            self._gather(chosen, dtype, functools.partial(_of_view, block, number), found[:, place])
        found = found[:, 0] if is_one_view else found
        return found[0] if chosen.is_one else found

    def _gather(
        self,
        chosen: Selection,
        dtype: np.dtype[Any],
        block: Callable[[int], Any],
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        found = _nothing((len(chosen.numbers),), dtype) if out is None else out
        for shard, places, offsets_N in self._by_shard(chosen):
            self._stored.require_done(self._stored.rows.rows(shard).start)
            with self._blocks.lock:
                found[places] = block(shard)[offsets_N]
        return found

    def _by_shard(self, chosen: Selection) -> Iterator[tuple[int, Any, Any]]:
        """`Selection.by_shard` without the rows that are nobody's."""
        spec = self._stored.rows
        for shard, places, offsets_N in chosen.by_shard(spec.shard_size):
            rows = spec.rows(shard)
            there_N = offsets_N < rows.stop - rows.start
            if there_N.all():
                yield shard, places, offsets_N
            elif there_N.any():
                yield shard, np.arange(len(chosen.numbers))[places][there_N], offsets_N[there_N]

    def _entries(self, rows: Row | Rows, field: str) -> list[Any]:
        if self._stored.shards is None:
            raise self._no_shards()
        chosen = self._select(rows)
        found = np.full(len(chosen.numbers), "" if field == "path" else None, object)
        for shard, places, offsets_N in self._by_shard(chosen):
            entries = self._stored.entries(shard)
            found[places] = [getattr(entries[offset], field) for offset in offsets_N.tolist()]
        return found.tolist()

    def _no_shards(self) -> InputError:
        return InputError(
            "the shards of this store are not at hand",
            code="store-without-shards",
            where=self.location,
            found=self._stored.no_paths,
            hint="open_store(…, shards=FOLDER)",
        )


def _nothing(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """What rows that are nobody's give: NaN, no key, not valid, no view."""
    if dtype == VIEW:
        return np.full(shape, NO_VIEW)
    return np.full(shape, np.nan, dtype) if dtype.kind == "f" else np.zeros(shape, dtype)


def _of_view(block: Callable[[int, int], Any], view: int, shard: int) -> Any:
    return block(shard, view)
