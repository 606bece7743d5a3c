"""Owns making the views of a shard's rows, as work that is done ahead (see `decoding`)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError
from ...storage_schemas.view_params import Views
from ..corpora.images import BadImage, one_image
from ..corpora.shards import ShardReader, ShardSet
from ..decoding.layout import ArrayLayout
from ..views.spec import ViewSpec
from .kind import SampleKind
from .registry import kind_named

#: Shards that are held open: tasks of two may take turns, where one ends and the next begins.
_OPEN_SHARDS = 3


@dataclass(frozen=True)
class ShardRows:
    """A task: some usable rows of one shard, in order, with their keys in the manifest."""

    shard: int
    rows: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass
class RowViews:
    """What became of the rows, beside their views' arrays.

    Attributes:
        params: for each row its views' parameters, VIEW (view,), or None where it turned out to be unusable.
        reasons: why it is, by row.
        seconds: spent, by kind of work.
    """

    params: list[Views | None] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "decode": 0.0})


class ShardViews:
    """Reads and decodes each row once and draws all its views: one array (row, view, *shape of the kind).

    Args:
        size: of the model's input.
    """

    def __init__(self, shards: ShardSet, views: ViewSpec, size: int) -> None:
        self._shards, self._views, self._size = shards, views, size
        self._kind: SampleKind = kind_named(shards.corpus.sample_kind, where=shards.location)
        self._limit = shards.corpus.max_pixels
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._opening = threading.Lock()

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_opening")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers, self._opening = OrderedDict(), threading.Lock()

    def layout(self, task: ShardRows) -> ArrayLayout:
        shape = (len(task.rows), self._views.count, *self._kind.shape(self._size))
        return [(np.dtype(self._kind.dtype).str, shape)]

    def make(self, task: ShardRows, arrays: list[NDArray[Any]]) -> RowViews:
        """
        Raises:
            DamagedError: tar, index and manifest do not belong together, or bytes changed.
            Unreachable: a lack of memory, or of the disk, that may pass.
        """
        (drawn,) = arrays
        done = RowViews()
        reader = self._reader(task.shard)
        last = time.perf_counter()

        def lap(kind: str) -> None:
            nonlocal last
            now = time.perf_counter()
            done.seconds[kind] += now - last
            last = now

        for out, row, expected in zip(drawn, task.rows, task.keys, strict=True):
            where = f"{self._shards.location}, row {row}"
            key = reader.key(row)
            if key != expected:
                raise DamagedError(
                    "tar and manifest are out of line",
                    code="tar-manifest-out-of-line",
                    where=where,
                    expected=expected,
                    found=key,
                )
            data = reader.read(row)
            lap("read")
            try:
                with one_image(where):
                    done.params.append(self._draw(out, data, key))
            except BadImage as bad:
                done.params.append(None)
                done.reasons[row] = str(bad)
            lap("decode")
        return done

    def close(self) -> None:
        with self._opening:
            self._readers.clear()

    def _draw(self, out: NDArray[Any], data: bytes, key: str) -> Views:
        sample = self._kind.decode(data, self._limit)
        params = self._kind.params(sample, key, self._views)
        for view, record in zip(out, params, strict=True):
            self._kind.draw(view, sample, record, self._size, self._views)
        return params

    def _reader(self, shard: int) -> ShardReader:
        """The shard, open. One that is forgotten closes when no thread reads in it any more."""
        with self._opening:
            if shard not in self._readers:
                self._readers[shard] = self._shards.reader(shard)
            self._readers.move_to_end(shard)
            while len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return self._readers[shard]


def tasks_of(shard: int, rows: Sequence[int], keys: Sequence[str], size: int) -> list[ShardRows]:
    """Rows in tasks of `size`."""
    return [ShardRows(shard, tuple(rows[i : i + size]), tuple(keys[i : i + size])) for i in range(0, len(rows), size)]
