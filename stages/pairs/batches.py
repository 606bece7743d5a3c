"""Owns making batches of pairs: a map-style data set whose items are whole batches, by epoch and samples.

So a batch is the same whatever the number of loader processes, and whichever of them makes it.
"""

from __future__ import annotations

from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from ...pipeline.storage import as_storage_error
from ...storage_schemas.errors import DamagedError, TeachonceError
from ..corpora.images import BadImage
from ..corpora.shards import ShardSet
from ..samples.registry import kind_named
from .join import JoinedShard
from .order import EpochOrder, window_shards
from .slabs import ArrayLayout, Slab, SlabWriter, carve, num_bytes
from .store import StoreFacts, open_store

#: A batch to make: epoch, its first sample in the epoch's order, and the one behind its last.
BatchSpan = tuple[int, int, int]

#: One batch on its way: number of samples, and its arrays (see `Batches.layout`) or the slab that holds them.
SentBatch = tuple[int, list[NDArray[Any]] | Slab]


class Batches(Dataset[Any]):
    """Whole batches. Files and store are opened where batches are made, and only then.

    Args:
        shards, facts: a pair that belongs together, see `join.check_pair`.
        image_size: pixels of the square images.
        batch_size: most samples in a batch.
        seed: of the order.
        num_views: epoch e reads view e mod this.
        names: targets to read.

    Attributes:
        names: targets to read, in the order in which they are sent.
        window: shards whose rows are shuffled together; no more than two windows are ever open.
        queues: where each loader process learns which of its slabs are free again; empty without processes.
    """

    def __init__(
        self,
        shards: ShardSet,
        facts: StoreFacts,
        *,
        image_size: int,
        batch_size: int,
        seed: int,
        num_views: int,
        names: tuple[str, ...],
    ) -> None:
        self._shards, self._facts, self._num_views = shards, facts, num_views
        self._image_size, self._batch_size, self._seed, self.names = image_size, batch_size, seed, names
        self._limit = shards.corpus.max_pixels
        self._kind = kind_named(shards.corpus.sample_kind, where=shards.location)
        self.window = window_shards(facts.valid_rows)
        self.queues: tuple[SimpleQueue[int], ...] = ()
        self._order: EpochOrder | None = None
        self._root: Any = None
        self._open: dict[int, JoinedShard] = {}
        self._writer: SlabWriter | None = None

    def __getitem__(self, index: BatchSpan) -> SentBatch | TeachonceError:
        """The batch of these samples, or the error that prevents it."""
        try:
            return self._batch(*index)
        except TeachonceError as error:
            return error  # as a value: the loader would paste a traceback into its message
        except OSError as error:
            clear = as_storage_error(error)
            if clear is None:
                raise
            return clear

    def close(self) -> None:
        """Close what is open in this process."""
        for shard in self._open.values():
            shard.close()
        self._open.clear()

    def _batch(self, epoch: int, start: int, stop: int) -> SentBatch:
        if self._order is None or self._order.epoch != epoch:
            self._order = EpochOrder(
                seed=self._seed, epoch=epoch, rows_per_shard=self._facts.valid_rows, window=self.window
            )
        shards_N, positions_N = self._order.samples(start, stop)
        self._keep_open(self._order.open_shards(start, stop))
        view, kind, spec = epoch % self._num_views, self._kind, self._facts.views
        item, (rows_N, pixels_NCHW, *values) = self._room(stop - start)
        targets = dict(zip(self.names, values, strict=True))
        for shard in np.unique(shards_N):
            joined = self._joined(int(shard), view)
            places = np.flatnonzero(shards_N == shard)
            positions = positions_N[places]
            rows_N[places] = joined.rows[positions]
            for name, rows in joined.targets.items():
                targets[name][places] = rows[positions]
            boxes = joined.view_params[positions]
            for place, row, box in zip(places, rows_N[places].tolist(), boxes, strict=True):
                try:
                    sample = kind.decode(joined.read(row), self._limit)
                except BadImage as bad:
                    raise DamagedError(
                        "an image that the teacher saw cannot be read any more",
                        code="image-no-longer-readable",
                        where=f"{self._shards.location}, row {row}",
                        found=bad,
                        hint="restore the tar, or run `teachonce shard` again",
                    ) from bad
                kind.draw(pixels_NCHW[place], sample, box, self._image_size, spec)
        return item

    def layout(self, count: int) -> ArrayLayout:
        """What a batch of `count` samples consists of: rows, images, and the targets in their order."""
        shapes = {target.name: target.shape for target in self._facts.spec.targets}
        images = (np.dtype(self._kind.dtype).str, (count, *self._kind.shape(self._image_size)))
        return [("i8", (count,)), images, *(("f4", (count, *shapes[name])) for name in self.names)]

    def _room(self, count: int) -> tuple[SentBatch, list[NDArray[Any]]]:
        """Memory for a batch: what to send, and its arrays to fill."""
        layout, worker = self.layout(count), get_worker_info()
        if worker is None:
            arrays = [np.empty(shape, dtype) for dtype, shape in layout]
            return (count, arrays), arrays
        if self._writer is None:
            size = num_bytes(self.layout(self._batch_size))
            self._writer = SlabWriter(worker.id, size, self.queues[worker.id])
        slab, memory = self._writer.take()
        return (count, slab), carve(memory, layout)

    def _joined(self, shard: int, view: int) -> JoinedShard:
        if shard not in self._open:
            if self._root is None:
                self._root = open_store(self._facts.store)
            self._open[shard] = JoinedShard(self._shards, self._root, self._facts, shard, self.names)
        return self._open[shard].show(view)

    def _keep_open(self, wanted: set[int]) -> None:
        for shard in [s for s in self._open if s not in wanted]:
            self._open.pop(shard).close()
