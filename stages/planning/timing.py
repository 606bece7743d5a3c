"""Owns timing a teacher for some seconds: the real worker of `cache`, on shards of a sample, in its steady state."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...pipeline.types import Timer, Unit
from ...storage_schemas.block_part import BlockPart
from ...storage_schemas.errors import InputError
from ...storage_schemas.kept_views import no_sizes
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import Arrays, BlockWriter, TargetBlock
from ...storage_schemas.view_params import Views, no_views
from ..caching.worker import CacheWorker
from ..corpora.shards import ShardSet
from ..decoding.layout import carve, num_bytes
from ..samples.shard_views import ShardViews, tasks_of
from ..views.spec import ViewSpec

#: Batches that are left out: kernels are chosen, caches and pools filled.
WARM_UP = 2

#: A teacher whose first batches take so many times the seconds is timed by them.
_PATIENCE = 6


class _Over(Exception):
    """It has been timed for long enough."""


@dataclass(frozen=True, kw_only=True)
class TeacherTiming:
    """What was measured.

    Attributes:
        views_per_second: of one worker, between two batches.
        views, seconds: that it was taken from; 0 views where there was one batch alone.
        first_seconds: from the first row to the first batch's end, beyond what a batch takes.
        block: rows with their targets, in fp32.
    """

    views_per_second: float
    views: int
    seconds: float
    first_seconds: float
    block: TargetBlock


def time_teacher(
    worker: CacheWorker, units: Sequence[Unit], seconds: float, *, keep_rows: int, least_rows: int = 0
) -> TeacherTiming:
    """Have a worker do its units again and again, each in a thread, as executors have two of them at once.

    Args:
        units: of the sample.
        seconds: to time once it is warm. A slow teacher does two batches more, however long they take.
        keep_rows: rows whose targets are kept.
        least_rows: rows that are done, however long they take.

    Raises:
        InputError: no image of the sample can be used.
        TeachonceError: whatever a unit raised.
    """
    kept = _Kept(keep_rows)
    worker.writer = kept.writer
    clock = _Clock(worker, seconds, kept, least_rows)
    with ThreadPoolExecutor(len(units)) as threads:
        for future in [threads.submit(clock.repeat, unit) for unit in units]:
            future.result()
    if not clock.events:
        raise InputError(
            "not one image of the sample can be used",
            code="images-none-usable",
            where=worker.shards.corpus.name,
            expected="at least one usable image",
            found="none",
            hint="teachonce shard tells the reason of each",
        )
    return clock.timing(worker.views.count, kept.block(worker.spec))


@dataclass
class _Clock:
    """When how many rows were done, over all threads."""

    worker: CacheWorker
    seconds: float
    kept: _Kept
    least_rows: int
    events: list[tuple[float, int]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    over: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def repeat(self, unit: Unit) -> None:
        try:
            while not self.over:
                self.worker(unit, Timer(self._watch))
        except _Over:
            pass
        finally:
            self.over = True  # whatever ends one ends the others

    def _watch(self, samples: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if not self.events or self.kept.rows_put > self.events[-1][1]:
                self.events.append((now, self.kept.rows_put))
            warm = len(self.events) > WARM_UP and now - self.events[WARM_UP - 1][0] >= self.seconds
            slow = len(self.events) > 1 and now - self.began >= _PATIENCE * self.seconds
            self.over = self.over or ((warm or slow) and self.kept.rows_put >= self.least_rows)
        if self.over:
            raise _Over

    def timing(self, views: int, block: TargetBlock) -> TeacherTiming:
        start = min(WARM_UP - 1, len(self.events) - 2)
        if start < 0:
            took, rows = self.events[0][0] - self.began, self.events[0][1]
            return TeacherTiming(
                views_per_second=rows * views / took, views=0, seconds=took, first_seconds=0.0, block=block
            )
        (first_at, first_rows), (last_at, last_rows) = self.events[start], self.events[-1]
        rate = (last_rows - first_rows) / (last_at - first_at)
        fill = self.events[0][0] - self.began - self.events[0][1] / rate
        return TeacherTiming(
            views_per_second=rate * views,
            views=(last_rows - first_rows) * views,
            seconds=last_at - first_at,
            first_seconds=max(0.0, fill),
            block=block,
        )


class _Kept:
    """The first rows of each shard, with their targets, and a count of all rows."""

    def __init__(self, most: int) -> None:
        self.rows_put = 0
        self._most, self._rows = most, dict[int, dict[int, tuple[Views, dict[str, Any], Any]]]()
        self._keys: dict[int, Sequence[str]] = {}
        self._settled: dict[int, int] = {}

    def writer(self, arrays: Arrays, spec: StoreSpec, shard: int, keys: Sequence[str], part: BlockPart) -> BlockWriter:
        self._keys[shard] = keys
        self._rows.setdefault(shard, {})
        return _KeepingWriter(self, arrays, spec, shard, keys, part)

    def put(self, shard: int, offset: int, params_V: Views, targets: dict[str, Any], size: Any) -> None:
        self.rows_put += 1
        rows = self._rows[shard]
        if offset not in rows and sum(map(len, self._rows.values())) < self._most:
            rows[offset] = params_V, {name: np.array(values, np.float32) for name, values in targets.items()}, size

    def settle(self, shard: int, offset: int) -> None:
        self._settled[shard] = max(offset, self._settled.get(shard, 0))

    def block(self, spec: StoreSpec) -> TargetBlock:
        """Rows from the first of each shard on, unusable ones among them, to the last that is kept."""
        places = [
            (shard, offset)
            for shard, rows in sorted(self._rows.items())
            for offset in range(min(self._settled.get(shard, 0), 1 + max(rows, default=-1)))
        ]
        sizes = no_sizes(len(places))
        block = TargetBlock(
            sizes=sizes,
            keys=[self._keys[shard][offset] for shard, offset in places],
            valid=np.array([offset in self._rows[shard] for shard, offset in places], np.bool_),
            view_params=no_views(len(places), spec.num_views),
            targets={
                t.name: np.full((len(places), spec.num_views, *t.shape), np.nan, np.float32) for t in spec.targets
            },
        )
        for row, (shard, offset) in enumerate(places):
            if block.valid[row]:
                block.view_params[row], targets, sizes[row] = self._rows[shard][offset]
                for name, values in targets.items():
                    block.targets[name][row] = values
        return block


class _KeepingWriter(BlockWriter):
    """Writes as always, and keeps rows."""

    def __init__(
        self, kept: _Kept, arrays: Arrays, spec: StoreSpec, shard: int, keys: Sequence[str], part: BlockPart
    ) -> None:
        super().__init__(arrays, spec, shard, keys, part)
        self._kept = kept

    def put(self, offset: int, params_V: Views, targets: Any, size: Any = None) -> None:
        super().put(offset, params_V, targets, size)
        self._kept.put(self.shard, offset, params_V, targets, size)

    def settle(self, offset: int) -> None:
        super().settle(offset)
        self._kept.settle(self.shard, offset)


def time_pairs(shards: ShardSet, views: ViewSpec, size: int, seconds: float) -> float:
    """Images a second that one core makes pairs of: reading, decoding and drawing one view of each."""
    one = ViewSpec.from_json(views.to_json() | {"count": 1})
    work = ShardViews(shards, one, size)
    done, began = 0, time.perf_counter()
    while True:
        for shard in range(shards.corpus.num_shards):
            reader = shards.reader(shard)
            rows = reader.index["row"].tolist()
            keys = [key.decode("ascii") for key in reader.index["key"].tolist()]
            reader.close()
            for task in tasks_of(shard, rows, keys, 16):
                layout = work.layout(task)
                work.make(task, carve(np.empty(num_bytes(layout), np.uint8), layout))
                done += len(task.rows)
                if time.perf_counter() - began >= seconds:
                    work.close()
                    return done / (time.perf_counter() - began)
