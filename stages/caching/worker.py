"""Owns what one worker of `cache` does with its shards.

One is in the model at a time. The views of the next are made meanwhile, and the targets of the last are written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...pipeline.types import Timer, Unit
from ...storage_schemas.block_part import WHOLE, BlockPart
from ...storage_schemas.errors import DamagedError, InputError
from ...storage_schemas.manifest import Entry
from ...storage_schemas.plain_text import counted
from ...storage_schemas.receipt import InvalidRow, Receipt
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import Arrays, BlockWriter
from ..corpora.shards import ShardSet
from ..decoding.work import Made, Opened, Pool, in_order
from ..models.compute import Compute
from ..models.forward import Forward, Parts
from ..pairs.receipts import StoreReceipts
from ..samples import shard_views
from ..samples.shard_views import ShardRows, ShardViews, tasks_of
from ..teachers.offers import Answers
from ..views.spec import ViewSpec
from .batches import Batch, batches
from .call_costs import note_calls

#: What processes that make views import.
VIEWS_MODULE = shard_views.__name__

#: Views in a task: so many that handing it on costs nothing beside them, so few that a process has it done soon.
_TASK_VIEWS = 64


@dataclass(kw_only=True)
class CacheWorker:
    """Does one shard at a time in the model; called by two threads, so that the others' work goes on beside it.

    Attributes:
        size: of the teacher's input.
        batch_size: views in a forward pass.
        fingerprint: of the stage.
        writer: makes what a shard's rows are put into.
        arrays: the store's, as its blocks are written into them.
        part: what of a shard's block is made.
        before: receipts of the generation that the store grows from; None for a store that does not grow.
        copied: shards of those receipts, where all behind them are new; 0 for all shards.
        only: rows that the teacher sees; None for all that can be used.
    """

    shards: ShardSet
    store: Location
    arrays: Arrays
    spec: StoreSpec
    views: ViewSpec
    size: int
    answers: Answers
    compute: Compute
    batch_size: int
    fingerprint: str
    pool: Pool
    writer: Callable[[Any, StoreSpec, int, Sequence[str], BlockPart], BlockWriter] = BlockWriter
    part: BlockPart = WHOLE
    before: StoreReceipts | None = None
    copied: int = 0
    only: Collection[int] | None = None
    _in_model: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        names = self.part.names_of(self.spec)

        def outputs(views: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.answers.outputs(views.flatten(0, 1), names)

        self._forward = Forward(self.compute, outputs, per_sample=self.spec.views_together)
        self._work: Opened = self.pool.open(ShardViews(self.shards, self.views, self.size, self.part.first_view))

    def close(self) -> None:
        self.pool.close()

    @property
    def samples_per_batch(self) -> int:
        """Whole samples only, so that a batch's composition depends on nothing but the shard."""
        return max(1, self.batch_size // self.spec.views_together)

    @property
    def _groups(self) -> list[slice]:
        """The views that are made, as they go through the model together: never with those of another chunk."""
        count, step = self.views.count - self.part.first_view, self.spec.views_together
        return [slice(first, min(first + step, count)) for first in range(0, count, step)]

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        try:
            return self._do(unit, timer)
        finally:
            note_calls(self.store, unit.key, self.answers.teacher)

    def _do(self, unit: Unit, timer: Timer) -> Receipt:
        shard = unit.inputs["shard"]
        entries = self.shards.manifest().shard(shard)
        is_new = self.before is None or (self.copied and shard >= self.copied)
        receipt = self.shards.receipt(shard) if is_new or self.before is None else self.before.receipt(shard)
        assert receipt is not None  # the generation before is finished
        reasons = {bad.row: bad.reason for bad in receipt.invalid_rows}
        if self.only is not None:
            now = {bad.row: bad.reason for bad in self.shards.receipt(shard).invalid_rows}
            reasons = {row: reason for row, reason in reasons.items() if row not in self.only}
            reasons |= {row: reason for row, reason in now.items() if row in self.only}
        with closing(in_order(self._work, self._tasks(shard, entries, reasons), self.pool.ahead)) as made:
            # Making views starts here, while another unit may still be in the model.
            first = next(made, None)
            ready = self._noted(chain(() if first is None else (first,), made), reasons, timer)
            with closing(self._through_model(ready)) as batches_in:
                outputs = self._forward.through(batches_in, timer)
                begun = list(islice(outputs, 1))
                keys = [entry.key for entry in entries]
                writer = self.writer(self.arrays, self.spec, shard, keys, self.part)
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
            if row not in reasons and (self.only is None or row in self.only)
        ]
        share = -(-len(usable) // max(1, self.pool.ahead))
        views = self.views.count - self.part.first_view
        size = max(1, min(_TASK_VIEWS // views, self.samples_per_batch, share))
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
            self._refuse_lost(item[1].info.reasons)
            reasons |= item[1].info.reasons
            for kind, seconds in item[1].info.seconds.items():
                timer.add(kind, seconds)
            yield item

    def _refuse_lost(self, reasons: dict[int, str]) -> None:
        """An image that the teacher saw before is no image without targets: it can be read, or the shards are others."""
        for row, reason in reasons.items() if self.before is not None and self.only is None else ():
            raise DamagedError(
                "an image that the teacher saw cannot be read any more",
                code="image-no-longer-readable",
                where=f"{self.shards.location}, row {row}",
                found=reason,
                hint="restore the tar, or run `teachonce shard` again",
            )

    def _through_model(self, made: Iterable[tuple[ShardRows, Made]]) -> Generator[tuple[Batch, Parts]]:
        """Batches, each with one group of its views after the other; from the first to the last no other shard's go into the model."""
        with self._in_model:
            for batch in batches(made, self.samples_per_batch):
                parts = batch.parts
                batch.parts = []
                for group in self._groups:
                    yield batch, [part[:, group] for part in parts]

    def _write(self, outputs: Iterable[tuple[Batch, dict[str, Any]]], writer: BlockWriter, timer: Timer) -> int:
        """Put every sample's targets into the writer, batch by batch. Returns how many samples there were."""
        start, usable = self.spec.rows(writer.shard).start, 0
        for batch, arrays in _joined(outputs, len(self._groups)):
            with timer("write"):
                about = zip(batch.rows, batch.params, batch.sizes, strict=True)
                for place, (row, params_V, size) in enumerate(about):
                    writer.put(row - start, params_V, {name: values[place] for name, values in arrays.items()}, size)
                writer.settle(batch.rows[-1] - start + 1)
            timer.advance(len(batch.rows))
            usable += len(batch.rows)
        return usable


def _joined(outputs: Iterable[tuple[Batch, dict[str, Any]]], groups: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Each batch once, with the outputs of all its views: (sample, view, …)."""
    waiting: list[dict[str, Any]] = []
    for batch, arrays in outputs:
        count = len(batch.rows)
        waiting.append({name: values.reshape(count, -1, *values.shape[1:]) for name, values in arrays.items()})
        if len(waiting) == groups:
            found = waiting[0] if groups == 1 else {}
            for name in waiting[0] if groups > 1 else ():
                found[name] = np.concatenate([part[name] for part in waiting], axis=1)
            yield batch, found
            waiting = []


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
