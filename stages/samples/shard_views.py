"""Owns making the views of a shard's rows, as work that is done ahead (see `decoding`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError
from ...storage_schemas.view_params import Views
from ..corpora.images import BadImage, one_image
from ..corpora.open_shards import OpenShards
from ..corpora.shards import ShardSet
from ..decoding.layout import ArrayLayout
from ..views.spec import ViewSpec
from .kind import SampleKind
from .registry import kind_named


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
        sizes: of each row, as its kind has it; None where it is unusable.
        reasons: why it is, by row.
        seconds: spent, by kind of work.
    """

    params: list[Views | None] = field(default_factory=list)
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "decode": 0.0})


class ShardViews:
    """Reads and decodes each row once and draws its views: one array (row, view, *shape of the kind).

    Args:
        size: of the model's input.
        first_view: the first view to draw; all behind it are drawn.
    """

    def __init__(self, shards: ShardSet, views: ViewSpec, size: int, first_view: int = 0) -> None:
        self._shards, self._views, self._size, self._first_view = (
            OpenShards(shards, in_order=True),
            views,
            size,
            first_view,
        )
        self._kind: SampleKind = kind_named(shards.corpus.sample_kind, where=shards.location)
        self._limit, self._location = shards.corpus.max_pixels, shards.location

    def layout(self, task: ShardRows) -> ArrayLayout:
        shape = (len(task.rows), self._views.count - self._first_view, *self._kind.shape(self._size))
        return [(np.dtype(self._kind.dtype).str, shape)]

    def make(self, task: ShardRows, arrays: list[NDArray[Any]]) -> RowViews:
        """
        Raises:
            DamagedError: tar, index and manifest do not belong together, or bytes changed.
            Unreachable: a lack of memory, or of the disk, that may pass.
        """
        (drawn,) = arrays
        done = RowViews()
        reader = self._shards.reader(task.shard)
        last = time.perf_counter()

        def lap(kind: str) -> None:
            nonlocal last
            now = time.perf_counter()
            done.seconds[kind] += now - last
            last = now

        for out, row, expected in zip(drawn, task.rows, task.keys, strict=True):
            where = f"{self._location}, row {row}"
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
                    params, size = self._draw(out, data, key)
                    done.params.append(params)
                    done.sizes.append(size)
            except BadImage as bad:
                done.params.append(None)
                done.sizes.append(None)
                done.reasons[row] = str(bad)
            lap("decode")
        return done

    def close(self) -> None:
        self._shards.close()

    def _draw(self, out: NDArray[Any], data: bytes, key: str) -> tuple[Views, tuple[int, int]]:
        sample = self._kind.decode(data, self._limit)
        params = self._kind.params(sample, key, self._views)[self._first_view :]
        for view, record in zip(out, params, strict=True):
            self._kind.draw(view, sample, record, self._size, self._views)
        return params, self._kind.size(sample)


def tasks_of(shard: int, rows: Sequence[int], keys: Sequence[str], size: int) -> list[ShardRows]:
    """Rows in tasks of `size`."""
    return [ShardRows(shard, tuple(rows[i : i + size]), tuple(keys[i : i + size])) for i in range(0, len(rows), size)]
