"""Owns what one worker of `cache` does with its shards.

One is in the model at a time. The views of the next are made meanwhile, and the targets of the last are written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

import torch

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...pipeline.types import Timer, Unit
from ...storage_schemas.errors import InputError
from ...storage_schemas.manifest import Entry
from ...storage_schemas.plain_text import counted
from ...storage_schemas.receipt import InvalidRow, Receipt
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import BlockWriter
from ..corpora.shards import ShardSet
from ..decoding.work import Made, Opened, Pool, in_order
from ..models.compute import Compute
from ..models.forward import Forward, Parts
from ..samples import shard_views
from ..samples.shard_views import ShardRows, ShardViews, tasks_of
from ..teachers.offers import Answers
from ..views.spec import ViewSpec
from .batches import Batch, batches

#: What processes that make views import.
VIEWS_MODULE = shard_views.__name__

#: Views in a task: so many that handing it on costs nothing beside them, so few that a process has it done soon.
_TASK_VIEWS = 64


@dataclass(kw_only=True)
class CacheWorker:
    """Does one shard at a time in the model; called by two threads, so that the others' work goes on beside it.

    Attributes:
        root: the store's group.
        size: of the teacher's input.
        batch_size: views in a forward pass.
        fingerprint: of the stage.
        writer: makes what a shard's rows are put into.
    """

    shards: ShardSet
    store: Location
    root: Any
    spec: StoreSpec
    views: ViewSpec
    size: int
    answers: Answers
    compute: Compute
    batch_size: int
    fingerprint: str
    pool: Pool
    writer: Callable[[Any, StoreSpec, int, Sequence[str]], BlockWriter] = BlockWriter
    _in_model: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        names = tuple(target.name for target in self.spec.targets)

        def outputs(views: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.answers.outputs(views.flatten(0, 1), names)

        self._forward = Forward(self.compute, outputs, per_sample=self.views.count)
        self._work: Opened = self.pool.open(ShardViews(self.shards, self.views, self.size))

    def close(self) -> None:
        self.pool.close()

    @property
    def samples_per_batch(self) -> int:
        """Whole samples only, so that a batch's composition depends on nothing but the shard."""
        return max(1, self.batch_size // self.views.count)

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        shard = unit.inputs["shard"]
        entries = self.shards.manifest().shard(shard)
        reasons = {bad.row: bad.reason for bad in self.shards.receipt(shard).invalid_rows}
        with closing(in_order(self._work, self._tasks(shard, entries, reasons), self.pool.ahead)) as made:
            # Making views starts here, while another unit may still be in the model.
            first = next(made, None)
            ready = self._noted(chain(() if first is None else (first,), made), reasons, timer)
            with closing(self._through_model(ready)) as batches_in:
                outputs = self._forward.through(batches_in, timer)
                begun = list(islice(outputs, 1))
                writer = self.writer(self.root, self.spec, shard, [entry.key for entry in entries])
                usable = self._write(chain(begun, outputs), writer, timer)
        timer.advance(unit.rows - usable)
        _refuse_nonfinite(writer)
        with timer("write"):
            paths, digest = writer.finish()
            outputs_written = record_outputs(self.store, paths)
        return Receipt(
            key=unit.key,
            outputs=outputs_written,
            rows=unit.rows,
            invalid_rows=_invalid(reasons, entries, self.spec.rows(shard).start),
            digest=digest,
            fingerprint=self.fingerprint,
        )

    def _tasks(self, shard: int, entries: Sequence[Entry], reasons: dict[int, str]) -> list[ShardRows]:
        """The shard's usable rows. Small shards are spread over all that make views."""
        usable = [
            (row, entry.key)
            for row, entry in zip(count(self.spec.rows(shard).start), entries, strict=False)
            if row not in reasons
        ]
        share = -(-len(usable) // max(1, self.pool.ahead))
        size = max(1, min(_TASK_VIEWS // self.views.count, self.samples_per_batch, share))
        return tasks_of(shard, [row for row, _ in usable], [key for _, key in usable], size)

    def _noted(
        self, made: Iterator[tuple[ShardRows, Made]], reasons: dict[int, str], timer: Timer
    ) -> Iterator[tuple[ShardRows, Made]]:
        """The same, with reasons of unusable rows and seconds noted; waiting for the next counts as `wait`."""
        while True:
            with timer("wait"):
                item = next(made, None)
            if item is None:
                return
            reasons |= item[1].info.reasons
            for kind, seconds in item[1].info.seconds.items():
                timer.add(kind, seconds)
            yield item

    def _through_model(self, made: Iterable[tuple[ShardRows, Made]]) -> Generator[tuple[Batch, Parts]]:
        """Batches; from the first to the last no other shard's go into the model."""
        with self._in_model:
            for batch in batches(made, self.samples_per_batch):
                parts = batch.parts
                batch.parts = []
                yield batch, parts

    def _write(self, outputs: Iterable[tuple[Batch, dict[str, Any]]], writer: BlockWriter, timer: Timer) -> int:
        """Put every sample's targets into the writer, batch by batch. Returns how many samples there were."""
        views, start, usable = self.views.count, self.spec.rows(writer.shard).start, 0
        for batch, arrays in outputs:
            with timer("write"):
                for place, (row, params_V) in enumerate(zip(batch.rows, batch.params, strict=True)):
                    rows = slice(place * views, (place + 1) * views)
                    writer.put(row - start, params_V, {name: values[rows] for name, values in arrays.items()})
                writer.settle(batch.rows[-1] - start + 1)
            timer.advance(len(batch.rows))
            usable += len(batch.rows)
        return usable


def _invalid(reasons: dict[int, str], entries: Sequence[Entry], start: int) -> tuple[InvalidRow, ...]:
    return tuple(
        InvalidRow(row=row, path=entries[row - start].path, reason=reason) for row, reason in sorted(reasons.items())
    )


def _refuse_nonfinite(writer: BlockWriter) -> None:
    for name, bad in writer.nonfinite.items():
        raise InputError(
            "the teacher gave NaN or infinity",
            code="teacher-not-finite",
            where=f"{name} of {counted(bad, 'sample')} in shard {writer.shard}",
            hint="run `teachonce cache` with --precision fp32",
        )
