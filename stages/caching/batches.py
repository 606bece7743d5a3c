"""Owns packing rows into the teacher's batches: whole samples, usable ones only, in row order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ...storage_schemas.view_params import Views
from ..decoding.work import Made
from ..samples.shard_views import RowViews, ShardRows


@dataclass
class Batch:
    """Samples for one forward pass. Its composition depends on nothing but the shard, and with it the bytes of the targets.

    Attributes:
        rows: of the corpus.
        params: for each its views' parameters, VIEW (view,).
        sizes: of each, as its kind has it.
        parts: their views, one array behind the other: (sample, view, *shape of the kind).
    """

    rows: list[int] = field(default_factory=list)
    params: list[Views] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    parts: list[NDArray[Any]] = field(default_factory=list)


def batches(made: Iterable[tuple[ShardRows, Made]], size: int) -> Iterator[Batch]:
    """Batches of `size` usable samples, the last one shorter. No array is copied."""
    batch = Batch()
    for task, done in made:
        info: RowViews = done.info
        (views,) = done.arrays
        start = 0
        while start < len(task.rows):
            if info.params[start] is None:
                start += 1
                continue
            stop = start
            while stop < len(task.rows) and info.params[stop] is not None and len(batch.rows) < size:
                batch.rows.append(task.rows[stop])
                batch.params.append(info.params[stop])  # type: ignore[arg-type]  # it is not None
                batch.sizes.append(info.sizes[stop])  # type: ignore[arg-type]  # nor is this
                stop += 1
            batch.parts.append(views[start:stop])
            start = stop
            if len(batch.rows) == size:
                yield batch
                batch = Batch()
    if batch.rows:
        yield batch
